//! The relay: publishes the events in the outbox.

use std::time::Duration;

use futures_util::future::join_all;
use sqlx::Result;
use tokio::time::{sleep, timeout};
use tracing::error;
use workqueue::{Producer, Trace, now};

use crate::OrderEvent;
use crate::database::{Database, patiently};

/// The most events that are published at a time.
const BATCH: i64 = 100;

/// Publishes the events of the outbox for as long as it is polled, those of each order one after another. It looks for
/// new events after each `interval`, and after each notification. There may be several relays.
///
/// It has no clean-up at its end, because a kill must do no harm at any step: an event that is published and not marked
/// is published again, under the same id.
///
/// # Errors
///
/// If the database fails, and waiting does not help.
pub async fn relay(database: &Database, producer: &Producer, interval: Duration) -> Result<()> {
    let mut listener = patiently(|| database.listen()).await?;
    loop {
        if patiently(|| publish_batch(database, producer)).await? == 0 {
            match &mut listener {
                // If its connection is lost, the listener makes another one.
                Some(listener) => drop(timeout(interval, listener.recv()).await),
                None => sleep(interval).await,
            }
        }
    }
}

/// Publishes the first unpublished event of each order, and marks the confirmed ones. Returns their number.
///
/// The next event of an order is the first unpublished one only after this mark. So no event overtakes another, with
/// any number of relays.
async fn publish_batch(database: &Database, producer: &Producer) -> Result<usize> {
    let (rows, claim) = database.claim(BATCH).await?;
    let publish = async |body: &str, parent: &str| {
        let event: OrderEvent = serde_json::from_str(body)?;
        let trace = Trace::from_outside(parent, None);
        anyhow::Ok(producer.publish(&event, event.id, &trace, None).await?)
    };
    let publishing = rows.iter().map(async |(id, body, traceparent)| {
        let published = publish(body, traceparent.as_deref().unwrap_or_default()).await;
        let failed = |error| error!(id, error = format!("{error:#}"), "cannot publish an event");
        published.map_err(failed).ok().map(|()| id)
    });
    let confirmed: Vec<&String> = join_all(publishing).await.into_iter().flatten().collect();
    let mut marking = match claim {
        Some(claim) => claim,
        None if confirmed.is_empty() => return Ok(0),
        None => database.begin().await?,
    };
    for id in &confirmed {
        let mark = sqlx::query("UPDATE outbox SET published_at = $2 WHERE id = $1");
        mark.bind(*id).bind(now().to_string()).execute(&mut *marking).await?;
    }
    marking.commit().await?;
    Ok(confirmed.len())
}
