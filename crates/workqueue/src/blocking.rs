//! Detects a handler that blocks its thread.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use crate::delivery::Delivery;

/// The shortest interval between two log lines: a job that blocks the only thread delays all others as well.
const INTERVAL: Duration = Duration::from_secs(1);

/// Whether a job that took this long missed two heartbeats or more, because its thread could not send them.
pub(crate) fn is_late(handled: Duration, every: Duration, heartbeats: u32) -> bool {
    handled >= every.saturating_mul(heartbeats.saturating_add(2))
}

/// When it was logged last.
#[derive(Debug, Default)]
pub(crate) struct Blocking(Mutex<Option<Instant>>);

impl Blocking {
    /// Logs that this job missed heartbeats, and the remedy.
    pub(crate) fn warn(&self, delivery: &Delivery, handled: Duration) {
        let mut last = self.0.lock().expect("nothing panics while it holds this lock");
        if last.is_some_and(|last| last.elapsed() < INTERVAL) {
            return;
        }
        warn!(
            queue = delivery.queue().stream,
            id = delivery.key(),
            trace = delivery.trace_id(),
            ?handled,
            "heartbeats were missed, so jobs in flight may be delivered again: a handler blocks its thread, \
             or the process was paused. Move blocking work to tokio::task::spawn_blocking"
        );
        *last = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_is_late_once_two_heartbeats_are_missing() {
        let second = Duration::from_secs(1);
        for (millis, heartbeats, late) in [
            (0, 0, false),
            (1999, 0, false),
            (2000, 0, true),
            (2000, 1, false),
            (5000, 4, false),
            (9000, 4, true),
        ] {
            let handled = Duration::from_millis(millis);
            assert_eq!(is_late(handled, second, heartbeats), late, "{millis} {heartbeats}");
        }
    }
}
