//! `decoupled requests`: lists requests; shows, submits or cancels one.

use std::fmt::{self, Display};
use std::time::Duration;

use anyhow::{anyhow, ensure};
use clap::Subcommand;
use contract::facts::{Cancellation, REQUESTED, Received, Stored};
use contract::queues::{DueRequest, LONGEST_DELAY, REQUESTS, Request, SCHEDULES};
use contract::{Amount, RequestStatus};
use jiff::Timestamp;
use observe::RequestHistory;
use observe::history::queues_with;
use observe::requests::{Filter, List};
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use workqueue::dead_letters::DeadLetter;
use workqueue::topology::{self, DeclareError, Limits, Topology};
use workqueue::{Connection, JobId, NatsSettings, Priority, Trace};

use crate::output::{self, say};
use crate::terminal::{self, DEADLINE, TOO_LATE};

/// How often to check whether a request has ended.
const POLL: Duration = Duration::from_millis(100);

/// The subcommands of `decoupled requests`.
#[derive(Clone, Debug, Subcommand)]
#[expect(missing_docs, reason = "clap would show it as the help of the whole group")]
pub enum Requests {
    /// Lists requests, the newest first
    List {
        /// Only requests with this status: queued, stored, received, cancelled, doubled or dead-lettered; or scheduled,
        /// which are in no other list
        #[arg(long, value_name = "STATUS")]
        status: Option<RequestStatus>,
        /// Only requests of this priority: high, normal or low
        #[arg(long, value_name = "PRIORITY")]
        priority: Option<Priority>,
        /// Only requests by an instance whose name contains this text
        #[arg(long, value_name = "NAME")]
        requested_by: Option<String>,
        /// How many requests to list. With a rare status the command may have to read all requests
        #[arg(long, default_value_t = 50, value_parser = workqueue::number::<usize>(1..), value_name = "NUMBER")]
        limit: usize,
        /// Print them as JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        nats: NatsSettings,
    },
    /// Shows a request: its facts, its dead letters, and the queues that it is in
    ///
    /// It is not found in a queue while it waits there as part of a bundle.
    Show {
        /// The id of the request
        id: JobId,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        nats: NatsSettings,
    },
    /// Cancels a request, unless its strings are stored, and shows its facts
    ///
    /// Fails if its strings were stored first.
    Cancel {
        /// The id of the request
        id: JobId,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        nats: NatsSettings,
        #[command(flatten)]
        limits: Limits,
    },
    /// Submits a request for strings, and prints its id once it is accepted
    ///
    /// Waits while the queue is full. Creates missing streams on the broker, as a requestor does.
    Submit {
        /// How many strings, 1 to 1000
        #[arg(long, default_value_t = 1, value_name = "NUMBER")]
        count: u32,
        /// How many characters each string has, 1 to 1024; at most 65536 in all
        #[arg(long, default_value_t = 64, value_name = "NUMBER")]
        length: u32,
        /// Priority of the request: high, normal or low
        #[arg(long, default_value_t, value_name = "PRIORITY")]
        priority: Priority,
        /// Time after which the request is due, such as 10m; at most 30 days
        #[arg(long, value_parser = workqueue::duration, value_name = "TIME", conflicts_with = "not_before")]
        delay: Option<Duration>,
        /// Time at which the request is due, such as 2026-11-21T07:00:00Z; if that has passed, it is due now
        #[arg(long, value_name = "TIME")]
        not_before: Option<Timestamp>,
        /// Time after which no generator handles the request, such as 2026-11-21T08:00:00Z
        #[arg(long, value_name = "TIME")]
        expires_at: Option<Timestamp>,
        /// Wait for the end of the request, at most for this time, and show it then
        #[arg(long, default_value = "0s", value_parser = workqueue::duration, value_name = "TIME")]
        wait: Duration,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        nats: NatsSettings,
        #[command(flatten)]
        limits: Limits,
    },
}

pub(crate) async fn run(command: Requests) -> anyhow::Result<()> {
    let (Requests::List { nats, .. }
    | Requests::Show { nats, .. }
    | Requests::Cancel { nats, .. }
    | Requests::Submit { nats, .. }) = &command;
    let connection = terminal::connect(nats, "decoupled requests").await?;
    match command {
        Requests::List { status, priority, requested_by, limit, json, .. } => {
            let filter = Filter { status, priority, requested_by };
            let listing = list(&connection, &filter, limit);
            let list = terminal::tell_unless_soon("reading the accepted requests", listing).await?;
            output::print(&list, json).await
        }
        Requests::Show { id, json, .. } => output::print(&show(&connection, id).await?, json).await,
        Requests::Cancel { id, json, limits, .. } => {
            let cancelling = cancel(&connection, limits, id);
            terminal::tell_unless_soon("waiting for the broker to confirm it", cancelling).await?;
            let shown = show(&connection, id).await?;
            output::print(&shown, json).await?;
            ensure!(shown.status == RequestStatus::Cancelled, "the request was not cancelled");
            Ok(())
        }
        Requests::Submit {
            count,
            length,
            priority,
            delay,
            not_before,
            expires_at,
            wait,
            json,
            limits,
            ..
        } => {
            let new = DueRequest::new(Amount::new(count, length)?, workqueue::default_instance());
            let new = DueRequest { priority, not_before, expires_at, ..new };
            let submitting = submit(&connection, limits, new, delay);
            let id = terminal::tell_unless_soon("waiting for the broker to confirm it", submitting);
            let id = id.await?;
            if wait.is_zero() && !json {
                return say(id).await;
            }
            // At once, because the wait may be ended, or fail.
            terminal::tell(id);
            let until = Instant::now() + wait;
            let ending = async {
                loop {
                    let shown = show(&connection, id).await;
                    let is_end = shown.as_ref().is_ok_and(|shown| shown.status.is_end());
                    if is_end || Instant::now() >= until {
                        return shown;
                    }
                    sleep(POLL).await;
                }
            };
            let what = format!("waiting for up to {wait:?} for the end of {id}");
            let shown = terminal::tell_unless_soon(what, ending).await?;
            output::print(&shown, json).await
        }
    }
}

async fn list(connection: &Connection, filter: &Filter, limit: usize) -> anyhow::Result<Rows> {
    let state = topology::stream_state(connection.context(), filter.stream()).await?.state;
    let (first, mut end) = (state.first_sequence.max(1), state.last_sequence + 1);
    let mut list = List::default();
    while end > first && list.requests.len() < limit {
        list.read(connection, filter, first..end, limit, || {}).await?;
        end = list.until.unwrap_or(first);
    }
    let row = |(request, status): (Request, RequestStatus)| {
        let Request { id, amount, priority, requestor, requested_at, .. } = request;
        let (count, length) = (amount.count(), amount.length());
        Row { id, status, count, length, priority, requested_at, requested_by: requestor }
    };
    Ok(Rows { requests: list.requests.into_iter().map(row).collect() })
}

/// Requests, a line each.
#[derive(Serialize)]
struct Rows {
    requests: Vec<Row>,
}

/// A request in a list.
#[derive(Serialize)]
struct Row {
    id: JobId,
    status: RequestStatus,
    count: u32,
    length: u32,
    priority: Priority,
    requested_at: Timestamp,
    requested_by: String,
}

impl Display for Rows {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.requests.is_empty() {
            return formatter.write_str("There are no such requests.");
        }
        for (number, row) in self.requests.iter().enumerate() {
            let Row { id, status, count, length, priority, requested_at, requested_by } = row;
            let end = if number == 0 { "" } else { "\n" };
            // A name may contain anything, so it is escaped before it reaches the terminal.
            let by = requested_by.escape_debug();
            write!(
                formatter,
                "{end}{id}  {:<13}  {:<6}  {requested_at}  {count} of {length}  by {by}",
                status.as_str(),
                priority.as_str()
            )?;
        }
        Ok(())
    }
}

async fn show(connection: &Connection, id: JobId) -> anyhow::Result<RequestReport> {
    let queues = queues_with(connection, id).await?;
    // After the queues: a request that has left them meanwhile is found here.
    let history = RequestHistory::read(connection, id).await?;
    let status = RequestStatus::from(history.state());
    let RequestHistory { requested, stored, received, dead_letters, scheduled } = history;
    let queues: Vec<&str> = queues.iter().map(|queue| queue.stream).collect();
    let is_known = requested.is_some() || stored.is_some() || received.is_some();
    ensure!(
        is_known || scheduled.is_some() || !queues.is_empty() || !dead_letters.is_empty(),
        "no request has the id {id}"
    );
    Ok(RequestReport { id, status, queues, scheduled, requested, stored, received, dead_letters })
}

/// The records of one request.
#[derive(Serialize)]
struct RequestReport {
    id: JobId,
    status: RequestStatus,
    queues: Vec<&'static str>,
    scheduled: Option<DueRequest>,
    requested: Option<Request>,
    stored: Option<Stored>,
    received: Option<Received>,
    dead_letters: Vec<DeadLetter>,
}

impl Display for RequestReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, status, queues, scheduled, requested, stored, received, dead_letters } =
            self;
        write!(formatter, "{id}  {status}")?;
        let mut step = |what: &str, at: &Timestamp, by: &str| {
            write!(formatter, "\n  {what:<11} {at}  by {}", by.escape_debug())
        };
        if let Some(DueRequest { not_before: Some(at), requestor, .. }) = scheduled {
            step("due", at, requestor)?;
        }
        if let Some(Request { requested_at, requestor, .. }) = requested {
            step("requested", requested_at, requestor)?;
        }
        match stored {
            Some(Stored::Strings(stored)) => {
                if let Some(started_at) = &stored.started_at {
                    step("started", started_at, &stored.generator)?;
                }
                step("generated", &stored.generated_at, &stored.generator)?;
                step("stored", &stored.stored_at, &stored.requestor)?;
            }
            Some(Stored::Cancelled(Cancellation { cancelled_at, cancelled_by, .. })) => {
                step("cancelled", cancelled_at, cancelled_by)?;
            }
            None => {}
        }
        if let Some(Received { received_at, marked_by, .. }) = received {
            step("received", received_at, marked_by)?;
        }
        let asked = requested.as_ref().map(|it| (it.amount, it.priority, it.expires_at));
        let asked = asked.or(scheduled.as_ref().map(|it| (it.amount, it.priority, it.expires_at)));
        if let Some((amount, priority, expires_at)) = asked {
            if let Some(at) = expires_at {
                write!(formatter, "\n  {:<11} {at}", "expires")?;
            }
            let (count, length) = (amount.count(), amount.length());
            write!(formatter, "\n  {:<11} {count} of {length} characters, {priority}", "asks for")?;
        }
        if !queues.is_empty() {
            write!(formatter, "\n  {:<11} {}", "in", queues.join(", "))?;
        }
        for letter in dead_letters {
            write!(formatter, "\n  {:<11} {letter}", "dead letter")?;
        }
        if let Some(Stored::Strings(stored)) = stored {
            for value in stored.values.as_slice() {
                write!(formatter, "\n  {:<11} {value}", "string")?;
            }
        }
        Ok(())
    }
}

/// Submits a request, after this delay if there is one, and returns its id once it is accepted.
async fn submit(
    connection: &Connection,
    limits: Limits,
    new: DueRequest,
    delay: Option<Duration>,
) -> anyhow::Result<JobId> {
    let (producer, nats) = (terminal::producer(connection, limits), connection.context());
    let is_later = delay.is_some() || new.not_before.is_some();
    let queue = if is_later { SCHEDULES } else { REQUESTS };
    // On an empty broker all streams are created, because an audit takes a stream that is younger than a request for
    // one in the place of a lost one. Elsewhere, the user need not be permitted to ask for all streams.
    let declared = match topology::stream_state(nats, queue.stream).await {
        Err(DeclareError::Refused { .. }) => contract::topology(),
        _ if is_later => Topology::new(&[SCHEDULES], &[]),
        _ => Topology::new(&[REQUESTS], &[REQUESTED]),
    };
    producer.declare(&declared).await?;
    terminal::compare_clocks(nats, queue.stream).await?;
    // From here on, the time is that of the broker.
    let now = workqueue::now();
    let not_before = match delay {
        Some(delay) => Some(now.saturating_add(delay)?),
        None => new.not_before,
    };
    let latest = now.saturating_add(LONGEST_DELAY)?;
    ensure!(not_before.is_none_or(|at| at <= latest), "a request may be at most 30 days ahead");
    // A request whose time has passed is due now.
    let new = DueRequest { not_before: not_before.filter(|at| *at > now), ..new };
    if let Some(at) = new.not_before {
        return Ok(producer.submit_later(&new, at).await?);
    }
    let request = Request { requested_at: workqueue::now(), ..new.request(JobId::new()) };
    let never = CancellationToken::new();
    requestor::submit(&producer, &request, &Trace::default(), &never).await?;
    Ok(request.id)
}

/// Cancels a request, if there is one.
async fn cancel(connection: &Connection, limits: Limits, id: JobId) -> anyhow::Result<()> {
    // A missing stream has an error of its own.
    topology::stream_state(connection.context(), REQUESTED.stream).await?;
    terminal::compare_clocks(connection.context(), REQUESTED.stream).await?;
    let history = RequestHistory::read(connection, id).await?;
    let not_asked = history.not_asked();
    ensure!(history.requested.is_some() || not_asked.is_some(), "no request has the id {id}");
    let producer = terminal::producer(connection, limits);
    let by = workqueue::default_instance();
    let cancelling = requestor::cancel(&producer, connection, id, not_asked, &by);
    timeout(DEADLINE, cancelling).await.map_err(|_too_late| anyhow!(TOO_LATE))??;
    Ok(())
}
