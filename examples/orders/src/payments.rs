//! The payment service: takes the money of each order once.

use std::time::Duration;

use sqlx::Result;
use sqlx::migrate::Migrator;
use workqueue::{Context, Failure, Handler, RetryPolicy, now};

use crate::database::{Database, patiently};
use crate::{Change, OrderEvent, Outcome};

/// The tables of the payment service.
pub const TABLES: Migrator = sqlx::migrate!("migrations/payments");

/// The highest amount that is paid, in cents. A higher order is declined.
pub const LIMIT: i64 = 100_000;

/// Takes the money, and refunds it.
pub struct Payments(pub Database);

impl Handler for Payments {
    type Job = OrderEvent;

    fn retry_policy(&self) -> RetryPolicy {
        // An event that comes too early is no failure.
        RetryPolicy { snoozes_count: false, ..RetryPolicy::default() }
    }

    /// Commits the effect, then publishes the outcome. The event is acked last. After a crash in between, the broker
    /// redelivers the event, and this publishes the outcome from the inbox again, under the same id. So the event in the
    /// queue does the work of a row in an outbox, and this service needs no outbox.
    async fn handle(&self, event: OrderEvent, cx: &Context) -> Result<(), Failure> {
        let Some(status) = patiently(|| self.take(&event)).await? else {
            let reason = format!("event {} of its order comes first", event.number - 1);
            // Usually it waits for a moment; but if its predecessor is a dead letter, until that is replayed.
            let age = now().duration_since(event.id.made_at()).unsigned_abs();
            let delay = (age / 10).clamp(Duration::from_millis(200), Duration::from_secs(30));
            return Err(Failure::RetryAfter(delay, reason.into()));
        };
        cx.publish(&Outcome { order: event.order, number: event.number, status }).await?;
        Ok(())
    }
}

impl Payments {
    /// Applies an event and records it in the inbox, in one transaction, unless the inbox has it already. Returns the
    /// outcome, or nothing if the event comes too early.
    async fn take(&self, event: &OrderEvent) -> Result<Option<String>> {
        let (id, order) = (event.id.to_string(), event.order.to_string());
        let mut transaction = self.0.begin().await?;
        let known = sqlx::query_scalar("SELECT outcome FROM inbox WHERE event_id = $1").bind(&id);
        if let Some(outcome) = known.fetch_optional(&mut *transaction).await? {
            return Ok(outcome);
        }
        let handled = sqlx::query_scalar("SELECT COUNT(*) FROM inbox WHERE order_id = $1");
        let handled: i64 = handled.bind(&order).fetch_one(&mut *transaction).await?;
        if handled < event.number - 1 {
            return Ok(None);
        }
        let sum = "SELECT CAST(COALESCE(SUM(amount), 0) AS BIGINT) FROM ledger WHERE order_id = $1";
        let paid = sqlx::query_scalar(sum).bind(&order).fetch_one(&mut *transaction).await?;
        let (outcome, amount) = match (event.change, paid) {
            (Change::Placed, _) if event.amount > LIMIT => ("declined", 0),
            (Change::Placed, _) => ("paid", event.amount),
            (Change::Cancelled, 0) => ("cancelled", 0),
            (Change::Cancelled, paid) => ("refunded", -paid),
        };
        // If another replica handles the same event at this moment, this waits for it, fails, and is retried.
        let row = "INSERT INTO inbox (event_id, order_id, number, outcome) VALUES ($1, $2, $3, $4)";
        let row = sqlx::query(row).bind(id).bind(&order).bind(event.number).bind(outcome);
        row.execute(&mut *transaction).await?;
        if amount != 0 {
            let row = "INSERT INTO ledger (order_id, number, amount) VALUES ($1, $2, $3)";
            let row = sqlx::query(row).bind(order).bind(event.number).bind(amount);
            row.execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(Some(outcome.to_owned()))
    }
}
