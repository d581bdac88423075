//! Much work at the same time, on tasks that live on.
//!
//! A task for each message would be allocated, with a future of some kilobytes, moved a few times and
//! freed, which shows in a profile at full speed. Here one task carries out one piece of work after another.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::FutureExt;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tracing::error;

/// A piece of work, such as a message that is to be handled.
pub trait Work: Send + 'static {
    /// Does it. May be dropped at any await.
    fn carry_out(self) -> impl Future<Output = ()> + Send;
}

/// Tasks that carry out work: as many as there has ever been work at a time. Dropping the crew drops
/// what is under way.
pub struct Crew<W> {
    desk: Arc<Desk<W>>,
    hands: JoinSet<()>,
}

/// What the tasks of a crew share.
struct Desk<W> {
    /// Whose work it is, for the log.
    name: &'static str,
    /// What nobody has taken up yet.
    open: Mutex<VecDeque<W>>,
    /// One for each piece that is open.
    permits: Semaphore,
    /// How many tasks there are.
    hands: AtomicUsize,
    /// How many pieces are open or being carried out.
    under_way: AtomicUsize,
    /// Told of each that is no more.
    done: Notify,
}

impl<W: Work> Crew<W> {
    /// A crew without work, whose panics are logged under this name.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        let desk = Desk {
            name,
            open: Mutex::default(),
            permits: Semaphore::new(0),
            hands: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            done: Notify::new(),
        };
        Self { desk: Arc::new(desk), hands: JoinSet::new() }
    }

    /// Has this carried out, at the same time as all else that is under way.
    pub fn give(&mut self, work: W) {
        let under_way = self.desk.under_way.fetch_add(1, Ordering::Relaxed) + 1;
        self.desk.open().push_back(work);
        self.desk.permits.add_permits(1);
        if under_way > self.desk.hands.load(Ordering::Acquire) {
            // Those that have died of a panic.
            while self.hands.try_join_next().is_some() {}
            self.desk.hands.fetch_add(1, Ordering::Relaxed);
            self.hands.spawn(Arc::clone(&self.desk).carry_out_all());
        }
    }

    /// How many pieces of work are under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.desk.under_way.load(Ordering::Acquire)
    }

    /// Waits until a piece of work is done that was not when this was last waited for.
    pub async fn progress(&mut self) {
        self.desk.done.notified().await;
    }

    /// Waits until nothing is under way.
    pub async fn finish(&mut self) {
        while self.under_way() > 0 {
            self.progress().await;
        }
    }
}

impl<W: Work> Desk<W> {
    fn open(&self) -> MutexGuard<'_, VecDeque<W>> {
        self.open.lock().expect("nothing panics while it holds this lock")
    }

    /// Carries out whatever is open, for ever.
    async fn carry_out_all(self: Arc<Self>) {
        let _hand = Counted(&self.hands, None);
        loop {
            self.permits.acquire().await.expect("nobody closes it").forget();
            let work = self.open().pop_front().expect("there is a permit for each");
            let _turn = Counted(&self.under_way, Some(&self.done));
            // As with a task of its own: what panics is dropped, and a lock that it held says so.
            if let Err(panic) = AssertUnwindSafe(work.carry_out()).catch_unwind().await {
                error!(name = self.name, panic = words(&*panic), "work panicked");
            }
        }
    }
}

/// One of those that are counted here, until it is no more, however it ends; then somebody may be told.
struct Counted<'a>(&'a AtomicUsize, Option<&'a Notify>);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
        if let Some(told) = self.1 {
            told.notify_one();
        }
    }
}

/// What a panic says.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it does not say why")
}

impl<W> fmt::Debug for Crew<W> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Crew").field("hands", &self.hands.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tokio::sync::{mpsc, oneshot};

    use super::*;

    /// Waits for its end, and panics where that is told so.
    struct Patient(oneshot::Receiver<bool>);

    impl Work for Patient {
        async fn carry_out(self) {
            assert!(self.0.await.expect("somebody ends it"), "on purpose");
        }
    }

    fn give(crew: &mut Crew<Patient>) -> oneshot::Sender<bool> {
        let (end, ended) = oneshot::channel();
        crew.give(Patient(ended));
        end
    }

    #[tokio::test]
    async fn all_is_under_way_at_the_same_time_in_whatever_order_it_ends() {
        let mut crew = Crew::new("test");
        let first = give(&mut crew);
        let second = give(&mut crew);
        assert_eq!(crew.under_way(), 2);
        second.send(true).unwrap();
        crew.progress().await;
        assert_eq!(crew.under_way(), 1);
        first.send(true).unwrap();
        crew.finish().await;
        assert_eq!(crew.under_way(), 0);
    }

    #[tokio::test]
    async fn there_are_no_more_tasks_than_work_at_a_time() {
        let mut crew = Crew::new("test");
        for _ in 0..100 {
            let ends = [give(&mut crew), give(&mut crew), give(&mut crew)];
            for end in ends {
                end.send(true).unwrap();
            }
            crew.finish().await;
        }
        assert_eq!(crew.hands.len(), 3);
    }

    #[tokio::test]
    async fn a_panic_ends_one_piece_of_work_and_nothing_else() {
        let mut crew = Crew::new("test");
        for fine in [false, true, false, true] {
            give(&mut crew).send(fine).unwrap();
            crew.finish().await;
        }
        assert_eq!((crew.under_way(), crew.hands.len()), (0, 1));
    }

    /// Lets others go first a few times.
    struct Yielding(usize);

    impl Work for Yielding {
        async fn carry_out(self) {
            for _ in 0..self.0 {
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn nothing_is_left_open_on_several_threads() {
        let mut crew = Crew::new("test");
        for number in 0..50_000 {
            while crew.under_way() >= 32 {
                crew.progress().await;
            }
            crew.give(Yielding(number % 4));
        }
        crew.finish().await;
        assert_eq!(crew.under_way(), 0);
        assert!(crew.hands.len() <= 32, "{}", crew.hands.len());
    }

    /// Panics before there is anything to wait for.
    struct Hasty;

    impl Work for Hasty {
        fn carry_out(self) -> impl Future<Output = ()> + Send {
            panic!("on purpose");
            #[expect(unreachable_code, reason = "it says what the future is")]
            async {}
        }
    }

    #[tokio::test]
    async fn a_panic_that_ends_a_task_leaves_room_for_another() {
        let mut crew = Crew::new("test");
        for _ in 0..3 {
            crew.give(Hasty);
            crew.finish().await;
        }
        assert_eq!(crew.under_way(), 0);
    }

    /// Never ends.
    struct Endless(
        #[expect(dead_code, reason = "it is there to be dropped")] mpsc::Sender<Infallible>,
    );

    impl Work for Endless {
        async fn carry_out(self) {
            std::future::pending::<()>().await;
        }
    }

    #[tokio::test]
    async fn what_is_under_way_ends_with_the_crew() {
        let mut crew = Crew::new("test");
        let (held, mut all_dropped) = mpsc::channel(1);
        crew.give(Endless(held.clone()));
        tokio::task::yield_now().await;
        crew.give(Endless(held));
        drop(crew);
        assert_eq!(all_dropped.recv().await, None);
    }
}
