//! The front and its workers as processes, with a real broker, and with servers that misbehave.

mod hostile;
mod programs;
mod site;
mod system;
