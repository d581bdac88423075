//! Asks the broker for permits to start jobs, so that all replicas of a service together start no more in a
//! second of the clock than its limit.
//!
//! If the broker does not answer, nothing is granted, and the jobs wait. The counters are in the broker's memory, and
//! a killed broker forgets them. So a replica asks for nothing in the second in which it connected: the permits
//! that an earlier broker granted in that second end with it.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{HeaderMap, HeaderName};
use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::now;
use crate::connection::Connection;
use crate::error_chain::chain;
use crate::handler::Failure;
use crate::job::Publication;
use crate::lease::{self, Lease};
use crate::log_once::LogOnce;
use crate::producer::BrokerTarget;
use crate::publisher::{PublishError, Publisher};
use crate::queue::{Lane, Queue};
use crate::running::Running;
use crate::topology::Topology;

/// The header by which a message adds to a counter.
static INCREMENT: HeaderName = HeaderName::from_static("Nats-Incr");

/// The counters on the broker.
#[derive(Debug)]
struct Counters {
    publisher: Arc<Publisher>,
    connection: Connection,
}

impl Counters {
    /// Whether a replica may ask for permits at this time.
    async fn may_be_asked(&self, now: Timestamp) -> bool {
        let since = self.connection.connected_since().await;
        let connected = now.saturating_sub(since.elapsed());
        now.as_second() > connected.map_or(now.as_second(), Timestamp::as_second)
    }

    /// Adds to a counter, and returns its total. `None` if the total may be that of an earlier broker.
    async fn add(&self, subject: String, count: u64) -> Result<Option<u64>, PublishError> {
        let mut headers = HeaderMap::new();
        headers.insert(INCREMENT.clone(), format!("+{count}"));
        let times = self.connection.times_connected();
        let total = self.publisher.count(Publication { subject, headers, body: Bytes::new() });
        let total = total.await?;
        // An answer may arrive after its connection was lost: see the head of this file.
        Ok((self.connection.times_connected() == times).then_some(total))
    }

    /// Adds one, and returns the number of seconds until its turn. If that is unknown, the turn is in the next second.
    async fn turn(&self, subject: String, limit: NonZeroU32) -> Result<u64, PublishError> {
        match self.add(subject, 1).await {
            Ok(total) => Ok(total.map_or(1, |total| lease::turn(total, limit))),
            Err(error) if error.is_transient() => Ok(1),
            Err(error) => Err(error),
        }
    }
}

/// The delay within their second after which jobs ask, for each step of lower priority.
const STEP: Duration = Duration::from_millis(100);

/// Asks for one permit under a key, for a job of this lane, see
/// [`Context::permit`](crate::Context::permit).
pub(crate) async fn permit(
    broker: &BrokerTarget,
    lane: Lane,
    key: &str,
    limit: NonZeroU32,
) -> Result<(), Failure> {
    let needs = || Topology::default().with_rates();
    let publisher = broker.publisher(lease::STREAM, needs, None).await?;
    let counters = Counters { publisher, connection: broker.connection.clone() };
    let (asked_at, turn) = loop {
        let asked_at = now();
        if !counters.may_be_asked(asked_at).await {
            break (asked_at, 1);
        }
        let subject = lease::subject_of_key(lane.queue, key, asked_at.as_second());
        let of_lane = format!("{subject}-{}", lane.priority);
        match counters.turn(subject, limit).await? {
            0 if now().as_second() == asked_at.as_second() => return Ok(()),
            // The permit is for a second that has passed.
            0 => {}
            // The jobs of each priority are spread separately, so that a few jobs do not wait as long as many.
            _ if lane.queue.has_priorities() => {
                break (asked_at, 1 + counters.turn(of_lane, limit).await?);
            }
            turn => break (asked_at, turn),
        }
    };
    let steps = if lane.queue.has_priorities() { lane.priority as u32 } else { 0 };
    let wait = Duration::from_secs(turn).saturating_sub(passed(asked_at)) + STEP * steps;
    let reason = format!("the limit of {limit} a second is used up for {key}");
    Err(Failure::RetryAfter(wait, reason.into()))
}

/// How much of its second has passed.
fn passed(now: Timestamp) -> Duration {
    Duration::from_nanos(now.subsec_nanosecond().unsigned_abs().into())
}

/// The limit of the jobs of one queue that are started in a second.
#[derive(Debug)]
pub(crate) struct RateLimit {
    pub(crate) queue: Queue,
    pub(crate) limit: NonZeroU32,
    counters: Counters,
    abandoned: CancellationToken,
    /// The last second in which no permit was left.
    used_up: AtomicI64,
    held_back: AtomicBool,
    logged: Mutex<LogOnce>,
}

impl RateLimit {
    pub(crate) fn new(queue: Queue, limit: NonZeroU32, running: &Running) -> Self {
        Self {
            queue,
            limit,
            counters: Counters {
                publisher: running.producer.rates(),
                connection: running.connection.clone(),
            },
            abandoned: running.abandoned.clone(),
            used_up: AtomicI64::new(i64::MIN),
            held_back: AtomicBool::new(false),
            logged: Mutex::default(),
        }
    }

    /// Asks for as many permits as are `wanted`, once it may ask, and returns the granted ones. `None` if none is
    /// wanted any more, or the service has no time left.
    pub(crate) async fn ask(&self, wanted: impl Fn() -> usize) -> Option<Lease> {
        self.abandoned.run_until_cancelled(self.opening()).await?;
        let asked = u64::try_from(wanted()).ok().filter(|asked| *asked > 0)?;
        let second = now().as_second();
        let adding = self.counters.add(lease::subject(self.queue, second), asked);
        let total = self.abandoned.run_until_cancelled(adding).await?;
        let lease = match total {
            Ok(Some(total)) => Lease::granted(second, asked, total, self.limit),
            Ok(None) => Lease::default(),
            Err(ref error) => {
                self.note(error);
                Lease::default()
            }
        };
        if lease.left(second) < asked {
            // The answer is for the second of the request. Without an answer, there is no other request in this second.
            let used_up = if total.is_ok() { second } else { now().as_second() };
            self.used_up.store(used_up, Ordering::Relaxed);
            if total.is_ok() && !self.held_back.swap(true, Ordering::Relaxed) {
                let (queue, limit) = (self.queue.stream, self.limit);
                info!(queue, limit, "the rate limit holds jobs back");
            }
        }
        Some(lease)
    }

    /// Whether the service has no time left to wait for anything.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.is_cancelled()
    }

    /// Waits until permits may be available.
    async fn opening(&self) {
        loop {
            self.counters.connection.connected_since().await;
            let now = now();
            let is_used_up = now.as_second() == self.used_up.load(Ordering::Relaxed);
            if !is_used_up && self.counters.may_be_asked(now).await {
                return;
            }
            sleep(Duration::from_secs(1).saturating_sub(passed(now))).await;
        }
    }

    /// The publisher logs the errors that pass. These do not, until an operator fixes the cause.
    fn note(&self, error: &PublishError) {
        let mut logged = self.logged.lock().expect("nothing panics while it holds this lock");
        let reason = chain(error);
        if !error.is_transient() && logged.is_first(&reason) {
            let (queue, stream) = (self.queue.stream, lease::STREAM);
            warn!(queue, stream, reason, "cannot ask for permits to start jobs; they wait");
        }
    }
}
