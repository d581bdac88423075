//! What the two sides agree on, and all that they share.
//!
//! Two services exchange messages over three queues, and write down what has happened as facts:
//!
//! ```text
//! requestor --request-->        [REQUESTS]        --> generator    makes random strings
//! requestor <--response--       [RESPONSES]       <-- generator
//!     stores the strings
//! requestor --acknowledgment--> [ACKNOWLEDGMENTS] --> generator    marks them as received
//! ```
//!
//! A *queue* holds what is still to be done and empties itself ([`queues`]). A *fact* says what
//! has happened and is never changed ([`facts`]). What nobody can handle becomes a *dead letter*
//! ([`dead_letters`]). [`topology`] declares all of it on the broker, which is the only input and
//! output in this crate: it reads no environment and no clock, and starts no task.
//!
//! Nothing outside of this crate spells the name of a stream, a subject or a bucket. Whoever
//! writes one of the sides in another language finds the same contract in `asyncapi.yaml`.

pub mod dead_letters;
pub mod facts;
pub mod headers;
pub mod queues;
pub mod topology;

mod id;
mod strings;

pub use id::{InvalidId, RequestId};
pub use strings::{Amount, InvalidStrings, MAX_CHARACTERS, MAX_COUNT, MAX_LENGTH, Strings};

use async_nats::HeaderMap;
use bytes::Bytes;

/// Everything that a publish needs: where to, under which headers, and what.
///
/// The contract makes these, and never sends one.
#[derive(Clone, Debug)]
pub struct Publication {
    /// The subject to publish to.
    pub subject: String,
    /// The headers to publish with.
    pub headers: HeaderMap,
    /// The bytes of the message.
    pub body: Bytes,
}

/// Anything of the contract in JSON.
fn json(value: &impl serde::Serialize) -> Bytes {
    serde_json::to_vec(value).expect("no type of the contract can fail to become JSON").into()
}
