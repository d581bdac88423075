//! The front: accepts web pages whose words the workers count, and stores the results.

use std::net::SocketAddr;

use anyhow::Context;
use clap::Parser;
use tokio::net::TcpListener;
use word_count::{Recounts, Store, Task, router};
use workqueue::http::{ServerLimits, serve};
use workqueue::topology::Topology;
use workqueue::{Command, Job, Service};

/// Accepts web pages to count their words, and stores the results
#[derive(Parser)]
#[command(version, max_term_width = 100, disable_help_subcommand = true)]
struct Settings {
    /// Where the API and the page are
    #[arg(long, env, default_value = "127.0.0.1:8090", value_parser = workqueue::address, value_name = "HOST:PORT")]
    listen_addr: SocketAddr,
    /// The database of the results
    #[arg(long, env, default_value = "sqlite:word-count.db", value_name = "URL")]
    database_url: String,
    #[command(flatten)]
    service: workqueue::Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Settings { listen_addr, database_url, service, command } = workqueue::parse(&[]);
    if command == Some(Command::Healthcheck) {
        return Ok(workqueue::healthcheck(service.admin_addr).await?);
    }
    let _logs = workqueue::init_telemetry(&service.telemetry)?;
    let stop = workqueue::stop_on_signals()?;
    let store = Store::open(&database_url).await;
    let store = store.with_context(|| format!("cannot open DATABASE_URL {database_url}"))?;
    let listening = || format!("cannot listen on LISTEN_ADDR {listen_addr}");
    let listener = TcpListener::bind(listen_addr).await.with_context(listening)?;
    tracing::info!(addr = %listener.local_addr()?, "word-count listens");
    let front = Service::new("word_count").declares(&Topology::new(&[Task::QUEUE], &[]));
    let front = front.consume(store.clone()).consume(Recounts(store.clone()));
    let api = |running: workqueue::Running| {
        let stopping = running.stopping.clone();
        serve(listener, router(store, running), ServerLimits::OF_A_PAGE, stopping)
    };
    Ok(front.run_with(&service, &stop, api).await?)
}
