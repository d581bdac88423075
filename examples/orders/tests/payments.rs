//! The payments handler alone, on a database of its own, without a broker.

use std::time::Duration;

use orders::database::Database;
use orders::payments::{LIMIT, Payments, TABLES};
use orders::{Change, OrderEvent, Outcome};
use tempfile::TempDir;
use workqueue::testing::Recorder;
use workqueue::{Failure, Handler, JobId};

/// An id that was made in 2024.
const OLD: &str = "01900000-0000-7000-8000-000000000000";

async fn payments() -> (Payments, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}/payments.db", directory.path().display());
    (Payments(Database::connect(&url, TABLES).await.unwrap()), directory)
}

fn event(order: JobId, number: i64, change: Change, amount: i64) -> OrderEvent {
    OrderEvent { id: JobId::new(), order, number, change, amount }
}

/// The outcomes that are published for these events, in this order.
async fn statuses(payments: &Payments, events: &[&OrderEvent]) -> Vec<String> {
    let recorder = Recorder::new();
    for event in events {
        payments.handle((*event).clone(), &recorder.context()).await.unwrap();
    }
    recorder.published::<Outcome>().into_iter().map(|outcome| outcome.status).collect()
}

/// The rows of the ledger.
async fn amounts(payments: &Payments) -> Vec<i64> {
    let amounts = sqlx::query_scalar("SELECT amount FROM ledger ORDER BY number");
    amounts.fetch_all(&payments.0.pool).await.unwrap()
}

#[tokio::test]
async fn event_that_is_delivered_twice_has_its_effect_once() {
    let (payments, _directory) = payments().await;
    let order = JobId::new();
    let (placed, cancelled) =
        (event(order, 1, Change::Placed, 70), event(order, 2, Change::Cancelled, 70));
    let statuses = statuses(&payments, &[&placed, &placed, &cancelled, &placed, &cancelled]).await;
    assert_eq!(statuses, ["paid", "paid", "refunded", "paid", "refunded"]);
    assert_eq!(amounts(&payments).await, [70, -70]);
}

#[tokio::test]
async fn event_that_comes_too_early_is_snoozed() {
    let (payments, _directory) = payments().await;
    let order = JobId::new();
    let cancelled = event(order, 2, Change::Cancelled, 70);
    let handled = payments.handle(cancelled.clone(), &Recorder::new().context()).await;
    assert!(matches!(handled, Err(Failure::RetryAfter(..))), "{handled:?}");
    // The older the event, the longer the delay.
    let old = OrderEvent { id: OLD.parse().unwrap(), ..cancelled.clone() };
    let handled = payments.handle(old, &Recorder::new().context()).await;
    let longest = Duration::from_secs(30);
    assert!(matches!(handled, Err(Failure::RetryAfter(it, _)) if it == longest), "{handled:?}");
    assert_eq!(amounts(&payments).await, [0_i64; 0]);
    let placed = event(order, 1, Change::Placed, 70);
    assert_eq!(statuses(&payments, &[&placed, &cancelled]).await, ["paid", "refunded"]);
}

#[tokio::test]
async fn order_above_the_limit_is_declined() {
    let (payments, _directory) = payments().await;
    let order = JobId::new();
    let placed = event(order, 1, Change::Placed, LIMIT + 1);
    let cancelled = event(order, 2, Change::Cancelled, LIMIT + 1);
    assert_eq!(statuses(&payments, &[&placed, &cancelled]).await, ["declined", "cancelled"]);
    assert_eq!(amounts(&payments).await, [0_i64; 0]);
}
