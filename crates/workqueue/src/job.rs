//! A kind of job, and the message that carries it.

use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_ID;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::headers::{self, Version};
use crate::id::JobId;
use crate::priority::Priority;
use crate::queue::Queue;
use crate::trace::Trace;

/// A kind of job: a type that becomes a JSON object, and the queue that such jobs wait in.
///
/// It has to be an object (a struct with named fields, an enum with `#[serde(tag = "…")]`), so that a
/// later version can add fields.
pub trait Job: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The queue that such jobs wait in.
    const QUEUE: Queue;

    /// The version that this type writes, and the newest that it reads. A worker gives a message of a newer version
    /// back with a delay, so that a newer replica can take it during a rollout. Defaults to 1.
    const VERSION: u64 = 1;

    /// The id in the fields of this job, if it has one. The job is published under that id, and a message under
    /// another id is malformed. Without such an id, each submission gets a new one. Defaults to none.
    fn id(&self) -> Option<JobId> {
        None
    }

    /// How urgent this job is. It has an effect only in a queue [with priorities](Queue::with_priorities). Defaults to
    /// normal.
    fn priority(&self) -> Priority {
        Priority::Normal
    }

    /// The message of this job, ready to be published.
    ///
    /// # Errors
    ///
    /// If the job does not serialize to a JSON object.
    fn publication(&self, id: JobId, trace: &Trace) -> Result<Publication, serde_json::Error> {
        let subject = Self::QUEUE.lane(self.priority()).subject(id);
        let mut headers = headers::of_message(Self::VERSION, trace);
        if Self::QUEUE.has_message_ids() {
            headers.insert(NATS_MESSAGE_ID, id.to_string());
        }
        Ok(Publication { subject, headers, body: to_json(self)? })
    }

    /// The job whose message has these parts, and its id.
    ///
    /// # Errors
    ///
    /// See [`DecodeError`].
    fn decode(
        subject: &str,
        headers: Option<&HeaderMap>,
        body: &[u8],
    ) -> Result<(JobId, Self), DecodeError> {
        match headers::version(headers, Self::VERSION) {
            Version::Known => {}
            Version::Newer(version) => {
                return Err(DecodeError::NewerVersion { version, newest: Self::VERSION });
            }
            Version::Invalid(text) => return Err(DecodeError::Version(text)),
        }
        let job: Self = from_json(body)?;
        let key = Self::QUEUE.key(subject).unwrap_or_default();
        match job.id() {
            Some(id) if id.with_text(|id| id == key) => Ok((id, job)),
            Some(id) => Err(DecodeError::OtherSubject { id, subject: subject.to_owned() }),
            None => match key.parse() {
                Ok(id) => Ok((id, job)),
                Err(_) => Err(DecodeError::Subject(subject.to_owned())),
            },
        }
    }
}

/// A message that is ready to be published: subject, headers and body. Creating it sends nothing.
#[derive(Clone, Debug)]
pub struct Publication {
    /// The subject to publish to.
    pub subject: String,
    /// The headers to publish with.
    pub headers: HeaderMap,
    /// The body of the message.
    pub body: Bytes,
}

/// Why a message could not be decoded as a job of this type.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The message follows a newer version of its job type. A newer replica may be able to read it.
    #[error("its version is {version}, and {newest} is the newest that this service reads")]
    NewerVersion {
        /// The version that the message names.
        version: String,
        /// The newest version that this reader supports.
        newest: u64,
    },
    /// The version is not a number.
    #[error("its version is '{0}', which is not a whole number from 1")]
    Version(String),
    /// The body is not a job of this type.
    #[error("its body is not a message: {0}")]
    Body(#[from] serde_json::Error),
    /// The subject names no id.
    #[error("its subject is {0}, which does not end with the id of a job")]
    Subject(String),
    /// The body carries another id than the subject.
    #[error("its body has the id {id}, and its subject is {subject}")]
    OtherSubject {
        /// The id in the body.
        id: JobId,
        /// The subject that it was published to.
        subject: String,
    },
}

/// A value as a JSON object.
pub(crate) fn to_json(value: &impl Serialize) -> Result<Bytes, serde_json::Error> {
    /// Capacity that most messages fit in, so that the buffer need not grow.
    const USUAL: usize = 384;

    let mut text = Vec::with_capacity(USUAL);
    serde_json::to_writer(&mut text, value)?;
    if text.first() == Some(&b'{') {
        Ok(text.into())
    } else {
        Err(serde::ser::Error::custom("it does not become a JSON object: give it named fields"))
    }
}

/// A value from a JSON object. serde would also accept an array of the same values; readers in other
/// languages would not.
///
/// # Errors
///
/// If the body is not a JSON object, or does not match the type.
pub fn from_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, serde_json::Error> {
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(serde::de::Error::custom("it is not a JSON object"));
    }
    serde_json::from_slice(body)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Thumbnail {
        width: u32,
    }

    impl Job for Thumbnail {
        const QUEUE: Queue = Queue::new("THUMBNAILS", "thumbnails");
        const VERSION: u64 = 2;
    }

    #[test]
    fn job_without_an_id_of_its_own_is_known_by_its_subject() {
        let id = JobId::new();
        let job = Thumbnail { width: 7 };
        let Publication { subject, headers, body } =
            job.publication(id, &Trace::default()).unwrap();
        assert_eq!(subject, format!("thumbnails.{id}"));
        assert_eq!(Thumbnail::decode(&subject, Some(&headers), &body).unwrap(), (id, job));
        let error = Thumbnail::decode("thumbnails.7", Some(&headers), &body).unwrap_err();
        assert!(matches!(error, DecodeError::Subject(_)), "{error}");
    }

    #[test]
    fn job_reads_all_versions_up_to_its_own() {
        let subject = Thumbnail::QUEUE.subject(JobId::new());
        for (version, is_known) in
            [("1", true), ("2", true), ("3", false), ("99999999999999999999", false)]
        {
            let mut headers = HeaderMap::new();
            headers.insert(headers::MESSAGE_VERSION, version);
            let decoded = Thumbnail::decode(&subject, Some(&headers), br#"{"width":7}"#);
            assert_eq!(decoded.is_ok(), is_known, "{version}");
        }
    }

    #[test]
    fn job_that_is_no_object_is_refused_before_it_is_published() {
        #[derive(Serialize, Deserialize)]
        struct Ping;

        impl Job for Ping {
            const QUEUE: Queue = Queue::new("PINGS", "pings");
        }

        let error = Ping.publication(JobId::new(), &Trace::default()).unwrap_err();
        assert!(error.to_string().contains("give it named fields"), "{error}");
    }
}
