//! Asks for strings at a rate, some requests at a time.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use contract::headers::Trace;
use contract::queues::Request;
use contract::{Amount, RequestId};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};
use workqueue::{Backoff, Crew, Said, Work};

use crate::pace::Pace;
use crate::submit::{Submission, Submitter};
use crate::tally::Tally;

/// The first ceiling of the time between two tries of a request that the broker refuses, and the
/// highest.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Asks for strings, some requests at a time.
#[derive(Debug)]
pub(crate) struct Asker {
    pub(crate) submitter: Submitter,
    pub(crate) instance: String,
    pub(crate) amount: Amount,
    /// How many requests may be on their way to the broker at a time.
    pub(crate) concurrency: usize,
    /// Where to note what was asked for, if anybody waits for it.
    pub(crate) tally: Option<Arc<Tally>>,
    /// Why the broker refuses what is asked for, as far as it was said.
    pub(crate) refusals: Mutex<Said>,
}

impl Asker {
    /// Asks until `stop`, or `total` times; then waits until the last request is accepted, or
    /// until there is no time left for it.
    pub(crate) async fn run(
        self,
        mut pace: Pace,
        total: Option<u64>,
        stop: &CancellationToken,
        abandon: &CancellationToken,
    ) {
        let asker = Arc::new(self);
        let mut crew = Crew::new("asking");
        let mut left = total.unwrap_or(u64::MAX);
        while left > 0 {
            let full = crew.under_way() >= asker.concurrency;
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = pace.next(), if !full => {
                    left -= 1;
                    crew.give(Asking { asker: Arc::clone(&asker), stop: stop.clone() });
                }
                () = crew.progress() => {}
            }
        }
        // What is given up was never accepted.
        let _ = abandon.run_until_cancelled(crew.finish()).await;
    }

    /// Asks until the request is accepted, or until `stop` while the queue is full.
    async fn ask(&self, stop: &CancellationToken) {
        let mut request = Request {
            id: RequestId::new(),
            amount: self.amount,
            requestor: self.instance.clone(),
            requested_at: workqueue::now(),
        };
        if let Some(tally) = &self.tally {
            tally.asked(request.id);
        }
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut refused = false;
        loop {
            match self.submitter.submit(&request, &Trace::default(), stop).await {
                Ok(Submission::Accepted) => {
                    debug!(id = %request.id, "accepted");
                    if refused {
                        self.refusals().forget();
                    }
                }
                Ok(Submission::NoRoom) => {
                    debug!(id = %request.id, "not asked: stopping, and the queue is full");
                }
                Err(refusal) => {
                    let id = request.id;
                    if self.refusals().is_news(&refusal) {
                        error!(%id, %refusal, "the broker refuses requests; trying again");
                    } else {
                        debug!(%id, %refusal, "refused");
                    }
                    refused = true;
                    backoff.wait().await;
                    // It was not accepted, so its time starts anew.
                    request.requested_at = workqueue::now();
                    continue;
                }
            }
            return;
        }
    }

    fn refusals(&self) -> MutexGuard<'_, Said> {
        self.refusals.lock().expect("nothing panics while it holds this lock")
    }
}

/// One request that is to be asked for.
struct Asking {
    asker: Arc<Asker>,
    stop: CancellationToken,
}

impl Work for Asking {
    async fn carry_out(self) {
        self.asker.ask(&self.stop).await;
    }
}
