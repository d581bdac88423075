//! A worker: fetches web pages, and counts their words.

use std::net::IpAddr;
use std::num::NonZeroU32;

use clap::{ArgAction, Parser};
use word_count::{Counter, is_public};
use workqueue::{Command, Service};

/// Fetches web pages, and counts their words
#[derive(Parser)]
#[command(version, max_term_width = 100, disable_help_subcommand = true)]
// A job may hold a page of 5 MB.
#[command(mut_arg("concurrency", |arg| arg.default_value("32")))]
struct Settings {
    /// Whether pages may be at addresses that are not public: for a class, with a web server of its own
    #[arg(long, env, default_value_t = false, action = ArgAction::Set, value_name = "BOOL")]
    allow_private: bool,
    /// The most pages a second that all workers together fetch from one host
    #[arg(long, env, default_value = "1", value_parser = workqueue::number::<NonZeroU32>(NonZeroU32::MIN..), value_name = "NUMBER")]
    host_rate: NonZeroU32,
    #[command(flatten)]
    service: workqueue::Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Settings { allow_private, host_rate, service, command } = workqueue::parse(&[]);
    if command == Some(Command::Healthcheck) {
        return Ok(workqueue::healthcheck(service.admin_addr).await?);
    }
    let _logs = workqueue::init_telemetry(&service.telemetry)?;
    let stop = workqueue::stop_on_signals()?;
    let is_allowed: fn(IpAddr) -> bool = if allow_private { |_| true } else { is_public };
    let worker = Service::new("word_counter").consume(Counter::new(is_allowed, host_rate));
    Ok(worker.run(&service, &stop).await?)
}
