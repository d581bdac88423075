use std::sync::{Arc, Mutex};

use async_nats::header::NATS_MESSAGE_ID;
use bytes::Bytes;
use jiff::Timestamp;

use crate::facts::Fact;
use crate::job::{Job, Publication};
use crate::queue::ONCE;
use crate::schedules;

/// Records the jobs and facts that handlers publish and create, instead of a broker. A created fact exists for all
/// contexts of the same recorder.
#[derive(Debug, Default)]
pub struct Recorder(Mutex<Vec<Publication>>);

impl Recorder {
    /// An empty recorder.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The jobs of this kind that were published, in order.
    ///
    /// # Panics
    ///
    /// If one of them cannot be read again.
    #[must_use]
    pub fn published<J: Job>(&self) -> Vec<J> {
        let decode = |publication: &Publication| {
            let Publication { subject, headers, body } = publication;
            J::decode(subject, Some(headers), body).expect("it was encoded as such a job").1
        };
        self.with(|all| {
            let is_of_queue =
                |publication: &&Publication| J::QUEUE.key(&publication.subject).is_some();
            all.iter().filter(is_of_queue).map(decode).collect()
        })
    }

    /// The jobs of this kind that were submitted for later and not cancelled, in order, and when each is due.
    ///
    /// # Panics
    ///
    /// If one of them cannot be read again.
    #[must_use]
    pub fn later<J: Job>(&self) -> Vec<(Timestamp, J)> {
        let prefix = schedules::subject(J::QUEUE, ONCE, "");
        self.with(|all| {
            let later = all.iter().filter_map(|Publication { subject, headers, body }| {
                let due = J::QUEUE.subject_of(subject.strip_prefix(&prefix)?);
                let job =
                    J::decode(&due, Some(headers), body).expect("it was encoded as such a job").1;
                Some((schedules::due_at(headers)?, job))
            });
            later.collect()
        })
    }

    /// The facts of this kind that were created, in order.
    ///
    /// # Panics
    ///
    /// If one of them cannot be read again.
    #[must_use]
    pub fn created<F: Fact>(&self) -> Vec<F> {
        let decode = |publication: &Publication| {
            F::from_body(&publication.body).expect("it was encoded as such a fact")
        };
        self.with(|all| {
            let is_of_bucket =
                |publication: &&Publication| F::BUCKET.key(&publication.subject).is_some();
            all.iter().filter(is_of_bucket).map(decode).collect()
        })
    }

    /// Adds it, unless it has the message id of an earlier one to the same subject.
    pub(crate) fn add(&self, publication: Publication) {
        let id = |of: &Publication| of.headers.get(NATS_MESSAGE_ID).cloned();
        self.with(|all| {
            let is_duplicate = id(&publication).is_some()
                && all.iter().any(|earlier| {
                    earlier.subject == publication.subject && id(earlier) == id(&publication)
                });
            if !is_duplicate {
                all.push(publication);
            }
        });
    }

    /// Removes all messages under this subject. Returns whether there were any.
    pub(crate) fn remove(&self, subject: &str) -> bool {
        self.with(|all| {
            let before = all.len();
            all.retain(|publication| publication.subject != subject);
            all.len() < before
        })
    }

    /// The body of the last message under this subject.
    pub(crate) fn last(&self, subject: &str) -> Option<Bytes> {
        self.with(|all| {
            let last = all.iter().rfind(|publication| publication.subject == subject);
            last.map(|publication| publication.body.clone())
        })
    }

    fn with<T>(&self, access: impl FnOnce(&mut Vec<Publication>) -> T) -> T {
        access(&mut self.0.lock().expect("nothing panics while it holds this lock"))
    }
}
