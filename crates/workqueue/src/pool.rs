//! A worker pool: much work at the same time, each piece on a task of its own.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;

use tokio::task::{JoinError, JoinSet};
use tracing::error;

/// A piece of work, such as a delivery that is to be handled.
pub trait Work: Send + 'static {
    /// Does it. May be dropped at any await.
    fn run(self) -> impl Future<Output = ()> + Send;
}

/// Work that is under way. Dropping the pool drops it.
pub struct Pool<W> {
    /// Whose work it is, for the log.
    name: &'static str,
    tasks: JoinSet<()>,
    work: PhantomData<fn(W)>,
}

impl<W: Work> Pool<W> {
    /// A pool without work, whose panics are logged under this name.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self { name, tasks: JoinSet::new(), work: PhantomData }
    }

    /// Does this at the same time as all else that is under way.
    pub fn spawn(&mut self, work: W) {
        self.tasks.spawn(work.run());
    }

    /// How many pieces of work are under way.
    #[must_use]
    pub fn in_flight(&mut self) -> usize {
        while let Some(ended) = self.tasks.try_join_next() {
            self.note(ended);
        }
        self.tasks.len()
    }

    /// Waits until a piece of work is done; for ever, where nothing is under way.
    pub async fn progress(&mut self) {
        match self.tasks.join_next().await {
            Some(ended) => self.note(ended),
            None => std::future::pending().await,
        }
    }

    /// Waits until nothing is under way.
    pub async fn finish(&mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            self.note(ended);
        }
    }

    fn note(&self, ended: Result<(), JoinError>) {
        if let Err(panic) = ended.map_err(JoinError::into_panic) {
            error!(name = self.name, panic = panic_text(&*panic), "work panicked");
        }
    }
}

/// The message of a panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it has no message")
}

impl<W> fmt::Debug for Pool<W> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pool").field("tasks", &self.tasks.len()).finish_non_exhaustive()
    }
}
