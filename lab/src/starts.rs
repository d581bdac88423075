//! The starts of requests, which a rate limit counts.

use std::collections::BTreeMap;

use contract::facts::{STORED, Stored};
use workqueue::reading::ReadStreamError;
use workqueue::{Connection, Fact, reading};

/// The number of requests that were started in each second of the clock, of those whose strings are stored.
///
/// # Errors
///
/// If the facts cannot be read.
pub async fn starts_by_second(
    connection: &Connection,
) -> Result<BTreeMap<i64, u64>, ReadStreamError> {
    let mut starts = BTreeMap::new();
    let nats = connection.context();
    reading::each(nats, STORED.stream, &STORED.subjects(), |_sequence, message| {
        if let Ok(Stored::Strings(stored)) = Stored::from_body(&message.payload)
            && let Some(started_at) = stored.started_at
        {
            *starts.entry(started_at.as_second()).or_default() += 1;
        }
    })
    .await?;
    Ok(starts)
}
