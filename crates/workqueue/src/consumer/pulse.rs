//! A beat that all who are at work hear.
//!
//! Nearly every message is done long before either a beat or the end of a drain is due. So it has no timer
//! of its own, and only one place among those who wait: for the next beat, which comes at the end as well.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Beats until it is dropped, and a last time when there is no time left.
pub(crate) struct Pulse {
    beat: Arc<Notify>,
    abandon: CancellationToken,
    _beating: AbortOnDropHandle<()>,
}

impl Pulse {
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
        Self { beat, abandon: abandon.clone(), _beating: beating }
    }

    /// Waits for the next beat, or for `work` if it is done before.
    pub(crate) async fn next<F: Future>(&self, work: Pin<&mut F>) -> Heard<F::Output> {
        // Before the look at the token, so that the last beat is heard.
        let beat = self.beat.notified();
        if self.abandon.is_cancelled() {
            return Heard::End;
        }
        tokio::select! {
            biased;
            done = work => Heard::Done(done),
            () = beat => if self.abandon.is_cancelled() { Heard::End } else { Heard::Beat },
        }
    }
}

/// What comes first.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard<T> {
    /// The work is done.
    Done(T),
    /// It is time to say that somebody is at work.
    Beat,
    /// There is no time left.
    End,
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::pin::pin;

    use super::*;

    const EVERY: Duration = Duration::from_millis(1);
    const NEVER: Duration = Duration::from_hours(1);

    #[tokio::test]
    async fn work_that_is_done_at_once_hears_no_beat() {
        let pulse = Pulse::start(NEVER, &CancellationToken::new());
        assert_eq!(pulse.next(pin!(ready(1))).await, Heard::Done(1));
    }

    #[tokio::test]
    async fn long_work_hears_one_beat_after_another() {
        let pulse = Pulse::start(EVERY, &CancellationToken::new());
        let mut work = pin!(pending::<()>());
        for _ in 0..3 {
            assert_eq!(pulse.next(work.as_mut()).await, Heard::Beat);
        }
    }

    #[tokio::test]
    async fn all_work_hears_the_end_whenever_it_began() {
        let abandon = CancellationToken::new();
        let pulse = Pulse::start(NEVER, &abandon);
        let mut work = pin!(pending::<()>());
        let (early, ()) = tokio::join!(pulse.next(work.as_mut()), async { abandon.cancel() });
        assert_eq!(early, Heard::End);
        assert_eq!(pulse.next(work.as_mut()).await, Heard::End);
    }
}
