//! The AsyncAPI document and the Rust types say the same: of channels, headers and settings, and of
//! what is a message and what is none.

mod agreement;
mod arbitrary;
mod channels;
mod document;
mod kinds;
mod publications;
mod reading;
mod schemas;
