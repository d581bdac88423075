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
mod key;
mod strings;

pub use id::{InvalidId, RequestId};
pub use key::{IdempotencyKey, InvalidKey, MAX_KEY};
pub use strings::{Amount, InvalidStrings, MAX_CHARACTERS, MAX_COUNT, MAX_LENGTH, Strings};

use async_nats::HeaderMap;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

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
fn json(value: &impl Serialize) -> Bytes {
    /// What a message with one string of the usual length needs, so that nothing has to grow.
    const USUAL: usize = 384;

    let mut text = Vec::with_capacity(USUAL);
    serde_json::to_writer(&mut text, value)
        .expect("no type of the contract can fail to become JSON");
    text.into()
}

/// Something of the contract from JSON. It has to be an object: serde would take an array of the
/// same values, too, which no other reader of the contract does.
fn from_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, serde_json::Error> {
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(serde::de::Error::custom("it is no JSON object"));
    }
    serde_json::from_slice(body)
}
