//! Notices a handler that blocks its thread.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

/// Does this work for a job, and logs where it keeps its thread for `limit` or longer, so that heartbeats
/// are missed: then this job, and with a runtime of one thread all others, may be delivered again.
pub(crate) async fn noticing_blocks<F: Future>(
    mut work: Pin<&mut F>,
    limit: Duration,
    queue: &'static str,
    id: &str,
) -> F::Output {
    poll_fn(|cx| {
        let started = Instant::now();
        let polled = work.as_mut().poll(cx);
        let blocked = started.elapsed();
        if blocked >= limit {
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

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::{Arc, Mutex};

    use super::*;

    const EVERY: Duration = Duration::from_millis(1);

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
        // As a handler does that does not await.
        let work = pin!(async { std::thread::sleep(100 * EVERY) });
        noticing_blocks(work, EVERY, "IMAGES", "some-id").await;
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        for words in ["IMAGES", "some-id", "tokio::task::spawn_blocking"] {
            assert!(log.contains(words), "{log}");
        }
    }
}
