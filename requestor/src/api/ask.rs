//! Asks for what somebody outside wants, once, and says what came of it within a second.

use std::time::Duration;

use contract::facts::Asked;
use contract::headers::Trace;
use contract::queues::{Acknowledgment, Message, Request};
use contract::{Amount, IdempotencyKey, RequestId};
use jiff::SignedDuration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, error};
use workqueue::{Backoff, Connection, Creation, Facts, PublishError, Publisher, ReadError, Refusal};

use super::input::Asking;
use super::problem::{Kind, Outcome, Problem};

/// How long asking may take. Whoever asks is told within a second, also when the broker is away.
const DEADLINE: Duration = Duration::from_millis(800);

/// The first ceiling of the time between two tries to publish, and the highest.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));

/// How long before its time is over a request is asked no more, at the most.
const MARGIN: Duration = Duration::from_hours(1);

const AWAY: &str = "the broker has not confirmed it in time, so whether the request got through is \
                    unknown: it may be carried out all the same. With the same Idempotency-Key it is \
                    safe to try again; without one, another try may ask for it twice";

/// Asks for others. It has slots and publishers of its own: what waits for an answer here keeps
/// nothing else of the requestor from its work.
#[derive(Debug)]
pub(super) struct Asker {
    pub(super) connection: Connection,
    pub(super) requests: Publisher,
    pub(super) idempotency: Facts,
    pub(super) requested: Facts,
    pub(super) stored: Facts,
    pub(super) instance: String,
    /// How long the promises hold from the moment of asking.
    pub(super) facts_max_age: Duration,
    /// How many may be asking at a time.
    pub(super) slots: Semaphore,
}

impl Asker {
    /// Asks, and gives the request that is accepted: under a key always the same one.
    ///
    /// # Errors
    ///
    /// Says whether the request may be carried out all the same.
    pub(super) async fn ask(&self, asking: Asking) -> Result<Request, Problem> {
        let deadline = Instant::now() + DEADLINE;
        // Without a connection what is published would be kept, and sent once there is one.
        if !self.connection.is_connected() {
            return Err(away());
        }
        let Ok(slot) = timeout_at(deadline, self.slots.acquire()).await else {
            let detail = "too many ask at this moment; nothing of this try remains";
            return Err(Kind::Busy.because(detail).with(Outcome::NotAsked));
        };
        let _slot = slot.expect("nobody closes it");
        let Asking { amount, key, trace } = asking;
        let asked = async {
            match key {
                Some(key) => self.ask_under(key, amount, &trace).await,
                None => self.ask_for(self.request(amount), &trace, no_room).await,
            }
        };
        // What is given up here is published no more, but the last try may be on its way.
        timeout_at(deadline, asked).await.unwrap_or_else(|_| Err(away()))
    }

    fn request(&self, amount: Amount) -> Request {
        Request {
            id: RequestId::new(),
            amount,
            requestor: self.instance.clone(),
            requested_at: workqueue::now(),
        }
    }

    /// Asks for this, and says so with `no_room` where the queue is full.
    async fn ask_for(
        &self,
        request: Request,
        trace: &Trace,
        no_room: fn() -> Problem,
    ) -> Result<Request, Problem> {
        match self.accept(&request, trace).await {
            Err(Refused::Full) => Err(no_room()),
            result => self.judge(request, result),
        }
    }

    /// Writes down what is asked for under a key before it asks. Where that is there already, it is
    /// what counts: it was accepted, or is now.
    async fn ask_under(
        &self,
        key: IdempotencyKey,
        amount: Amount,
        trace: &Trace,
    ) -> Result<Request, Problem> {
        let new = Asked { key, request: self.request(amount) };
        let created = self.idempotency.create_unless_full(&new).await;
        let standing = match created.map_err(|refusal| self.refused(new.request.id, &refusal))? {
            None => return Err(no_room_for_the_key()),
            Some(Creation::Created) => {
                return self.ask_for(new.request, trace, no_room_under_a_key).await;
            }
            Some(Creation::Stands(standing)) => standing.request,
        };
        if standing.amount != amount {
            let (count, length) = (standing.amount.count(), standing.amount.length());
            let detail = format_args!(
                "under this Idempotency-Key {count} strings of {length} characters were asked for"
            );
            return Err(Kind::KeyTaken.because(detail));
        }
        self.ask_again(standing, trace).await
    }

    /// Asks for what was asked before, unless it was accepted. Nobody knows how far that came.
    async fn ask_again(&self, request: Request, trace: &Trace) -> Result<Request, Problem> {
        let id = request.id;
        if self.read::<Request>(&self.requested, id).await?.is_some() {
            return Ok(request);
        }
        // Its queue may have confirmed it to somebody who died before it could be written down.
        if self.read::<Acknowledgment>(&self.stored, id).await?.is_some() {
            let result = self.write_down(&request).await;
            return self.judge(request, result);
        }
        let age = workqueue::now().duration_since(request.requested_at);
        if is_too_old(age, self.facts_max_age) {
            let detail = format_args!(
                "what was asked under this Idempotency-Key at {} was never accepted, and is too old \
                 to be worked on; ask under another",
                request.requested_at
            );
            return Err(Kind::KeyExpired.because(detail));
        }
        self.ask_for(request, trace, no_room_under_a_key).await
    }

    /// The order that makes a request accepted: published, confirmed, written down.
    async fn accept(&self, request: &Request, trace: &Trace) -> Result<(), Refused> {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut unknown = false;
        loop {
            match self.requests.try_publish(request.publication(trace)).await {
                Ok(_) => break,
                // An earlier try may have found room.
                Err(PublishError::Full(_)) if unknown => {}
                Err(PublishError::Full(_)) => return Err(Refused::Full),
                Err(PublishError::Unconfirmed(_)) => unknown = true,
                Err(PublishError::TooLarge(reason)) => {
                    return Err(Refused::ByBroker(Refusal::TooLarge(reason)));
                }
                Err(PublishError::Refused(reason)) => {
                    return Err(Refused::ByBroker(Refusal::Refused(reason)));
                }
                Err(error @ PublishError::Exists) => {
                    return Err(Refused::ByBroker(Refusal::Refused(error.to_string())));
                }
            }
            backoff.wait().await;
        }
        self.write_down(request).await
    }

    async fn write_down(&self, request: &Request) -> Result<(), Refused> {
        self.requested.create(request).await.map(drop).map_err(Refused::ByBroker)
    }

    fn judge(&self, request: Request, result: Result<(), Refused>) -> Result<Request, Problem> {
        match result {
            Ok(()) => {
                debug!(id = %request.id, "accepted");
                Ok(request)
            }
            Err(Refused::Full) => Err(away()),
            Err(Refused::ByBroker(refusal)) => Err(self.refused(request.id, &refusal)),
        }
    }

    fn refused(&self, id: RequestId, refusal: &Refusal) -> Problem {
        error!(%id, %refusal, instance = self.instance, "the broker refuses what the API asks for");
        Kind::Refused.because("the broker refuses it; its reason is in the log of the requestor")
    }

    async fn read<F: contract::facts::Fact>(
        &self,
        facts: &Facts,
        id: RequestId,
    ) -> Result<Option<F>, Problem> {
        facts.read(id).await.map_err(|error| match error {
            ReadError::Unknown => away(),
            ReadError::NoFact(reason) => self.refused(id, &Refusal::Refused(reason)),
        })
    }
}

/// Why a request is not accepted.
enum Refused {
    /// There is no room, and nothing was stored.
    Full,
    /// The broker will not have it.
    ByBroker(Refusal),
}

/// Whether a request of this age is too old to be asked now. What is older than `max_age` is not worked
/// on, and it has to come to its end before, however long its queue is.
fn is_too_old(age: SignedDuration, max_age: Duration) -> bool {
    let limit = max_age.saturating_sub((max_age / 4).min(MARGIN));
    age > SignedDuration::try_from(limit).unwrap_or(SignedDuration::MAX)
}

/// Nothing was stored anywhere.
fn no_room() -> Problem {
    let detail = "there is no room in the queue; nothing of this try remains";
    Kind::QueueFull.because(detail).with(Outcome::NotAsked)
}

/// Not even the key was written down.
fn no_room_for_the_key() -> Problem {
    let detail = "the broker has no room for the Idempotency-Key; nothing of this try remains";
    Kind::QueueFull.because(detail).with(Outcome::NotAsked)
}

/// The key stands, and whoever else asks under it, here or through another requestor, may find room.
fn no_room_under_a_key() -> Problem {
    let detail = "there is no room in the queue for this try; whether another try under this \
                  Idempotency-Key got through is unknown. The key keeps its id, its count and its \
                  length: it is safe to try again with the same";
    Kind::QueueFull.because(detail).with(Outcome::Unknown)
}

/// Nobody knows what came of it.
pub(super) fn away() -> Problem {
    Kind::BrokerAway.because(AWAY).with(Outcome::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_too_old_before_it_is_worked_on_is_not_asked() {
        let day = Duration::from_hours(24);
        assert!(!is_too_old(SignedDuration::from_hours(22), day));
        assert!(is_too_old(SignedDuration::from_mins(23 * 60 + 1), day));
        let minute = Duration::from_mins(1);
        assert!(!is_too_old(SignedDuration::from_secs(44), minute));
        assert!(is_too_old(SignedDuration::from_secs(46), minute));
    }
}
