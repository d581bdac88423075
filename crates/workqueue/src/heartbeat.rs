//! The heartbeats of jobs that are being handled.
//!
//! Nearly every job is done long before either a heartbeat or the end of a drain is due. So a job has no
//! timer of its own, and only one place among those who wait: for the next beat, which comes at the end
//! of a drain as well.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

/// Beats until it is dropped, and a last time when a drain has no time left.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    beat: Arc<Notify>,
    every: Duration,
    abandon: CancellationToken,
    _beating: AbortOnDropHandle<()>,
}

impl Heartbeat {
    /// Begins to beat, once each `every`, until `abandon`.
    pub(crate) fn start(every: Duration, abandon: &CancellationToken) -> Self {
        let beat = Arc::new(Notify::new());
        let beating = {
            let (beat, abandon) = (Arc::clone(&beat), abandon.clone());
            async move {
                while abandon.run_until_cancelled(sleep(every)).await.is_some() {
                    beat.notify_waiters();
                }
                beat.notify_waiters();
            }
        };
        let beating = AbortOnDropHandle::new(tokio::spawn(beating));
        Self { beat, every, abandon: abandon.clone(), _beating: beating }
    }

    /// Waits for the next beat, or for `work` if it is done before.
    pub(crate) async fn next<F: Future>(&self, work: Pin<&mut F>) -> Next<F::Output> {
        // Before the look at the token, so that the last beat is heard.
        let beat = self.beat.notified();
        if self.abandon.is_cancelled() {
            return Next::Abandon;
        }
        tokio::select! {
            biased;
            done = work => Next::Done(done),
            () = beat => if self.abandon.is_cancelled() { Next::Abandon } else { Next::Beat },
        }
    }
}

/// Does this work for a job, and logs where it keeps its thread for so long that heartbeats are missed:
/// then this job, and with a runtime of one thread all others, may be delivered again.
pub(crate) async fn noticing_blocks<F: Future>(
    mut work: Pin<&mut F>,
    heartbeat: &Heartbeat,
    queue: &'static str,
    id: &str,
) -> F::Output {
    poll_fn(|cx| {
        let started = Instant::now();
        let polled = work.as_mut().poll(cx);
        let blocked = started.elapsed();
        if blocked >= heartbeat.every {
            warn!(
                queue,
                id,
                ?blocked,
                "the handler blocks its thread, or the process was paused: heartbeats were missed, and the \
                 job may be delivered again. Move blocking work to tokio::task::spawn_blocking"
            );
        }
        polled
    })
    .await
}

/// What comes first.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<T> {
    /// The work is done.
    Done(T),
    /// It is time for a heartbeat.
    Beat,
    /// The drain has no time left.
    Abandon,
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::pin::pin;
    use std::sync::Mutex;

    use super::*;

    const EVERY: Duration = Duration::from_millis(1);
    const NEVER: Duration = Duration::from_hours(1);

    #[tokio::test]
    async fn work_done_at_once_needs_no_heartbeat() {
        let heartbeat = Heartbeat::start(NEVER, &CancellationToken::new());
        assert_eq!(heartbeat.next(pin!(ready(1))).await, Next::Done(1));
    }

    #[tokio::test]
    async fn long_work_has_one_heartbeat_after_another() {
        let heartbeat = Heartbeat::start(EVERY, &CancellationToken::new());
        let mut work = pin!(pending::<()>());
        for _ in 0..3 {
            assert_eq!(heartbeat.next(work.as_mut()).await, Next::Beat);
        }
    }

    #[tokio::test]
    async fn all_work_is_abandoned_whenever_it_began() {
        let abandon = CancellationToken::new();
        let heartbeat = Heartbeat::start(NEVER, &abandon);
        let mut work = pin!(pending::<()>());
        let (early, ()) = tokio::join!(heartbeat.next(work.as_mut()), async { abandon.cancel() });
        assert_eq!(early, Next::Abandon);
        assert_eq!(heartbeat.next(work.as_mut()).await, Next::Abandon);
    }

    /// Keeps what is logged.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn blocking_handler_is_logged_with_its_cure() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let _logging = tracing::subscriber::set_default(subscriber);
        let heartbeat = Heartbeat::start(EVERY, &CancellationToken::new());
        // As a handler does that does not await.
        let work = pin!(async { std::thread::sleep(100 * EVERY) });
        noticing_blocks(work, &heartbeat, "IMAGES", "some-id").await;
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        for words in ["IMAGES", "some-id", "tokio::task::spawn_blocking"] {
            assert!(log.contains(words), "{log}");
        }
    }
}
