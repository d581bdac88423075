//! The relay: publishes what is in the outbox.

use std::future::pending;
use std::time::Duration;

use futures_util::future::join_all;
use sqlx::Result;
use tokio::time::timeout;
use tracing::error;
use workqueue::{Producer, Trace, now};

use crate::OrderEvent;
use crate::database::{Database, patiently};

/// How many events are published at a time.
const BATCH: i64 = 100;

/// Publishes the events of the outbox, those of each order one after another. There may be several relays.
///
/// It tidies up nothing when it ends, because a kill has to do no harm at any step: an event that is published and not
/// marked is published again, under the same id.
#[derive(Debug)]
pub struct Relay {
    /// Where the outbox is.
    pub database: Database,
    /// How long to wait before looking again, where there is no notification.
    pub poll_interval: Duration,
}

impl Relay {
    /// Publishes for as long as it is polled.
    ///
    /// # Errors
    ///
    /// Where waiting does not help.
    pub async fn run(&self, producer: &Producer) -> Result<()> {
        let mut listener = patiently(|| self.database.listen()).await?;
        loop {
            if patiently(|| self.publish_batch(producer)).await? == 0 {
                let notified = async {
                    match &mut listener {
                        // Where its connection is lost, it makes another one.
                        Some(listener) => listener.recv().await.map(drop),
                        None => pending().await,
                    }
                };
                let _ = timeout(self.poll_interval, notified).await;
            }
        }
    }

    /// Publishes the first unpublished event of each order, and marks those that are confirmed. Gives how many those are.
    ///
    /// Only then is the next event of such an order the first: so none overtakes another, however many relays there are.
    async fn publish_batch(&self, producer: &Producer) -> Result<usize> {
        let (rows, claim) = self.database.claim(BATCH).await?;
        let publishing = rows.iter().map(async |(id, body, traceparent)| {
            let published = async {
                let event: OrderEvent = serde_json::from_str(body)?;
                let trace = Trace::from_outside(traceparent.as_deref().unwrap_or_default(), None);
                anyhow::Ok(producer.publish(&event, event.id, &trace, None).await?)
            };
            match published.await {
                Ok(_) => Some(id),
                Err(error) => {
                    error!(id, error = format!("{error:#}"), "cannot publish an event");
                    None
                }
            }
        });
        let confirmed: Vec<&String> = join_all(publishing).await.into_iter().flatten().collect();
        let mut marking = match claim {
            Some(claim) => claim,
            None if confirmed.is_empty() => return Ok(0),
            None => self.database.begin().await?,
        };
        for id in &confirmed {
            let mark = sqlx::query("UPDATE outbox SET published_at = $2 WHERE id = $1");
            mark.bind(*id).bind(now().to_string()).execute(&mut *marking).await?;
        }
        marking.commit().await?;
        Ok(confirmed.len())
    }
}
