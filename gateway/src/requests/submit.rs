//! Submits the request of a client once, and answers with its outcome within a second.

use std::time::Duration;

use contract::IdempotencyKey;
use contract::facts::{Asked, Stored};
use contract::queues::{DueRequest, Request};
use jiff::{SignedDuration, Timestamp};
use requestor::{cancel, record, submit};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};
use workqueue::{
    Connection, Creation, Fact, JobId, Producer, PublishError, ReadError, Trace, chain, read_fact,
    schedules,
};

use super::input::{Submission, Wanted};
use super::reader::permit;
use super::time::Time;
use super::view::AcceptedRequest;
use crate::problem::{Problem, ProblemKind, SubmitOutcome};

/// The most requests that are submitted at a time: about as many as the broker answers within some milliseconds.
pub(crate) const SLOTS: usize = 64;

/// The time limit for submitting. A client gets an answer within a second, even if the broker is away.
const DEADLINE: Duration = Duration::from_millis(800);

/// A request whose age comes this close to `facts_max_age` is no longer submitted. A quarter of `facts_max_age` counts
/// instead, if that is shorter.
const MARGIN: Duration = Duration::from_hours(1);

const TOO_MANY: &str = "too many clients ask at this moment";

const AWAY: &str = "the broker has not confirmed the request in time, so it is unknown whether the request \
                    was accepted. With the same Idempotency-Key it is safe to try again; without one, \
                    another try may make a second request";

/// A request that is due, at once or later.
struct Planned {
    request: Request,
    /// When it is due, as the client set it. The time may have passed.
    not_before: Option<Timestamp>,
}

impl Planned {
    /// The job for later, and when it is due, unless that time had passed when the client first sent the request.
    fn due(&self) -> Option<(DueRequest, Timestamp)> {
        let Request { amount, priority, requestor, requested_at, expires_at, .. } =
            self.request.clone();
        let at = self.not_before.filter(|at| *at > requested_at)?;
        let due = DueRequest::new(amount, requestor);
        Some((DueRequest { priority, not_before: Some(at), expires_at, ..due }, at))
    }

    fn accepted(&self) -> AcceptedRequest {
        AcceptedRequest::new(&self.request, self.due().map(|(_, at)| at))
    }
}

impl From<Asked> for Planned {
    fn from(Asked { request, not_before, .. }: Asked) -> Self {
        Self { request, not_before }
    }
}

/// Submits requests for clients.
#[derive(Debug)]
pub(crate) struct Submissions {
    connection: Connection,
    pub(crate) producer: Producer,
    pub(crate) instance: String,
    /// The time for which the guarantees hold after a request was made.
    facts_max_age: Duration,
    slots: Semaphore,
    /// Cancelled from the start: a client does not wait for room in the queue.
    no_waiting: CancellationToken,
}

impl Submissions {
    pub(crate) fn new(
        connection: &Connection,
        producer: Producer,
        instance: &str,
        facts_max_age: Duration,
    ) -> Self {
        let no_waiting = CancellationToken::new();
        no_waiting.cancel();
        Self {
            connection: connection.clone(),
            producer,
            instance: instance.to_owned(),
            facts_max_age,
            slots: Semaphore::new(SLOTS),
            no_waiting,
        }
    }

    /// Submits a request, and returns the accepted one. With a key, it is always the same one.
    ///
    /// # Errors
    ///
    /// If the request is not known to be accepted. The outcome in the problem says whether it may be.
    pub(crate) async fn submit(&self, new: Submission) -> Result<AcceptedRequest, Problem> {
        let deadline = Instant::now() + DEADLINE;
        // Without a connection the client would buffer the publish, and send it later.
        if !self.connection.is_connected() {
            return Err(away());
        }
        let Submission { wanted, key, trace } = new;
        let Ok(slot) = timeout_at(deadline, self.slots.acquire()).await else {
            return Err(not_stored(ProblemKind::Busy, TOO_MANY, key.is_some()));
        };
        let _slot = slot.expect("it is never closed");
        let submitted = async {
            let planned = self.planned(wanted);
            match key {
                Some(key) => self.submit_under(key, wanted, planned, &trace).await,
                None => self.submit_planned(planned, &trace, false).await,
            }
        };
        // After the deadline the request is not published again, but the last try may still arrive.
        timeout_at(deadline, submitted).await.unwrap_or_else(|_| Err(away()))
    }

    fn planned(&self, wanted: Wanted) -> Planned {
        let Wanted { amount, priority, expires_at, time } = wanted;
        let now = workqueue::now();
        let request = Request::new(JobId::new(), amount, &self.instance, now);
        let request = Request { priority, expires_at, ..request };
        Planned { request, not_before: time.from(now) }
    }

    /// Submits a planned request, under a key or without one.
    async fn submit_planned(
        &self,
        planned: Planned,
        trace: &Trace,
        under_a_key: bool,
    ) -> Result<AcceptedRequest, Problem> {
        let (request, stop) = (&planned.request, &self.no_waiting);
        let submitted = match planned.due() {
            None => submit(&self.producer, request, trace, stop).await,
            Some((due, at)) => {
                self.producer.publish_later(&due, request.id, at, trace, Some(stop)).await
            }
        };
        match submitted {
            Ok(()) => {
                debug!(id = %request.id, "accepted");
                Ok(planned.accepted())
            }
            Err(PublishError::Full(_)) => {
                Err(no_room("there is no room in the queue", under_a_key))
            }
            Err(error) => Err(self.rejected(request.id, &chain(&error))),
        }
    }

    /// Creates the fact of the key before it submits the request. If the fact exists already, its request is submitted
    /// instead, unless it is accepted.
    async fn submit_under(
        &self,
        key: IdempotencyKey,
        wanted: Wanted,
        planned: Planned,
        trace: &Trace,
    ) -> Result<AcceptedRequest, Problem> {
        let Planned { request, not_before } = planned;
        let new = Asked { key, request, not_before, delay_ms: wanted.time.delay_ms() };
        let earlier = match self.producer.create(&new, trace, Some(&self.no_waiting)).await {
            Ok(Creation::Created) => {
                return self.submit_planned(new.into(), trace, true).await;
            }
            Ok(Creation::AlreadyExists(earlier)) => earlier,
            Err(PublishError::Full(_)) => {
                return Err(no_room("the broker has no room for the Idempotency-Key", true));
            }
            Err(error) => return Err(self.rejected(new.request.id, &chain(&error))),
        };
        let Request { amount, priority, expires_at, .. } = earlier.request;
        let time = Time::of(&earlier);
        if wanted != (Wanted { amount, priority, expires_at, time }) {
            let (count, length) = (amount.count(), amount.length());
            let time = match time {
                Time::Now => String::new(),
                Time::After(delay) => format!(", a delay of {delay:?}"),
                Time::At(time) => format!(", not_before {time}"),
            };
            let until = expires_at.map(|at| format!(", expires_at {at}")).unwrap_or_default();
            let detail = format_args!(
                "this Idempotency-Key belongs to a request with count {count}, length {length} and \
                 priority {priority}{time}{until}"
            );
            return Err(ProblemKind::KeyTaken.because(detail));
        }
        self.submit_again(earlier.into(), trace).await
    }

    /// Submits the earlier request of the key, unless it was accepted: its outcome is unknown.
    async fn submit_again(
        &self,
        planned: Planned,
        trace: &Trace,
    ) -> Result<AcceptedRequest, Problem> {
        let (id, due) = (planned.request.id, planned.due());
        if self.read::<Request>(id).await?.is_some() {
            return Ok(planned.accepted());
        }
        if due.is_some() {
            let waits = schedules::later::<DueRequest>(&self.connection, id).await;
            if waits.map_err(|_| away())?.is_some() {
                return Ok(planned.accepted());
            }
        }
        let request = due.map_or_else(|| planned.request.clone(), |(due, _)| due.request(id));
        // The queue may have confirmed the request to a process that died before it created the fact.
        if self.read::<Stored>(id).await?.is_some() {
            let recorded = record(&self.producer, &request, trace).await;
            let recorded = recorded.map_err(|error| self.rejected(id, &chain(&error)));
            return recorded.map(|()| planned.accepted());
        }
        let age = workqueue::now().duration_since(request.requested_at);
        if is_too_old(age, self.facts_max_age) {
            let detail = format_args!(
                "the request of this Idempotency-Key, of {}, was never accepted, and is too old now; \
                 use another key",
                request.requested_at
            );
            return Err(ProblemKind::KeyExpired.because(detail));
        }
        self.submit_planned(planned, trace, true).await
    }

    /// Cancels a request, unless its strings are stored. The facts then have the result. A request that is still
    /// scheduled (`not_asked`) counts as accepted once it is cancelled.
    ///
    /// # Errors
    ///
    /// If the broker does not confirm it in time. It is then unknown whether the request is cancelled.
    pub(crate) async fn cancel(
        &self,
        id: JobId,
        not_asked: Option<DueRequest>,
    ) -> Result<(), Problem> {
        let _slot = permit(&self.slots, DEADLINE, TOO_MANY).await?;
        let cancelled = cancel(&self.producer, &self.connection, id, not_asked, &self.instance);
        match timeout(DEADLINE, cancelled).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.rejected(id, &chain(&error))),
            Err(_) => {
                let detail = "the broker has not confirmed it in time, so whether the request is \
                              cancelled is unknown; it is safe to try again";
                Err(ProblemKind::BrokerAway.because(detail))
            }
        }
    }

    async fn read<F: Fact>(&self, id: JobId) -> Result<Option<F>, Problem> {
        read_fact(&self.connection, &id.to_string()).await.map_err(|error| match error {
            ReadError::Unknown => away(),
            error @ ReadError::NoFact(_) => self.rejected(id, &chain(&error)),
        })
    }

    fn rejected(&self, id: JobId, reason: &str) -> Problem {
        error!(%id, reason, instance = self.instance, "the broker rejects a request");
        ProblemKind::Refused.because(format_args!(
            "the broker refuses request {id}; its reason is in the log of the gateway"
        ))
    }
}

/// Whether a request of this age is too old to be submitted. No worker handles a request that is older than `max_age`,
/// so a submitted request needs some time left, to wait in its queue.
fn is_too_old(age: SignedDuration, max_age: Duration) -> bool {
    let limit = max_age.saturating_sub((max_age / 4).min(MARGIN));
    age > SignedDuration::try_from(limit).unwrap_or(SignedDuration::MAX)
}

/// The broker has no room, and has not stored the request.
fn no_room(why: &str, under_a_key: bool) -> Problem {
    not_stored(ProblemKind::QueueFull, why, under_a_key)
}

/// This try has stored no request. Under a key an earlier or a concurrent try, here or at another gateway, may have
/// stored one.
pub(crate) fn not_stored(kind: ProblemKind, why: &str, under_a_key: bool) -> Problem {
    if under_a_key {
        let detail = format_args!(
            "{why}. Another request under this Idempotency-Key may have been accepted. It is safe to try again with \
             the same key and the same values"
        );
        kind.because(detail).with(SubmitOutcome::Unknown)
    } else {
        let detail = format_args!("{why}; nothing of this request remains");
        kind.because(detail).with(SubmitOutcome::NotAsked)
    }
}

/// The outcome is unknown.
pub(crate) fn away() -> Problem {
    ProblemKind::BrokerAway.because(AWAY).with(SubmitOutcome::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_try_under_a_key_has_an_unknown_outcome() {
        for kind in [ProblemKind::Busy, ProblemKind::QueueFull] {
            let outcome = |under_a_key| not_stored(kind, TOO_MANY, under_a_key).json();
            assert!(outcome(false).contains(r#""outcome":"not-asked""#), "{}", outcome(false));
            assert!(outcome(true).contains(r#""outcome":"unknown""#), "{}", outcome(true));
        }
    }

    #[test]
    fn old_requests_are_no_longer_submitted() {
        let day = Duration::from_hours(24);
        assert!(!is_too_old(SignedDuration::from_hours(22), day));
        assert!(is_too_old(SignedDuration::from_mins(23 * 60 + 1), day));
        let minute = Duration::from_mins(1);
        assert!(!is_too_old(SignedDuration::from_secs(44), minute));
        assert!(is_too_old(SignedDuration::from_secs(46), minute));
    }
}
