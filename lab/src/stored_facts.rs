//! Reads the facts of a run.

use std::collections::BTreeMap;

use contract::facts::Stored;
use jiff::Timestamp;
use workqueue::reading::ReadStreamError;
use workqueue::{Connection, Fact, reading};

/// Calls `show` with each fact of this kind, the oldest first, and the time at which the broker stored it.
pub(crate) async fn each_fact<F: Fact>(
    connection: &Connection,
    mut show: impl FnMut(F, Timestamp),
) -> Result<(), ReadStreamError> {
    let nats = connection.context();
    reading::each(nats, F::BUCKET.stream, &F::BUCKET.subjects(), |_sequence, message| {
        let stored = message.info().map(|info| info.published.unix_timestamp_nanos());
        let stored = stored.ok().and_then(|at| Timestamp::from_nanosecond(at).ok());
        if let (Ok(fact), Some(stored)) = (F::from_body(&message.payload), stored) {
            show(fact, stored);
        }
    })
    .await
}

/// The number of requests that were started in each second of the clock, of those whose strings are stored.
///
/// # Errors
///
/// If the facts cannot be read.
pub async fn starts_by_second(
    connection: &Connection,
) -> Result<BTreeMap<i64, u64>, ReadStreamError> {
    let mut starts = BTreeMap::new();
    each_fact(connection, |fact, _| {
        if let Stored::Strings(stored) = fact
            && let Some(started_at) = stored.started_at
        {
            *starts.entry(started_at.as_second()).or_default() += 1;
        }
    })
    .await?;
    Ok(starts)
}
