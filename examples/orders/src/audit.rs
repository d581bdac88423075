//! The verdict over both databases and the queues.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::Result;
use workqueue::topology::Topology;
use workqueue::{Connection, Job, Metrics, Producer, Settings, batch, dead_letters};

use crate::database::Database;
use crate::{OrderEvent, Outcome};

/// The number of messages that are read at a time.
const BATCH: usize = 500;

/// The state of an order, from all records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// Each event had its effect, and the order has the outcome.
    Complete,
    /// An event waits in the outbox or in a queue.
    Pending,
    /// An event is a dead letter, and can be replayed.
    DeadLettered,
    /// The order was committed, but one of its events, or the outcome of one, is nowhere.
    Lost,
    /// The order was never committed, but it has an event, or money was taken.
    Invented,
    /// Money moved twice for one event, or the sum does not match the status.
    Mischarged,
}

/// The ids of the orders by their fate. An order may have several fates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict(pub BTreeMap<Fate, BTreeSet<String>>);

impl Verdict {
    /// Whether nothing is lost, invented or mischarged.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.0.keys().all(|fate| *fate < Fate::Lost)
    }

    fn add(&mut self, fate: Fate, order: &str) {
        self.0.entry(fate).or_default().insert(order.to_owned());
    }
}

/// The number of orders of each fate, and the ids of those that a person has to look at.
impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (fate, orders) in &self.0 {
            writeln!(formatter, "{:<13}{}", format!("{fate:?}"), orders.len())?;
            for order in orders.iter().filter(|_| *fate > Fate::Pending) {
                writeln!(formatter, "  {order}")?;
            }
        }
        Ok(())
    }
}

/// Events: the order of each, and its number.
type Events = BTreeSet<(String, i64)>;

/// Reads the databases and the queues in the order in which an event passes through them, so that an event that moves on
/// meanwhile is found later. Then judges each order.
///
/// # Errors
///
/// If a database or the broker does not answer.
pub async fn audit(orders: &Database, payments: &Database, settings: &Settings) -> Result<Verdict> {
    let nats = Connection::establish(&settings.nats, &settings.instance, |_connected| {}).await?;
    let producer = Producer::new(&nats, settings.limits, 1, &Metrics::new("audit"));
    producer.declare(&Topology::new(&[OrderEvent::QUEUE, Outcome::QUEUE], &[])).await?;

    let committed = events_of(&rows(orders, "SELECT id, events FROM orders").await?);
    let outbox = "SELECT order_id, number FROM outbox WHERE published_at IS NULL";
    let outbox = rows(orders, outbox).await?;
    let mut under_way = messages(&nats, OrderEvent::QUEUE.stream, "order-events.>").await?;
    let handled = rows(payments, "SELECT order_id, number FROM inbox").await?;
    let ledger = rows(payments, "SELECT order_id, number FROM ledger").await?;
    let twice = "SELECT order_id, number FROM ledger GROUP BY order_id, number HAVING COUNT(*) > 1";
    let twice = rows(payments, twice).await?;
    let held = "SELECT order_id, CAST(SUM(amount) AS BIGINT) FROM ledger GROUP BY order_id \
         HAVING SUM(amount) <> 0";
    let held = rows(payments, held).await?;
    under_way.extend(messages(&nats, Outcome::QUEUE.stream, "payment-outcomes.>").await?);
    let mut dead = messages(&nats, dead_letters::STREAM, "dead_letters.ORDER_EVENTS.>").await?;
    dead.extend(messages(&nats, dead_letters::STREAM, "dead_letters.PAYMENT_OUTCOMES.>").await?);
    let settled = events_of(&rows(orders, "SELECT id, settled FROM orders").await?);
    let due = rows(orders, "SELECT id, amount FROM orders WHERE status = 'paid'").await?;
    let all = rows(orders, "SELECT id, events FROM orders").await?;

    let mut verdict = Verdict::default();
    let events = events_of(&all);
    let known = [&under_way, &handled, &ledger, &dead];
    for (order, _) in known.into_iter().flat_map(|known| known - &events) {
        verdict.add(Fate::Invented, &order);
    }
    under_way.extend(outbox);
    // A waiting event is open, even if it had its effect, because it will be delivered again.
    let open = &(&events - &(&handled & &settled)) | &(&events & &under_way);
    for event in &open {
        let fate = match event {
            // It may have been committed after the queues were read.
            _ if under_way.contains(event) || !committed.contains(event) => Fate::Pending,
            _ if dead.contains(event) => Fate::DeadLettered,
            _ => Fate::Lost,
        };
        verdict.add(fate, &event.0);
    }
    let open: BTreeSet<&str> = open.iter().map(|event| &*event.0).collect();
    for (order, _) in all.iter().filter(|order| !open.contains(&*order.0)) {
        verdict.add(Fate::Complete, order);
    }
    let wrong = held.symmetric_difference(&due).filter(|order| !open.contains(&*order.0));
    for (order, _) in wrong.chain(&twice) {
        verdict.add(Fate::Mischarged, order);
    }
    Ok(verdict)
}

/// The rows of a query, each a text and a number.
async fn rows(database: &Database, sql: &'static str) -> Result<Events> {
    Ok(sqlx::query_as(sql).fetch_all(&database.pool).await?.into_iter().collect())
}

/// The events of each order, up to this number.
fn events_of(all: &Events) -> Events {
    all.iter().flat_map(|(order, last)| (1..=*last).map(|number| (order.clone(), number))).collect()
}

/// The events in these messages of a stream.
async fn messages(nats: &Connection, stream: &str, subjects: &str) -> Result<Events> {
    let (mut events, mut from) = (Events::new(), 1);
    loop {
        let batch = batch::from_sequence(nats.context(), stream, subjects, from, BATCH);
        let (messages, left) = batch.await?;
        for message in &messages {
            let body: serde_json::Value = serde_json::from_slice(&message.body).unwrap_or_default();
            // Anything else, as in some dead letters, is no event.
            let event = body["order"].as_str().zip(body["number"].as_i64());
            events.extend(event.map(|(order, number)| (order.to_owned(), number)));
            from = message.sequence + 1;
        }
        if left == 0 || messages.is_empty() {
            return Ok(events);
        }
    }
}
