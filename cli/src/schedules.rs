//! `decoupled schedules`: lists the recurring schedules, sets one, and removes one.

use std::fmt::{self, Display};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{ArgGroup, Args, Subcommand};
use contract::Amount;
use contract::queues::{DueRequest, SCHEDULES};
use serde::Serialize;
use workqueue::topology::{self, Limits};
use workqueue::{
    NatsSettings, Priority, PublishError, Recurrence, Schedule, ScheduleOutcome, schedules,
};

use crate::output::{self, say};
use crate::terminal;

/// The subcommands of `decoupled schedules`.
#[derive(Clone, Debug, Subcommand)]
#[expect(missing_docs, reason = "clap would show it as the help of the whole group")]
pub enum Schedules {
    /// Lists the recurring schedules
    List {
        /// Print them as JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        nats: NatsSettings,
    },
    /// Sets a schedule, and replaces the one with the same name
    ///
    /// Each time that it is due, a requestor submits a request. If it falls due while the broker is away, it makes one
    /// request when the broker is back. Setting an equal schedule again changes nothing.
    Set(SetSettings),
    /// Removes a schedule. Its earlier requests are still handled
    Remove {
        /// Its name
        name: String,
        #[command(flatten)]
        nats: NatsSettings,
        #[command(flatten)]
        limits: Limits,
    },
}

/// Settings of `decoupled schedules set`.
#[derive(Args, Clone, Debug)]
#[command(group(ArgGroup::new("recurrence").required(true).args(["every", "cron"])))]
pub struct SetSettings {
    /// Its name: up to 64 characters of A-Z, a-z, 0-9, '-' and '_'
    name: String,
    /// Interval of the schedule, such as 10s, 5m or 24h: whole seconds
    #[arg(long, value_parser = workqueue::above_zero, value_name = "TIME")]
    every: Option<Duration>,
    /// Cron expression with six fields: second, minute, hour, day of the month, month, day of the week
    #[arg(long, value_name = "EXPRESSION")]
    cron: Option<String>,
    /// Time zone of the expression, such as Europe/Berlin [default: UTC]
    #[arg(long, value_name = "ZONE", requires = "cron", conflicts_with = "every")]
    time_zone: Option<String>,
    /// How many strings each request asks for
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// How many characters each string has
    #[arg(long, default_value_t = 64)]
    length: u32,
    /// Priority of the requests: high, normal or low
    #[arg(long, default_value_t)]
    priority: Priority,
    #[command(flatten)]
    nats: NatsSettings,
    #[command(flatten)]
    limits: Limits,
}

pub(crate) async fn run(command: &Schedules) -> anyhow::Result<()> {
    let (Schedules::List { nats, .. }
    | Schedules::Set(SetSettings { nats, .. })
    | Schedules::Remove { nats, .. }) = command;
    let connection = terminal::connect(nats, "decoupled schedules").await?;
    // A missing stream is an error here. It is not created.
    topology::stream_state(connection.context(), SCHEDULES.stream).await?;
    // The producer applies QUEUE_LIMIT, because the stream has no limit.
    let producer = |limits: &Limits| terminal::producer(&connection, *limits);
    match command {
        Schedules::List { json, .. } => {
            let found = schedules::list::<DueRequest>(&connection).await?;
            output::print(&Rows(found.into_iter().map(Row::from).collect()), *json).await
        }
        Schedules::Set(settings) => {
            let (name, recurrence, job) = settings.schedule()?;
            match producer(&settings.limits).schedule(name, &recurrence, &job).await {
                Ok(ScheduleOutcome::Created) => {
                    say(format_args!("{name} is set: {recurrence}.")).await
                }
                Ok(ScheduleOutcome::Replaced) => {
                    say(format_args!("{name} is replaced: {recurrence}.")).await
                }
                Ok(ScheduleOutcome::Unchanged) => say(format_args!("{name} is unchanged.")).await,
                // The reason names a valid value.
                Err(PublishError::Invalid(reason)) => bail!(reason),
                Err(error) => Err(error).with_context(|| format!("cannot set {name}")),
            }
        }
        Schedules::Remove { name, limits, .. } => {
            if producer(limits).unschedule::<DueRequest>(name).await? {
                return say(format_args!("{name} is removed.")).await;
            }
            bail!("no schedule has the name {name}")
        }
    }
}

impl SetSettings {
    fn schedule(&self) -> anyhow::Result<(&str, Recurrence, DueRequest)> {
        let Self { name, every, cron, time_zone, count, length, priority, .. } = self;
        let recurrence = match (every, cron) {
            (Some(interval), _) => Recurrence::Every(*interval),
            (None, Some(expression)) => {
                let (expression, time_zone) = (expression.clone(), time_zone.clone());
                Recurrence::Cron { expression, time_zone }
            }
            (None, None) => bail!("write --every or --cron"),
        };
        let due = DueRequest::of_schedule(name, Amount::new(*count, *length)?);
        Ok((name, recurrence, DueRequest { priority: *priority, ..due }))
    }
}

/// The schedules, a line each.
#[derive(Serialize)]
struct Rows(Vec<Row>);

/// One schedule.
#[derive(Serialize)]
struct Row {
    name: String,
    recurs: String,
    count: u32,
    length: u32,
    priority: Priority,
}

impl From<Schedule<DueRequest>> for Row {
    fn from(schedule: Schedule<DueRequest>) -> Self {
        let Schedule { name, recurrence, job: DueRequest { amount, priority, .. } } = schedule;
        let (count, length) = (amount.count(), amount.length());
        Self { name, recurs: recurrence.to_string(), count, length, priority }
    }
}

impl Display for Rows {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:<24} {:<36} asks for", "schedule", "recurs")?;
        for Row { name, recurs, count, length, priority } in &self.0 {
            write!(formatter, "\n{name:<24} {recurs:<36} {count} of {length}, {priority}")?;
        }
        Ok(())
    }
}
