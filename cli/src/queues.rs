//! `decoupled queues`: lists the queues, pauses one, and resumes it.

use std::fmt::{self, Display};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Subcommand;
use contract::queues;
use jiff::Timestamp;
use observe::{LaneSnapshot, QueueSnapshot};
use serde::Serialize;
use workqueue::{NatsSettings, Queue, topology};

use crate::output::{self, say};
use crate::terminal;

/// The subcommands of `decoupled queues`.
#[derive(Clone, Debug, Subcommand)]
#[expect(missing_docs, reason = "clap would show it as the help of the whole group")]
pub enum Queues {
    /// Lists the queues, in the order in which a request passes through them
    List {
        /// Print them as JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        nats: NatsSettings,
    },
    /// Pauses a queue: the broker delivers none of its messages, and accepts more
    ///
    /// Workers finish the messages in flight. The pause survives a restart of the broker. It ends by itself, so that a
    /// forgotten pause does no harm.
    Pause {
        /// Name of the queue
        #[arg(value_parser = queues::named)]
        queue: Queue,
        /// Duration of the pause
        #[arg(long = "for", default_value = "1h", value_parser = workqueue::above_zero, value_name = "TIME")]
        time: Duration,
        #[command(flatten)]
        nats: NatsSettings,
    },
    /// Resumes a paused queue
    Resume {
        /// Name of the queue
        #[arg(value_parser = queues::named)]
        queue: Queue,
        #[command(flatten)]
        nats: NatsSettings,
    },
}

pub(crate) async fn run(command: &Queues) -> anyhow::Result<()> {
    let (Queues::List { nats, .. } | Queues::Pause { nats, .. } | Queues::Resume { nats, .. }) =
        command;
    let connection = terminal::connect(nats, "decoupled queues").await?;
    let nats = connection.context();
    match command {
        Queues::List { json, .. } => {
            let mut rows = Rows(Vec::new());
            for queue in queues::ALL {
                rows.0.push(observe::queue(&connection, queue).await?.into());
            }
            output::print(&rows, *json).await
        }
        Queues::Pause { queue, time, .. } => {
            // A missing queue has an error of its own.
            topology::stream_state(nats, queue.stream).await?;
            terminal::compare_clocks(nats, queue.stream).await?;
            let until = workqueue::now().checked_add(*time).ok();
            let until = until.context("--for is too long: there is no such date")?;
            let paused = topology::pause(nats, *queue, until).await?;
            ensure!(
                paused,
                "the broker's clock is past {until} already: {} is not paused",
                queue.stream
            );
            say(format_args!("{} is paused until {until}.", queue.stream)).await
        }
        Queues::Resume { queue, .. } => {
            topology::resume(nats, *queue).await?;
            say(format_args!("{} is resumed.", queue.stream)).await
        }
    }
}

/// The queues, a line each.
#[derive(Serialize)]
struct Rows(Vec<Row>);

/// The content of one queue.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    waiting: u64,
    in_flight: u64,
    scheduled: u64,
    limit: Option<u64>,
    bytes: u64,
    max_bytes: Option<u64>,
    paused_until: Option<Timestamp>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lanes: Vec<LaneSnapshot>,
}

impl From<QueueSnapshot> for Row {
    fn from(queue: QueueSnapshot) -> Self {
        let QueueSnapshot { name, waiting, in_flight, limit, bytes, max_bytes, .. } = queue;
        let QueueSnapshot { scheduled, paused_until, lanes, .. } = queue;
        Self { name, waiting, in_flight, scheduled, limit, bytes, max_bytes, paused_until, lanes }
    }
}

impl Display for Rows {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:<16} {:>9} {:>9} {:>9}", "queue", "waiting", "in flight", "limit")?;
        for row in &self.0 {
            let Row {
                name, waiting, in_flight, limit, bytes, max_bytes, paused_until, lanes, ..
            } = row;
            let limit = limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string());
            write!(formatter, "\n{name:<16} {waiting:>9} {in_flight:>9} {limit:>9}")?;
            if let Some(most) = max_bytes {
                write!(formatter, "  {bytes} of {most} bytes")?;
            }
            if row.scheduled > 0 {
                write!(formatter, "  {} not due yet", row.scheduled)?;
            }
            if let Some(until) = paused_until {
                write!(formatter, "  paused until {until}")?;
            }
            for LaneSnapshot { priority, waiting, in_flight } in lanes {
                write!(formatter, "\n  {:<14} {waiting:>9} {in_flight:>9}", priority.as_str())?;
            }
        }
        Ok(())
    }
}
