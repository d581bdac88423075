use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tokio::task::JoinSet;

/// A task ended although it should run as long as the service.
#[derive(Debug, thiserror::Error)]
#[error("the background task '{task}' has ended: {reason}")]
pub struct Ended {
    task: &'static str,
    reason: String,
}

impl Ended {
    /// The end of a task by this panic.
    pub(crate) fn by_panic(task: &'static str, panic: &(dyn Any + Send)) -> Self {
        Self { task, reason: format!("it panicked: {}", panic_text(panic)) }
    }
}

/// Tasks that run beside the work of a service, for as long as it runs. Dropping this ends them.
#[derive(Debug, Default)]
pub(crate) struct Background(JoinSet<Ended>);

impl Background {
    /// Runs this task; `task` names it in the log.
    pub(crate) fn spawn(
        &mut self,
        task: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        self.0.spawn(async move {
            match AssertUnwindSafe(work).catch_unwind().await {
                Ok(()) => Ended { task, reason: "it has nothing left to do".to_owned() },
                Err(panic) => Ended::by_panic(task, &*panic),
            }
        });
    }

    /// Waits until one of them has ended, which none of them should.
    pub(crate) async fn ended(&mut self) -> Ended {
        match self.0.join_next().await {
            Some(Ok(ended)) => ended,
            // Only this aborts them, and their panics are caught.
            Some(Err(_)) | None => std::future::pending().await,
        }
    }
}

/// The message of a panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it has no message")
}
