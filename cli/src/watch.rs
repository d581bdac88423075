//! `decoupled declare --watch`: keeps a deployment as it should be, from one place.
//!
//! Creates what is missing, changes limits that differ in place, and moves the messages that nobody can settle,
//! again and again. With it, no service needs the right to do any of that.

use std::fmt;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use contract::queues;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use workqueue::sweeper::Sweeper;
use workqueue::topology::{self, Declared, Difference, Limits};
use workqueue::{Connection, LogOnce, NatsSettings, Report, TelemetrySettings};

/// How often to look. A round that a lost connection interrupts goes on as soon as there is another.
const TICK: Duration = Duration::from_secs(2);

/// Settings of `decoupled declare --watch`.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "With --watch")]
pub struct WatchSettings {
    /// Address of the admin endpoint: /livez, /readyz and /metrics. With port 0 it takes a free
    /// port, and logs which
    #[arg(long, env, default_value = "127.0.0.1:0", value_parser = workqueue::address, value_name = "HOST:PORT")]
    admin_addr: SocketAddr,

    /// Name of this process, in dead letters and logs [default: the host's name and the process id]
    #[arg(long, env, default_value_t = workqueue::default_instance(), hide_default_value = true, value_parser = NonEmptyStringValueParser::new(), value_name = "NAME")]
    instance: String,

    #[command(flatten)]
    pub(crate) telemetry: TelemetrySettings,
}

/// Watches until `stop`.
///
/// # Errors
///
/// Where an address cannot be listened on, or there is no use in trying to connect.
pub async fn watch(
    settings: &WatchSettings,
    nats: &NatsSettings,
    limits: &Limits,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let WatchSettings { admin_addr, instance, .. } = settings;
    // Ends the admin endpoint as well, however this ends.
    let stop = stop.child_token();
    let _end = stop.clone().drop_guard();
    let status = Arc::new(Status::new(stop.clone()));
    let admin = workqueue::serve_admin(*admin_addr, status.clone(), stop.clone())
        .await
        .with_context(|| format!("ADMIN_ADDR is {admin_addr}, which cannot be listened on"))?;
    info!(version = env!("CARGO_PKG_VERSION"), instance, "starting declare --watch");
    let watched = watch_connected(instance, nats, limits, &status);
    // In this task, so that a panic of the endpoint is one of the program.
    tokio::select! {
        watched = stop.run_until_cancelled(watched) => watched.unwrap_or(Ok(()))?,
        () = admin => {}
    }
    info!("stopped");
    Ok(())
}

async fn watch_connected(
    instance: &str,
    nats: &NatsSettings,
    limits: &Limits,
    status: &Arc<Status>,
) -> anyhow::Result<()> {
    let report = {
        let status = Arc::clone(status);
        move |connected| {
            status.connected.set(i64::from(connected));
        }
    };
    let connection =
        Connection::establish_patiently(nats, &format!("declare {instance}"), report).await?;
    let sweepers = queues::ALL.map(|queue| Sweeper::new(&connection, queue, instance));
    tokio::select! {
        never = look_again_and_again(&connection, limits, sweepers, status) => match never {},
        ended = connection.ended() => Err(ended.into()),
    }
}

async fn look_again_and_again(
    connection: &Connection,
    limits: &Limits,
    mut sweepers: [Sweeper; queues::ALL.len()],
    status: &Status,
) -> std::convert::Infallible {
    let (mut logged, mut paused) = (LogOnce::default(), LogOnce::default());
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let mut done = Declared::default();
        let adjusted = {
            let topology = contract::topology();
            let (nats, known) = (connection.context(), connection.known());
            let adjust = topology::adjust(nats, known, &topology, limits, &mut done);
            connection.ask(pin!(adjust)).await
        };
        for object in &done.created {
            info!(object, "created");
        }
        for Difference { object, setting, is, should_be } in &done.adjusted {
            info!(object, setting, from = is, to = should_be, "changed");
        }
        if done.paused.is_empty() {
            paused.forget();
        }
        for consumer in done.paused.iter().filter(|consumer| paused.is_first(consumer)) {
            warn!("{consumer}; nothing is delivered until then");
        }
        status.changes.inc_by((done.created.len() + done.adjusted.len()) as u64);
        match adjusted {
            Some(Ok(())) => {
                logged.forget();
                status.set_problem(None);
            }
            Some(Err(error)) => {
                if logged.is_first(&error) {
                    warn!(%error, "the topology is not as it should be; trying again");
                }
                status.set_problem(Some(error.to_string()));
            }
            // The connection was lost meanwhile, and is there again.
            None => continue,
        }
        for sweeper in &mut sweepers {
            let swept = sweeper.sweep().await;
            status.dead_lettered.inc_by(swept.dead_lettered);
            status.requeued.inc_by(swept.requeued);
        }
    }
}

/// The admin endpoint's report.
struct Status {
    stop: CancellationToken,
    problem: Mutex<Option<String>>,
    registry: Registry,
    connected: Gauge,
    changes: Counter,
    dead_lettered: Counter,
    requeued: Counter,
}

impl Status {
    fn new(stop: CancellationToken) -> Self {
        let mut registry = Registry::with_prefix("decoupled");
        let (connected, changes) = (Gauge::default(), Counter::default());
        let (dead_lettered, requeued) = (Counter::default(), Counter::default());
        registry.register("connected", "1 while there is a connection", connected.clone());
        registry.register(
            "topology_changes",
            "Objects created and limits changed",
            changes.clone(),
        );
        let help = "Messages that no client can read, moved to the dead letters";
        registry.register("unreadable_messages", help, dead_lettered.clone());
        let help =
            "Messages that the broker would not deliver again, moved to the end of their queue";
        registry.register("requeued_messages", help, requeued.clone());
        let problem = Mutex::new(Some("starting".to_owned()));
        Self { stop, problem, registry, connected, changes, dead_lettered, requeued }
    }

    fn set_problem(&self, problem: Option<String>) {
        let mut current = self.problem.lock().expect("nothing panics while it holds this lock");
        if problem.is_none() && current.is_some() {
            info!("ready");
        }
        *current = problem;
    }
}

impl Report for Status {
    fn not_ready(&self) -> Option<String> {
        if self.stop.is_cancelled() {
            return Some("stopping".to_owned());
        }
        if self.connected.get() == 0 {
            return Some("not connected to the broker".to_owned());
        }
        self.problem.lock().expect("nothing panics while it holds this lock").clone()
    }

    fn metrics(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
