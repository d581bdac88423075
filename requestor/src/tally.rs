//! Counts the requests of this requestor, if it has to end once all of them are stored.
//!
//! Any replica may store the response to a request of ours. A response that this replica stores is counted at
//! once; for all others the tally reads the facts, which decide.

use std::collections::BTreeSet;
use std::mem;
use std::ops::Bound;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use contract::facts::{self, Stored};
use contract::{RequestState, Strings};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tracing::info;
use workqueue::{Connection, JobId, ReadError, dead_letters, last_message, read_fact, topology};

use crate::RequestorError;

/// The number of requests that are looked up at a time.
const AT_A_TIME: usize = 64;

/// The pause between two rounds of looking up, unless the first found many.
const PAUSE: Duration = Duration::from_millis(250);

/// The interval at which the number of outstanding requests is logged.
const REPORT: Duration = Duration::from_secs(5);

/// The reason for which a request is given up that has left neither a fact nor a dead letter.
const TOO_OLD: &str = "not stored, and older than FACTS_MAX_AGE";

/// The requests that have not ended, as far as this requestor knows.
#[derive(Debug)]
pub(crate) struct Tally {
    /// The number of requests to make, and of those that were made.
    total: u64,
    made: AtomicU64,
    outstanding: Mutex<BTreeSet<JobId>>,
    given_up: Mutex<Vec<GivenUp>>,
    /// When all requests were accepted or given up.
    all_asked: OnceLock<Instant>,
}

/// A request without a result: it ended as a dead letter, was cancelled, could not be published, or is too old.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// The request.
    pub id: JobId,
    /// The reason for its end.
    pub reason: String,
}

impl Tally {
    pub(crate) fn new(total: u64) -> Self {
        let (made, outstanding, given_up, all_asked) = Default::default();
        Self { total, made, outstanding, given_up, all_asked }
    }

    pub(crate) fn asked(&self, id: JobId) {
        self.made.fetch_add(1, Ordering::Relaxed);
        self.with(|outstanding| outstanding.insert(id));
    }

    /// Its strings are stored, even if it counts as given up: a request with a dead letter may still be answered.
    pub(crate) fn stored(&self, id: JobId) {
        self.with(|outstanding| outstanding.remove(&id));
        self.all_given_up().retain(|it| it.id != id);
    }

    /// It has no result, unless its strings were stored meanwhile.
    pub(crate) fn given_up(&self, id: JobId, reason: String) {
        let mut given_up = self.all_given_up();
        if self.with(|outstanding| outstanding.remove(&id)) {
            given_up.push(GivenUp { id, reason });
        }
    }

    /// Marks the tally as complete: no further requests will follow.
    pub(crate) fn close(&self) {
        self.all_asked.get_or_init(Instant::now);
    }

    /// Waits until every request has ended.
    pub(crate) async fn come_to_an_end(&self, connection: &Connection) {
        let (mut after, mut reported, mut are_too_old) = (None, Instant::now(), false);
        while !(self.all_asked.get().is_some() && self.with(|ids| ids.is_empty())) {
            if reported.elapsed() >= REPORT {
                reported = Instant::now();
                let outstanding = self.with(|ids| ids.len());
                info!(outstanding, "waiting until each request is stored");
                are_too_old = self.are_too_old(connection).await;
            }
            let round = self.oldest_after(after);
            after = round.last().copied();
            let looked_up = round.len();
            let mut ends: FuturesUnordered<_> =
                round.into_iter().map(async |id| (id, end_of(id, connection).await)).collect();
            let mut ended = 0;
            while let Some((id, end)) = ends.next().await {
                match end {
                    Some(RequestEnd::Stored) => self.stored(id),
                    Some(RequestEnd::GivenUp(reason)) => self.given_up(id, reason),
                    Some(RequestEnd::NotYet) if are_too_old => {
                        self.given_up(id, TOO_OLD.to_owned());
                    }
                    Some(RequestEnd::NotYet) | None => continue,
                }
                ended += 1;
            }
            if looked_up < AT_A_TIME || ended < AT_A_TIME / 2 {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Whether even the last request is so old that no service works on it any more.
    async fn are_too_old(&self, connection: &Connection) -> bool {
        let Some(all_asked) = self.all_asked.get() else { return false };
        let facts_max_age = topology::facts_max_age(connection.context(), &facts::ALL).await;
        // Without any such time the services go by the earlier one.
        facts_max_age.is_ok_and(|age| !age.is_zero() && all_asked.elapsed() > age)
    }

    /// The result at the end of this requestor.
    pub(crate) fn result(&self) -> Result<(), RequestorError> {
        let total = self.total;
        let not_made = total - self.made.load(Ordering::Relaxed);
        let outstanding = not_made + self.with(|ids| ids.len()) as u64;
        let given_up = mem::take(&mut *self.all_given_up());
        if outstanding > 0 {
            Err(RequestorError::Stopped { total, outstanding })
        } else if given_up.is_empty() {
            Ok(())
        } else {
            Err(RequestorError::GivenUp { total, given_up })
        }
    }

    /// The oldest requests after this one, or the oldest of all without one.
    fn oldest_after(&self, after: Option<JobId>) -> Vec<JobId> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.with(|outstanding| {
            outstanding.range((from, Bound::Unbounded)).take(AT_A_TIME).copied().collect()
        })
    }

    fn with<T>(&self, look: impl FnOnce(&mut BTreeSet<JobId>) -> T) -> T {
        look(&mut self.outstanding.lock().expect("nothing panics while it holds this lock"))
    }

    fn all_given_up(&self) -> MutexGuard<'_, Vec<GivenUp>> {
        self.given_up.lock().expect("nothing panics while it holds this lock")
    }
}

enum RequestEnd {
    Stored,
    GivenUp(String),
    NotYet,
}

/// The end of a request, if the broker answers.
async fn end_of(id: JobId, connection: &Connection) -> Option<RequestEnd> {
    let key = id.to_string();
    match read_fact(connection, &key).await {
        Ok(Some(Stored::Strings(_))) => return Some(RequestEnd::Stored),
        Ok(Some(Stored::Cancelled(it))) => {
            return Some(RequestEnd::GivenUp(format!("cancelled by {}", it.cancelled_by)));
        }
        // It is never changed, so it prevents a result.
        Err(error @ ReadError::NoFact(_)) => return Some(RequestEnd::GivenUp(error.to_string())),
        Err(ReadError::Unknown) => return None,
        Ok(None) => {}
    }
    let subject = dead_letters::subject("*", &key);
    let last = last_message(connection.context(), dead_letters::STREAM, &subject);
    let last = connection.ask(pin!(last)).await?.ok()?;
    let state = RequestState::of(None, None::<Strings>, false, |queue| {
        let subject = dead_letters::subject(queue.stream, &key);
        last.as_ref().filter(|letter| letter.subject.as_str() == subject)
    });
    let RequestState::DeadLettered(letter) = state else { return Some(RequestEnd::NotYet) };
    Some(RequestEnd::GivenUp(dead_letters::reason(&letter.headers).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_request_is_not_given_up() {
        let (tally, id) = (Tally::new(1), JobId::new());
        tally.asked(id);
        tally.given_up(id, "failed".to_owned());
        assert_eq!(tally.all_given_up().len(), 1);
        tally.stored(id);
        // An earlier look may end later.
        tally.given_up(id, "failed".to_owned());
        assert!(tally.all_given_up().is_empty());
    }

    #[test]
    fn request_that_is_outstanding_or_never_made_is_no_success() {
        let (tally, id) = (Tally::new(3), JobId::new());
        for id in [id, JobId::new()] {
            tally.asked(id);
        }
        tally.stored(id);
        let result = tally.result();
        assert!(
            matches!(result, Err(RequestorError::Stopped { total: 3, outstanding: 2 })),
            "{result:?}"
        );
    }
}
