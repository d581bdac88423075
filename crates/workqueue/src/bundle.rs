//! Bundles: one message for several jobs, so that the broker stores, delivers and settles fewer of them.
//!
//! A job is published at once if no other job of its lane waits for the broker's confirmation. The jobs that are
//! submitted meanwhile wait, and are then published together, at most `BUNDLE_LIMIT` in a message; a full bundle does
//! not wait. So a single job is a message of its own, as without bundles, and the bundles grow with the load.
//!
//! Each job keeps its id, its attempts, its effects and its dead letter. The consumer acks the bundle once each of its
//! jobs is settled, each independently of the others:
//!
//! - A job that is done needs nothing more.
//! - A job that is retried or snoozed is published as a message of its own.
//! - A job that cannot be handled becomes a dead letter.
//! - A job that a stopping service cannot finish is published as a message of its own, with the same attempt.
//!
//! A redelivered bundle is split: each of its jobs becomes a message of its own, because one of them may kill every
//! process that handles it. Those for whose messages the queue has no room are handled with the bundle.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::mem::take;
use std::sync::{Arc, Mutex, MutexGuard};

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::{HeaderMap, HeaderName, Message};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::headers::{self, MESSAGE_VERSION};
use crate::id::JobId;
use crate::job::{Job, Publication};
use crate::pub_acks::Unconfirmed;
use crate::publisher::{PublishError, Publisher};
use crate::queue::Lane;
use crate::trace::Trace;

/// The header with the number of jobs in a bundle.
pub const BUNDLE: &str = "Bundle";

static NAME: HeaderName = HeaderName::from_static(BUNDLE);

/// The most jobs in a bundle. A message with more is no bundle, because the memory for them has no other limit.
pub(crate) const MOST_JOBS: usize = 1000;

/// The longest version, in bytes, that the jobs of a bundle take over from it.
const LONGEST_VERSION: usize = 100;

/// The most bytes of the jobs in a bundle. This usually leaves room for their ids and traces; if the broker refuses the
/// bundle as too large, each job is sent alone. So is a job with more bytes.
const MOST_BYTES: usize = 128 * 1024;

/// A job in a bundle.
#[derive(Serialize, Deserialize)]
struct Entry<'a> {
    id: JobId,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    traceparent: Option<Cow<'a, str>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    tracestate: Option<Cow<'a, str>>,
    #[serde(borrow)]
    job: &'a RawValue,
}

impl<'a> Entry<'a> {
    fn of(Waiting { id, trace, publication, .. }: &'a Waiting) -> Result<Self, serde_json::Error> {
        let (traceparent, tracestate) =
            (trace.parent().map(Cow::from), trace.state().map(Cow::from));
        let job = serde_json::from_slice(&publication.body)?;
        Ok(Self { id: *id, traceparent, tracestate, job })
    }
}

/// The jobs that may share a message: those of one lane and version. Either all of them can become dead letters, or
/// none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Group {
    lane: Lane,
    version: u64,
    may_stop: bool,
}

/// A job that waits for its publish.
#[derive(Debug)]
struct Waiting {
    id: JobId,
    trace: Trace,
    /// The job as a message of its own.
    publication: Publication,
    stop: Option<CancellationToken>,
    answer: oneshot::Sender<Result<(), PublishError>>,
}

/// The waiting jobs of a group, and the number of tasks that publish them: at least one while jobs wait.
#[derive(Debug, Default)]
struct Open {
    jobs: VecDeque<Waiting>,
    tasks: usize,
}

/// Collects the jobs of a stream that are submitted while others wait for their confirmation.
#[derive(Debug)]
pub(crate) struct Bundler {
    /// The most jobs in a message.
    limit: usize,
    open: Mutex<HashMap<Group, Open>>,
}

impl Bundler {
    /// A bundler with this limit of jobs in a message. `None` if the limit is 1.
    pub(crate) fn new(limit: usize) -> Option<Self> {
        (limit > 1).then(|| Self { limit, open: Mutex::default() })
    }

    /// Adds a job. Returns whether the caller has to start another task that publishes.
    fn add(&self, group: Group, job: Waiting) -> bool {
        let mut open = self.open();
        let open = open.entry(group).or_default();
        open.jobs.push_back(job);
        let needs_task = open.tasks == 0 || open.jobs.len().is_multiple_of(self.limit);
        open.tasks += usize::from(needs_task);
        needs_task
    }

    /// The next jobs to publish together. `None` ends the calling task. At its first turn, a task takes the jobs that
    /// wait. After that it goes on only while it is the only task, or while there are enough jobs for a full bundle.
    fn take(&self, group: Group, is_first: bool) -> Option<Vec<Waiting>> {
        let mut open = self.open();
        let open = open.entry(group).or_default();
        let count = open.jobs.len();
        if count == 0 || !(is_first || open.tasks == 1 || count >= self.limit) {
            open.tasks -= 1;
            return None;
        }
        let mut bytes = 0;
        let fits = |job: &&Waiting| {
            bytes += job.publication.body.len();
            bytes <= MOST_BYTES
        };
        let count = open.jobs.iter().take(self.limit).take_while(fits).count();
        Some(open.jobs.drain(..count.max(1)).collect())
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Group, Open>> {
        self.open.lock().expect("nothing panics while it holds this lock")
    }
}

impl Publisher {
    /// Publishes a job as [`Publisher::publish`] does, in a bundle if bundles are enabled.
    pub(crate) async fn publish_job<J: Job>(
        self: &Arc<Self>,
        job: &J,
        id: JobId,
        trace: &Trace,
        stop: Option<&CancellationToken>,
    ) -> Result<(), PublishError> {
        if J::QUEUE.schedules().is_some() {
            // In a box, because it is rare, and would make every other publish larger.
            Box::pin(self.wait_for_room(stop)).await?;
        }
        let Some(bundler) = &self.bundler else {
            return self.publish(|| job.publication(id, trace), stop).await;
        };
        let lane = J::QUEUE.lane(job.priority());
        let group = Group { lane, version: J::VERSION, may_stop: stop.is_some() };
        let (answer, published) = oneshot::channel();
        let publication = job.publication(id, trace)?;
        let (trace, stop) = (trace.clone(), stop.cloned());
        if bundler.add(group, Waiting { id, trace, publication, stop, answer }) {
            // In a separate task, because it also publishes the jobs of other callers, which outlive this future.
            tokio::spawn(Arc::clone(self).publish_waiting(group));
        }
        published.await.unwrap_or_else(|_ended| Err(Unconfirmed::Lost.into()))
    }

    async fn publish_waiting(self: Arc<Self>, group: Group) {
        let Some(bundler) = &self.bundler else { return };
        let mut is_first = true;
        while let Some(jobs) = bundler.take(group, take(&mut is_first)) {
            let is_stored = if let [first, _, ..] = &*jobs
                && let Ok(bundle) = bundle(group, &jobs)
            {
                self.publish(|| Ok(bundle.clone()), first.stop.as_ref()).await.is_ok()
            } else {
                false
            };
            // If the bundle cannot be published, each job is published alone, with its own result.
            join_all(jobs.into_iter().map(
                async |Waiting { publication, stop, answer, .. }| {
                    let alone =
                        async || self.publish(|| Ok(publication.clone()), stop.as_ref()).await;
                    // The caller may have given up meanwhile.
                    let _ = answer.send(if is_stored { Ok(()) } else { alone().await });
                },
            ))
            .await;
        }
    }
}

/// The message that carries these jobs. It has an id of its own, because the removal of one job from the queue must not
/// remove the others.
fn bundle(group: Group, jobs: &[Waiting]) -> Result<Publication, serde_json::Error> {
    let entries = jobs.iter().map(Entry::of).collect::<Result<Vec<_>, _>>()?;
    let (lane, id) = (group.lane, JobId::new());
    let mut headers = headers::of_message(group.version, &Trace::default());
    headers.insert(NAME.clone(), jobs.len().to_string());
    if lane.queue.has_message_ids() {
        headers.insert(NATS_MESSAGE_ID, id.to_string());
    }
    let body = serde_json::to_vec(&entries)?.into();
    Ok(Publication { subject: lane.subject(id), headers, body })
}

/// The ids of the jobs in the bundle with these headers and this body. `None` if it is not a bundle.
#[must_use]
pub fn bundled_ids(headers: &HeaderMap, body: &[u8]) -> Option<Vec<JobId>> {
    Some(entries(headers, body)?.into_iter().map(|entry| entry.id).collect())
}

fn entries<'a>(headers: &HeaderMap, body: &'a [u8]) -> Option<Vec<Entry<'a>>> {
    let count: usize = headers.get(NAME.clone())?.as_str().parse().ok()?;
    let entries: Vec<Entry<'a>> = serde_json::from_slice(body).ok()?;
    (count <= MOST_JOBS && count == entries.len()).then_some(entries)
}

/// The jobs in a bundle, each as the message that it would be alone. `None` if the message is not a bundle.
pub(crate) fn jobs(message: &Message, key: &str) -> Option<Vec<Message>> {
    let headers = message.headers.as_ref()?;
    let entries = entries(headers, &message.payload)?;
    let version = headers.get(MESSAGE_VERSION).filter(|it| it.as_str().len() <= LONGEST_VERSION);
    let lane = message.subject.strip_suffix(key)?;
    let job = |Entry { id, traceparent, tracestate, job }: Entry<'_>| {
        let mut trace = Trace::default();
        trace.set("traceparent", traceparent.as_deref().unwrap_or_default());
        trace.set("tracestate", tracestate.as_deref().unwrap_or_default());
        let mut headers = headers::of_message(1, &trace);
        if let Some(version) = version {
            headers.insert(MESSAGE_VERSION, version.clone());
        }
        let payload = message.payload.slice_ref(job.get().as_bytes());
        let (subject, length) = (format!("{lane}{id}").into(), payload.len());
        let (reply, headers, status, description) = (None, Some(headers), None, None);
        Message { subject, reply, payload, headers, status, description, length }
    };
    Some(entries.into_iter().map(job).collect())
}

#[cfg(test)]
mod tests {
    use async_nats::Subject;
    use bytes::Bytes;

    use super::*;
    use crate::queue::Queue;

    const LETTERS: Queue = Queue::new("LETTERS", "letters").with_priorities();

    fn group() -> Group {
        Group { lane: LETTERS.lane(crate::Priority::High), version: 3, may_stop: false }
    }

    fn waiting(body: &str, trace: Trace) -> Waiting {
        let id = JobId::new();
        let headers = headers::of_message(3, &trace);
        let body = Bytes::from(body.to_owned());
        let publication = Publication { subject: group().lane.subject(id), headers, body };
        Waiting { id, trace, publication, stop: None, answer: oneshot::channel().0 }
    }

    fn delivered(Publication { subject, headers, body }: Publication) -> Message {
        Message {
            subject: Subject::from(subject),
            reply: None,
            payload: body,
            headers: Some(headers),
            status: None,
            description: None,
            length: 0,
        }
    }

    fn jobs_of(message: &Message) -> Option<Vec<Message>> {
        jobs(message, LETTERS.key(&message.subject).unwrap())
    }

    #[test]
    fn jobs_are_read_from_a_bundle_unchanged() {
        let traced = Trace::from_outside(
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            Some("vendor=\u{22}quoted\u{22}"),
        );
        let put = [waiting(r#"{"to":"käse"}"#, traced), waiting("{}", Trace::default())];
        let bundle = bundle(group(), &put).unwrap();
        assert!(put.iter().all(|job| job.publication.subject != bundle.subject));
        let found = jobs_of(&delivered(bundle)).unwrap();
        assert_eq!(found.len(), put.len());
        for (found, Waiting { publication, .. }) in found.iter().zip(&put) {
            assert_eq!(found.subject.as_str(), publication.subject);
            assert_eq!(found.headers.as_ref(), Some(&publication.headers));
            assert_eq!(found.payload, publication.body);
        }
    }

    #[test]
    fn message_that_is_no_bundle_has_no_jobs_in_it() {
        let job = waiting("{}", Trace::default()).publication;
        assert!(jobs_of(&delivered(job.clone())).is_none());
        for body in ["", "{}", "[{}]", r#"[{"id": "mine", "job": {}}]"#, "[", "7"] {
            let mut message = delivered(job.clone());
            message.headers.as_mut().unwrap().insert(BUNDLE, "2");
            message.payload = body.into();
            assert!(jobs_of(&message).is_none(), "{body}");
        }
        let whole = bundle(group(), &[waiting("{}", Trace::default())]).unwrap();
        assert_eq!(jobs_of(&delivered(whole.clone())).unwrap().len(), 1);
        assert_eq!(bundled_ids(&whole.headers, &whole.body).unwrap().len(), 1);
        for count in ["2", "x"] {
            let mut message = delivered(whole.clone());
            message.headers.as_mut().unwrap().insert(BUNDLE, count);
            assert!(jobs_of(&message).is_none(), "{count}");
        }
        let mut first = HeaderMap::new();
        first.insert(BUNDLE, "1");
        let jobs = jobs_of(&delivered(Publication { headers: first, ..whole })).unwrap();
        let version = jobs[0].headers.as_ref().unwrap().get(MESSAGE_VERSION).unwrap();
        assert_eq!(version.as_str(), "1", "a message without a version has the first one");
        let many: Vec<_> = (0..=MOST_JOBS).map(|_| waiting("{}", Trace::default())).collect();
        assert!(jobs_of(&delivered(bundle(group(), &many).unwrap())).is_none());
    }

    #[test]
    fn bundle_has_no_more_jobs_than_allowed_and_no_more_bytes() {
        let bundler = Bundler::new(3).unwrap();
        let large = "x".repeat(MOST_BYTES / 2 + 1);
        let mut tasks = 0;
        for body in ["{}", "{}", "{}", "{}", &large, &large] {
            tasks += usize::from(bundler.add(group(), waiting(body, Trace::default())));
        }
        assert_eq!(tasks, 3, "the first and each full bundle");
        let mut sizes = Vec::new();
        while let Some(jobs) = bundler.take(group(), true) {
            sizes.push(jobs.len());
        }
        assert_eq!(sizes, [3, 2, 1]);
        assert!(Bundler::new(1).is_none());
    }
}
