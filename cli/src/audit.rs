//! `decoupled audit`: prints the lost and doubled requests of a deployment.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use observe::audit::{Verdict, audit};
use workqueue::NatsSettings;

use crate::{output, terminal};

/// Settings of `decoupled audit`.
#[derive(Args, Clone, Debug)]
pub struct AuditSettings {
    /// Wait until no request is pending, or one is known to be lost, at most for this time
    #[arg(long, default_value = "0s", value_parser = workqueue::duration, value_name = "TIME")]
    wait: Duration,

    /// Print the verdict as JSON, with the ids of the lost, doubled and dead-lettered requests
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    nats: NatsSettings,
}

pub(crate) async fn run(settings: &AuditSettings) -> anyhow::Result<ExitCode> {
    let connection = terminal::connect(&settings.nats, "decoupled audit").await?;
    let judging = audit(connection.context(), settings.wait);
    let verdict = if settings.wait.is_zero() {
        judging.await?
    } else {
        let what = format!("waiting for up to {:?} until nothing is pending", settings.wait);
        terminal::tell_unless_soon(what, judging).await?
    };
    output::print(&verdict, settings.json).await?;
    Ok(match verdict {
        verdict if verdict.is_clean() => ExitCode::SUCCESS,
        Verdict { cannot_tell: Some(_), .. } => ExitCode::from(3),
        _ => ExitCode::FAILURE,
    })
}
