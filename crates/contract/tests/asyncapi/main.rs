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

/// What Rust declares on the broker. It is private to the crate, and the document repeats it.
#[path = "../../src/topology/wanted.rs"]
mod wanted;

// What `wanted` finds in its own crate.
use contract::topology::Limits;
use contract::{dead_letters, facts, queues};
