//! The command line: which command to run, and how it ends.

use std::net::SocketAddr;
use std::pin::pin;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Parser, Subcommand};
use tokio_util::sync::CancellationToken;

use crate::audit::AuditSettings;
use crate::backup::{BackupSettings, RestoreSettings};
use crate::dead_letters::DeadLetters;
use crate::declare::DeclareSettings;
use crate::queues::Queues;
use crate::requests::Requests;
use crate::schedules::Schedules;
use crate::terminal;
use crate::{audit, backup, dead_letters, declare, queues, requests, schedules};
use workqueue::StopSignals;

/// Declares, audits, backs up and repairs a deployment.
#[derive(Debug, Parser)]
#[command(name = "decoupled", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Creates the streams, buckets and consumers, or changes their limits in place
    ///
    /// With --watch it keeps them as declared until it is stopped. A deployment needs one such process; its services
    /// then need no permission to create, change or delete streams. It enforces its own limits, so set those of the
    /// deployment.
    Declare(DeclareSettings),
    /// Reads the facts and the queues of a deployment, and prints the verdict: lost and doubled requests
    ///
    /// Changes nothing. Exit status: 0 if nothing was lost or doubled; 1 if some requests were; 2 if the audit failed;
    /// 3 if it cannot tell, because a store of the broker was replaced or facts are gone.
    Audit(AuditSettings),
    /// Lists dead letters with their reasons, shows one, replays or discards them
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Lists the queues, pauses one, or resumes it
    #[command(subcommand)]
    Queues(Queues),
    /// Lists the recurring schedules, sets one, or removes it
    #[command(subcommand)]
    Schedules(Schedules),
    /// Lists requests, shows one, submits one, or cancels one
    #[command(subcommand)]
    Requests(Requests),
    /// Backs up all streams of a deployment whose two services are stopped
    ///
    /// Writes a file for each stream: the queues with their consumers, the facts and the dead letters. Writes the
    /// manifest last; a directory without it is not a backup. It cannot read all streams at one moment, so it fails if
    /// a service waits for messages, or if a stream changes before the end. Changes nothing on the broker. Exit
    /// status: 0 if the backup is complete, 2 otherwise.
    Backup(BackupSettings),
    /// Restores a backup on a broker that has none of its streams
    ///
    /// Compares all files with the manifest first, and fails if one of the streams exists. With --replicas it restores
    /// the backup of a single broker to a cluster. Ends when all messages and consumers are there, on all brokers that
    /// have to keep them. Start both services after that, and run `decoupled audit`. Exit status: 0 if
    /// everything is restored, 2 otherwise.
    Restore(RestoreSettings),
    /// Checks whether a running `declare --watch` is ready
    ///
    /// Exit status: 0 if it is ready, 1 with the reason if it is not. Meant for images without a shell and curl.
    Healthcheck {
        /// Address of the admin endpoint
        #[arg(long, env, value_parser = workqueue::address, value_name = "HOST:PORT")]
        admin_addr: SocketAddr,
    },
}

/// Runs a command to its end, or until a signal ends it, and returns the exit status.
///
/// # Errors
///
/// If the command fails, or a signal comes first.
pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    if let CliCommand::Declare(settings) = &cli.command
        && settings.watch
    {
        // It stops gracefully, and logs, like a service.
        let _logs = workqueue::init_telemetry(&settings.watching.telemetry)?;
        declare::run(settings).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let _logs = terminal::init_logs()?;
    let mut signals = StopSignals::listen()?;
    let stop = CancellationToken::new();
    let is_restore = matches!(cli.command, CliCommand::Restore(_));
    let mut done = pin!(carry_out(cli.command, &stop));
    loop {
        tokio::select! {
            done = &mut done => return done,
            (signal, _) = signals.next() => {
                if !is_restore || stop.is_cancelled() {
                    bail!("{signal}: ended at once, before it was done");
                }
                // It ends with an error that names the restored streams.
                stop.cancel();
            }
        }
    }
}

async fn carry_out(command: CliCommand, stop: &CancellationToken) -> anyhow::Result<ExitCode> {
    match command {
        CliCommand::Declare(settings) => declare::run(&settings).await?,
        CliCommand::Audit(settings) => return audit::run(&settings).await,
        CliCommand::DeadLetters(command) => dead_letters::run(&command).await?,
        CliCommand::Queues(command) => queues::run(&command).await?,
        CliCommand::Schedules(command) => schedules::run(&command).await?,
        CliCommand::Requests(command) => requests::run(command).await?,
        CliCommand::Backup(settings) => backup::run_backup(&settings).await?,
        CliCommand::Restore(settings) => backup::run_restore(&settings, stop).await?,
        CliCommand::Healthcheck { admin_addr } => {
            if let Err(reason) = workqueue::healthcheck(admin_addr).await {
                terminal::tell(reason);
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_valid() {
        Cli::command().debug_assert();
    }

    #[test]
    fn settings_that_only_a_watch_reads_have_its_heading() {
        let cli = Cli::command();
        let declare = cli.find_subcommand("declare").unwrap();
        for name in ["admin_addr", "rust_log", "log_format", "otel_exporter_otlp_endpoint"] {
            let setting = declare.get_arguments().find(|it| it.get_id() == name).unwrap();
            assert_eq!(setting.get_help_heading(), Some("With --watch"), "{name}");
        }
    }
}
