//! Asks the broker for permissions to start jobs, so that all replicas of a service together start no more in a
//! second of the clock than its limit.
//!
//! Where the broker does not answer, nothing is granted, and the jobs wait. Its counters are in its memory: one that
//! is killed forgets them. So nothing is asked in the second in which a connection was made: whatever was granted in
//! that second by a broker that is no more has ended with it.

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

use crate::chain::chain;
use crate::clock::now;
use crate::connection::Connection;
use crate::job::Publication;
use crate::lease::{self, Lease};
use crate::log_once::LogOnce;
use crate::publisher::{PublishError, Publisher};
use crate::queue::Queue;
use crate::running::Running;

/// The header by which a message adds to a counter.
static INCREMENT: HeaderName = HeaderName::from_static("Nats-Incr");

/// The limit of the jobs of one queue that are started in a second.
#[derive(Debug)]
pub(crate) struct RateLimit {
    pub(crate) queue: Queue,
    pub(crate) limit: NonZeroU32,
    publisher: Arc<Publisher>,
    connection: Connection,
    abandoned: CancellationToken,
    /// The last second in which there was no more to be had.
    used_up: AtomicI64,
    held_back: AtomicBool,
    logged: Mutex<LogOnce>,
}

impl RateLimit {
    pub(crate) fn new(queue: Queue, limit: NonZeroU32, running: &Running) -> Self {
        Self {
            queue,
            limit,
            publisher: running.producer.rates(),
            connection: running.connection.clone(),
            abandoned: running.abandoned.clone(),
            used_up: AtomicI64::new(i64::MIN),
            held_back: AtomicBool::new(false),
            logged: Mutex::default(),
        }
    }

    /// Asks for as many permissions as are `wanted` once they may be asked for, and gives those that are granted, if
    /// any. Gives nothing where none is wanted any more.
    pub(crate) async fn ask(&self, wanted: impl Fn() -> usize) -> Option<Lease> {
        self.abandoned.run_until_cancelled(self.opening()).await?;
        let asked = u64::try_from(wanted()).ok().filter(|asked| *asked > 0)?;
        let second = now().as_second();
        let times = self.connection.times_connected();
        let total = self.abandoned.run_until_cancelled(self.add(asked, second)).await?;
        let lease = match total {
            // An answer from before a connection was lost may come after it: see the head of this file.
            Ok(total) if self.connection.times_connected() == times => {
                Lease::granted(second, asked, total, self.limit)
            }
            Ok(_) => Lease::default(),
            Err(ref error) => {
                self.note(error);
                Lease::default()
            }
        };
        if lease.left(second) < asked {
            // The broker speaks of the second of the question. Without an answer it is not asked again in this one.
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

    /// Waits until there may be permissions to be had.
    async fn opening(&self) {
        loop {
            let since = self.connection.connected_since().await;
            let now = now();
            let second = now.as_second();
            let connected =
                now.saturating_sub(since.elapsed()).map_or(second, Timestamp::as_second);
            if second != self.used_up.load(Ordering::Relaxed) && second > connected {
                return;
            }
            let passed = Duration::from_nanos(now.subsec_nanosecond().unsigned_abs().into());
            sleep(Duration::from_secs(1).saturating_sub(passed)).await;
        }
    }

    /// Adds to the counter of this second, and gives its total.
    async fn add(&self, count: u64, second: i64) -> Result<u64, PublishError> {
        let mut headers = HeaderMap::new();
        headers.insert(INCREMENT.clone(), format!("+{count}"));
        let subject = lease::subject(self.queue, second);
        self.publisher.count(Publication { subject, headers, body: Bytes::new() }).await
    }

    /// The publisher tells what passes; this one does not, until somebody mends it.
    fn note(&self, error: &PublishError) {
        let mut logged = self.logged.lock().expect("nothing panics while it holds this lock");
        let reason = chain(error);
        if !error.is_transient() && logged.is_first(&reason) {
            let (queue, stream) = (self.queue.stream, lease::STREAM);
            warn!(queue, stream, reason, "cannot ask for permission to start jobs; they wait");
        }
    }
}
