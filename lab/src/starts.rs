//! When requests were started, which a rate limit counts.

use std::collections::BTreeMap;

use contract::facts::{STORED, Stored};
use workqueue::reading::ReadStreamError;
use workqueue::{Connection, Fact, reading};

/// How many of the requests whose strings are stored were started in each second of the clock.
///
/// # Errors
///
/// If the broker does not show its facts.
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
