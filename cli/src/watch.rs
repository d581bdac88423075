//! `decoupled declare --watch`: keeps the topology of a deployment as declared, with a [`Reconciler`].

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tracing::info;
use workqueue::topology::Limits;
use workqueue::{
    ConnectError, Connection, DroppedTelemetry, NatsSettings, Progress, Reconciler, Report,
    TelemetrySettings,
};

/// The heading of settings that only `declare --watch` reads.
const WITH_WATCH: &str = "With --watch";

/// Settings of `decoupled declare --watch`.
#[derive(Args, Clone, Debug)]
#[command(
    next_help_heading = WITH_WATCH,
    // Their own heading would be that of settings which the command always reads.
    mut_arg("rust_log", |arg| arg.help_heading(WITH_WATCH)),
    mut_arg("log_format", |arg| arg.help_heading(WITH_WATCH)),
    mut_arg("otel_exporter_otlp_endpoint", |arg| arg.help_heading(WITH_WATCH))
)]
pub struct WatchSettings {
    /// Address of the admin endpoint: /livez, /readyz and /metrics. With port 0 it takes a free
    /// port, and logs it
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
/// If it cannot listen on the address of the admin endpoint, or a retry of the connection does not help.
pub async fn watch(
    settings: &WatchSettings,
    nats: &NatsSettings,
    limits: &Limits,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let WatchSettings { admin_addr, instance, .. } = settings;
    // Also ends the admin endpoint when this function returns.
    let stop = stop.child_token();
    let _end = stop.clone().drop_guard();
    let status = Arc::new(Status::new(stop.clone()));
    let admin = workqueue::serve_admin(*admin_addr, status.clone(), stop.clone())
        .await
        .with_context(|| format!("cannot listen on {admin_addr} (ADMIN_ADDR)"))?;
    info!(version = env!("CARGO_PKG_VERSION"), instance, "starting declare --watch");
    let watched = watch_connected(instance, nats, limits, &status);
    // In this task, so that a panic of the endpoint ends the program.
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
        move |connected: Result<(), &ConnectError>| {
            status.connected.set(i64::from(connected.is_ok()));
        }
    };
    let connection =
        Connection::establish_patiently(nats, &format!("declare {instance}"), report).await?;
    let reconciler = Reconciler::new(&connection, contract::whole_topology(), *limits, instance);
    Err(reconciler.run(|progress| status.note(&progress)).await.into())
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
        registry.register_collector(Box::new(DroppedTelemetry));
        let problem = Mutex::new(Some("starting".to_owned()));
        Self { stop, problem, registry, connected, changes, dead_lettered, requeued }
    }

    fn note(&self, progress: &Progress<'_>) {
        self.changes.inc_by(progress.changes as u64);
        self.dead_lettered.inc_by(progress.swept.dead_lettered);
        self.requeued.inc_by(progress.swept.requeued);
        let problem = progress.problem.map(ToString::to_string);
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
