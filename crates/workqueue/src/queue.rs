use crate::JobId;

/// A queue on the broker: a stream, the subjects that it takes, and the durable consumer that empties it.
///
/// A queue is a stream that forgets a message once its consumer has acknowledged it. The message of a
/// job is published to `<root>.<id>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Queue {
    /// The name of the stream.
    pub stream: &'static str,
    /// The first token of every subject of this queue.
    pub root: &'static str,
    /// The durable consumer, which all replicas of the consuming service share.
    pub consumer: &'static str,
}

impl Queue {
    /// A queue that is kept in `stream`, takes the subjects below `root`, and is emptied by a durable
    /// consumer that is called as `root` is.
    #[must_use]
    pub const fn new(stream: &'static str, root: &'static str) -> Self {
        Self { stream, root, consumer: root }
    }

    /// The same queue, emptied by a consumer of this name.
    #[must_use]
    pub const fn consumer(self, consumer: &'static str) -> Self {
        Self { consumer, ..self }
    }

    /// The subject of the job with this id.
    #[must_use]
    pub fn subject(self, id: JobId) -> String {
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

    /// The subjects that the consumer asks for: those that may name a job.
    #[must_use]
    pub fn filter(self) -> String {
        format!("{}.*", self.root)
    }

    /// The part of a subject of this queue that names the job, whatever it looks like.
    #[must_use]
    pub fn key(self, subject: &str) -> Option<&str> {
        subject.strip_prefix(self.root)?.strip_prefix('.')
    }
}
