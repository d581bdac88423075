//! The AsyncAPI document and the Rust types agree on channels, headers, settings, and valid messages.

mod agreement;
mod arbitrary;
mod channels;
mod document;
mod kinds;
mod publications;
mod reading;
mod schemas;
