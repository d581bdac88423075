//! The job of a firing of a recurring schedule.

use async_nats::HeaderMap;
use jiff::Timestamp;

use crate::id::JobId;
use crate::queue::{EVERY, Queue};
use crate::recurrence::firing;

/// The subject of the job of this message, if a recurring schedule has fired it. Each firing is a separate job, so from
/// here on it has the subject of a job that is due once: its dead letter has its id, and a replay uses that subject.
pub(crate) fn subject(
    queue: Queue,
    subject: &str,
    headers: Option<&HeaderMap>,
    stored: Timestamp,
) -> Option<String> {
    let name = subject.strip_prefix(queue.root)?.strip_prefix('.')?.strip_prefix(EVERY)?;
    let [scheduler, next] = firing(headers?)?;
    let of_this = queue.schedule_key(scheduler)?;
    (name.strip_prefix('.') == Some(of_this))
        .then(|| queue.subject(JobId::fired(stored, [scheduler, next])))
}

#[cfg(test)]
mod tests {
    use async_nats::header::{NATS_SCHEDULE_NEXT, NATS_SCHEDULER};

    use super::*;

    const DUE: Queue = Queue::new("SCHEDULES", "due").with_schedules("schedules");

    fn fired(subject_is: &str, scheduler: &str, next: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_SCHEDULER, scheduler);
        headers.insert(NATS_SCHEDULE_NEXT, next);
        subject(DUE, subject_is, Some(&headers), "2026-11-21T07:17:18.744Z".parse().unwrap())
    }

    #[test]
    fn each_firing_is_a_job_of_its_own() {
        let (next, later) = ("2026-11-21T07:17:19Z", "2026-11-21T07:17:20Z");
        let job = fired("due.every.a", "schedules.every.a", next).unwrap();
        assert_eq!(fired("due.every.a", "schedules.every.a", next), Some(job.clone()));
        assert_ne!(fired("due.every.a", "schedules.every.a", later), Some(job.clone()));
        assert_ne!(fired("due.every.b", "schedules.every.b", next), Some(job.clone()));
        let id: JobId = DUE.key(&job).unwrap().parse().unwrap();
        assert_eq!(id.made_at().to_string(), "2026-11-21T07:17:18.744Z");
        assert_eq!(job, format!("due.once.{id}"));
    }

    #[test]
    fn other_messages_keep_their_subjects() {
        assert_eq!(fired("due.once.a", "schedules.once.a", "purge"), None);
        assert_eq!(fired("due.every.a", "schedules.every.b", "2026-11-21T07:17:19Z"), None);
        assert_eq!(subject(DUE, "due.every.a", None, Timestamp::MIN), None);
    }
}
