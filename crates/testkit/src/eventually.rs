//! Waiting in a test: for a fact, never for a time.

use std::fmt::Debug;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

/// The time limit. Even on a slow machine only a bug reaches it.
const LIMIT: Duration = Duration::from_mins(1);

const PAUSE: Duration = Duration::from_millis(20);

/// Polls until `look` returns `Ok`, and returns its value. An `Err` is no failure, but the state that it saw instead.
///
/// This is the only sleep in any test.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use testkit::eventually::eventually;
///
/// let mut queue = vec![1, 2, 3];
/// eventually("the queue is drained", async || {
///     queue.pop();
///     if queue.is_empty() { Ok(()) } else { Err(queue.len()) }
/// })
/// .await;
/// # }
/// ```
///
/// # Panics
///
/// After a minute, with the awaited state and the last one seen.
pub async fn eventually<T, S: Debug>(what: &str, mut look: impl AsyncFnMut() -> Result<T, S>) -> T {
    let limit = Instant::now() + LIMIT;
    let mut seen = None;
    loop {
        match timeout_at(limit, look()).await {
            Ok(Ok(found)) => return found,
            Ok(Err(state)) if Instant::now() < limit => seen = Some(state),
            Ok(Err(state)) => {
                panic!("not within {LIMIT:?}: {what}; the last state seen: {state:?}")
            }
            Err(elapsed) => panic!(
                "not within {LIMIT:?}: {what}; the last look did not end ({elapsed}), and the state seen before it: {seen:?}"
            ),
        }
        sleep(PAUSE).await;
    }
}
