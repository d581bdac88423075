//! The three queues, and the message that each of them holds.
//!
//! | queue | message | published by | consumed by |
//! | --- | --- | --- | --- |
//! | [`REQUESTS`] | [`Request`] | requestor | generator |
//! | [`RESPONSES`] | [`Response`] | generator | requestor |
//! | [`ACKNOWLEDGMENTS`] | [`Acknowledgment`] | requestor | generator |
//!
//! A queue is a stream that forgets a message once its consumer has acknowledged it.

mod acknowledgments;
mod requests;
mod responses;

pub use acknowledgments::{ACKNOWLEDGMENTS, Acknowledgment};
pub use requests::{REQUESTS, Request};
pub use responses::{RESPONSES, Response};

use async_nats::HeaderMap;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::headers::{self, Trace, Version};
use crate::{Publication, RequestId};

/// All queues, in the order in which a request passes through them.
pub const ALL: [Queue; 3] = [REQUESTS, RESPONSES, ACKNOWLEDGMENTS];

/// A queue on the broker: a stream, the subjects that it takes, and the consumer that empties it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Queue {
    /// The name of the stream.
    pub stream: &'static str,
    /// The durable consumer, which all replicas of the consuming side share.
    pub consumer: &'static str,
    root: &'static str,
}

impl Queue {
    /// The subject of the message about this request.
    #[must_use]
    pub fn subject(self, id: RequestId) -> String {
        id.with_text(|key| self.subject_of(key))
    }

    /// The subject that names this key, which need not be an id.
    #[must_use]
    pub fn subject_of(self, key: &str) -> String {
        [self.root, ".", key].concat()
    }

    /// The subjects that the stream takes.
    #[must_use]
    pub fn subjects(self) -> String {
        format!("{}.>", self.root)
    }

    /// The subjects that the consumer asks for: those that may name a request.
    #[must_use]
    pub fn filter(self) -> String {
        format!("{}.*", self.root)
    }

    /// The part of a subject of this queue that names the request, whatever it looks like.
    #[must_use]
    pub fn key(self, subject: &str) -> Option<&str> {
        subject.strip_prefix(self.root)?.strip_prefix('.')
    }
}

/// A message of one of the queues. One that exists is valid.
pub trait Message: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Where such messages wait.
    const QUEUE: Queue;

    /// The request that this is about.
    fn id(&self) -> RequestId;

    /// When that request was asked. It travels all the way: the age of a message is the age of
    /// its request.
    fn requested_at(&self) -> Timestamp;

    /// This message, ready to be published.
    fn publication(&self, trace: &Trace) -> Publication {
        Publication {
            subject: Self::QUEUE.subject(self.id()),
            headers: headers::of_message(self.id(), trace),
            body: crate::json(self),
        }
    }

    /// The message that was published with these parts.
    ///
    /// # Errors
    ///
    /// See [`DecodeError`].
    fn decode(
        subject: &str,
        headers: Option<&HeaderMap>,
        body: &[u8],
    ) -> Result<Self, DecodeError> {
        match headers::version(headers) {
            Version::Known => {}
            Version::Newer(text) => return Err(DecodeError::NewerVersion(text)),
            Version::None(text) => return Err(DecodeError::Version(text)),
        }
        let message: Self = crate::from_json(body)?;
        let id = message.id();
        if !id.with_text(|id| Self::QUEUE.key(subject) == Some(id)) {
            let id = id.to_string();
            return Err(DecodeError::OtherSubject { id, subject: subject.to_owned() });
        }
        Ok(message)
    }
}

/// Why some bytes are not a message that this side can read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The message follows a version of the contract that is newer than ours. A newer replica may
    /// be able to read it.
    #[error("its version is {0}, and {version} is the newest that is known here", version = headers::VERSION)]
    NewerVersion(String),
    /// What should be a version is none.
    #[error("its version is '{0}', which is not a whole number from 1")]
    Version(String),
    /// The body is not what the contract says.
    #[error("its body is not a message: {0}")]
    Body(#[from] serde_json::Error),
    /// The body speaks of another request than the subject.
    #[error("its body is about {id}, its subject is {subject}")]
    OtherSubject {
        /// The id in the body.
        id: String,
        /// The subject that it was published to.
        subject: String,
    },
}
