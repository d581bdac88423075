//! The front and its workers, as processes beside a real broker, and a web that misbehaves.

mod hostile;
mod programs;
mod site;
mod system;
