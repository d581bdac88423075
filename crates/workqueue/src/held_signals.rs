use nix::sys::signal::{SigSet, SigmaskHow, Signal};

/// The signals that ask a process to stop.
const STOP: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// Runs this while the thread blocks the stop signals. A signal that arrives meanwhile is delivered afterwards, or to
/// another thread. A thread that is started here never receives one.
pub(crate) fn while_held<T>(what: impl FnOnce() -> T) -> T {
    const VALID: &str = "only a mask that makes no sense is refused";

    let before = SigSet::from_iter(STOP).thread_swap_mask(SigmaskHow::SIG_BLOCK).expect(VALID);
    let done = what();
    before.thread_set_mask().expect(VALID);
    done
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sys::signal::raise;
    use tokio::signal::unix::{SignalKind, signal};
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn signal_before_its_handler_is_not_lost() {
        let mut terminate = while_held(|| {
            raise(Signal::SIGTERM).unwrap();
            signal(SignalKind::terminate()).unwrap()
        });
        let heard = timeout(Duration::from_mins(1), terminate.recv()).await;
        assert_eq!(heard, Ok(Some(())));
    }
}
