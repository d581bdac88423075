//! What became of a request, as the facts and the dead letters say.

use std::pin::pin;
use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use contract::facts::Received;
use contract::queues::{ACKNOWLEDGMENTS, Acknowledgment, Queue, REQUESTS, RESPONSES, Request};
use contract::{RequestId, Strings, dead_letters};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::error;
use utoipa::ToSchema;
use workqueue::{Backoff, Connection, Facts, ReadError};

use super::problem::{Kind, Problem};
use super::wait::Waiting;
use crate::dead::{dead_letter, reason};

/// How long one look at the broker may take.
pub(super) const DEADLINE: Duration = Duration::from_millis(900);

/// The first ceiling of the time between two looks of somebody who waits, and the highest.
const LOOK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Status {
    /// It is accepted, and its strings are still to be made or stored.
    Queued,
    /// Its strings are stored.
    Stored,
    /// Its strings are stored, and marked as received with the same values. This is the end.
    Received,
    /// It was given up. Somebody may replay it.
    DeadLettered,
}

/// A request, and how far it has come. What has not happened yet is not there.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RequestStatus)]
pub(crate) struct State {
    /// The id of the request.
    #[schema(value_type = super::openapi::Id)]
    pub(super) id: RequestId,
    pub(super) status: Status,
    /// How many strings were asked for.
    count: u32,
    /// How many characters each of them has.
    length: u32,
    /// When it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    requested_at: Option<Timestamp>,
    /// The instance that asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    requested_by: Option<String>,
    /// The strings, once they are stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>, nullable = false)]
    values: Option<Strings>,
    /// When the strings were made.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    generated_at: Option<Timestamp>,
    /// The instance that made them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    generated_by: Option<String>,
    /// When they were stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    stored_at: Option<Timestamp>,
    /// The instance that stored them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    stored_by: Option<String>,
    /// When they were marked as received.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    received_at: Option<Timestamp>,
    /// The instance that marked them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    received_by: Option<String>,
    /// Why it was given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    dead_letter: Option<DeadLetter>,
}

/// The verdict on a message that was given up.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadLetter {
    /// The queue that it was in.
    queue: &'static str,
    /// Why it was given up, for people.
    reason: String,
    /// When it was given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    at: Option<Timestamp>,
    /// The instance that gave it up.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    by: Option<String>,
    /// How many times it was delivered.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    attempts: Option<u64>,
}

impl DeadLetter {
    fn new(queue: Queue, dead: &StreamMessage) -> Self {
        let header = |name: &str| dead.headers.get(name).map(async_nats::HeaderValue::as_str);
        Self {
            queue: queue.stream,
            reason: reason(dead).to_owned(),
            at: header(dead_letters::AT).and_then(|at| at.parse().ok()),
            by: header(dead_letters::BY).map(str::to_owned),
            attempts: header(dead_letters::ATTEMPTS).and_then(|number| number.parse().ok()),
        }
    }
}

/// Reads what became of requests.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) connection: Connection,
    pub(super) requested: Facts,
    pub(super) stored: Facts,
    pub(super) received: Facts,
    /// How many may be reading at a time, how many lists, and how many may be waiting.
    pub(super) readers: Semaphore,
    pub(super) lists: Semaphore,
    pub(super) places: Semaphore,
}

impl Reader {
    /// What became of this request.
    pub(super) async fn state(&self, id: RequestId) -> Result<State, Problem> {
        let read = async {
            let _slot = self.readers.acquire().await.expect("nobody closes it");
            self.read(id).await
        };
        let read = async { timeout(DEADLINE, read).await.unwrap_or(Err(ReadError::Unknown)) };
        match self.judge(read).await? {
            Some(state) => Ok(state),
            None => Err(Kind::NoRequest.because(format_args!("nobody has asked for {id}"))),
        }
    }

    /// The same, once its strings are stored, or it is given up, or `time` is over, or `closing`.
    pub(super) async fn wait(
        &self,
        id: RequestId,
        time: Duration,
        waiting: &Waiting,
        closing: &CancellationToken,
    ) -> Result<State, Problem> {
        let end = Instant::now() + time;
        let Ok(_place) = self.places.try_acquire() else {
            return Err(Kind::Busy.because("too many wait at this moment; ask without wait"));
        };
        let place = waiting.place(id);
        let mut backoff = Backoff::new(LOOK.0, LOOK.1);
        loop {
            // Before looking, so that nothing is missed between that and waiting.
            let mut rings = pin!(place.rings.notified());
            rings.as_mut().enable();
            let state = self.state(id).await?;
            if state.status != Status::Queued || Instant::now() >= end || closing.is_cancelled() {
                return Ok(state);
            }
            let next = async {
                tokio::select! {
                    () = rings => {}
                    () = backoff.wait() => {}
                    () = closing.cancelled() => {}
                }
            };
            // Over is over: then it looks for the last time.
            let _ = timeout_at(end, next).await;
        }
    }

    /// What was read, or what is wrong where it was not.
    pub(super) async fn judge<T>(
        &self,
        read: impl Future<Output = Result<T, ReadError>>,
    ) -> Result<T, Problem> {
        let away = || Kind::BrokerAway.because("the broker gives no answer; try again");
        if !self.connection.is_connected() {
            return Err(away());
        }
        match read.await {
            Ok(read) => Ok(read),
            Err(ReadError::Unknown) => Err(away()),
            Err(ReadError::NoFact(reason)) => {
                error!(reason, "what the API is to show cannot be read");
                Err(Kind::Refused.because(format_args!("it cannot be read: {reason}")))
            }
        }
    }

    /// Reads from the end to the start: whoever finds a step finds all that come before it.
    async fn read(&self, id: RequestId) -> Result<Option<State>, ReadError> {
        let received: Option<Received> = self.received.read(id).await?;
        let stored: Option<Acknowledgment> = self.stored.read(id).await?;
        let requested: Option<Request> = self.requested.read(id).await?;
        let dead_letter = match &received {
            Some(_) => None,
            None => self.dead_letter(id, stored.is_some()).await?,
        };
        let status = status(received.is_some(), stored.is_some(), dead_letter.is_some());
        let values = stored.as_ref().map(|stored| &stored.values);
        let values = values.or(received.as_ref().map(|received| &received.values));
        let (count, length) = match (&requested, values) {
            (Some(request), _) => (request.amount.count(), request.amount.length()),
            (None, Some(values)) => shape(values),
            // A message that somebody else has published, or nothing at all.
            (None, None) => return Ok(None),
        };
        let requested_at = requested.as_ref().map(|request| request.requested_at);
        let requested_at = requested_at.or(stored.as_ref().map(|stored| stored.requested_at));
        let values = values.cloned();
        let (generated, stored) = match stored {
            Some(stored) => (
                Some((stored.generated_at, stored.generator)),
                Some((stored.stored_at, stored.requestor)),
            ),
            None => (None, None),
        };
        let (generated_at, generated_by) = generated.unzip();
        let (stored_at, stored_by) = stored.unzip();
        let (received_at, received_by) =
            received.map(|received| (received.received_at, received.marked_by)).unzip();
        Ok(Some(State {
            id,
            status,
            count,
            length,
            requested_at,
            requested_by: requested.map(|request| request.requestor),
            values,
            generated_at,
            generated_by,
            stored_at,
            stored_by,
            received_at,
            received_by,
            dead_letter,
        }))
    }

    /// The dead letter that holds this request up, which is one of a step that is still to be done.
    pub(super) async fn dead_letter(
        &self,
        id: RequestId,
        stored: bool,
    ) -> Result<Option<DeadLetter>, ReadError> {
        let queues = if stored { &[ACKNOWLEDGMENTS][..] } else { &[RESPONSES, REQUESTS] };
        for queue in queues {
            if let Some(dead) = dead_letter(&self.connection, *queue, id).await? {
                return Ok(Some(DeadLetter::new(*queue, &dead)));
            }
        }
        Ok(None)
    }
}

pub(super) fn status(received: bool, stored: bool, dead: bool) -> Status {
    match (received, stored, dead) {
        (true, ..) => Status::Received,
        (_, _, true) => Status::DeadLettered,
        (_, true, _) => Status::Stored,
        _ => Status::Queued,
    }
}

fn shape(values: &Strings) -> (u32, u32) {
    let values = values.as_slice();
    let number = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    (number(values.len()), number(values.first().map_or(0, String::len)))
}
