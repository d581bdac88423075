//! The command line: which command to run, and how it ends.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Parser, Subcommand};

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
    /// With --watch it goes on doing so until it is stopped. One such process beside a deployment is
    /// enough, and no service needs the right to create, change or delete anything then. The limits that
    /// it is given are those that hold: give it the ones of the deployment.
    Declare(DeclareSettings),
    /// Reads the facts and the queues of a deployment, and gives the verdict
    ///
    /// Exit status 0 if nothing was lost and nothing doubled, 1 if something was, 2 if there is no
    /// verdict, 3 if the records cannot tell, because a store of the broker was replaced or facts are gone.
    /// Changes nothing.
    Audit(AuditSettings),
    /// Shows the dead letters and their reasons, replays or discards them
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Shows the queues, pauses one, or lets it go on
    #[command(subcommand)]
    Queues(Queues),
    /// Shows what is asked for again and again, sets it, or removes it
    #[command(subcommand)]
    Schedules(Schedules),
    /// Lists requests, shows one, submits one, or cancels one
    #[command(subcommand)]
    Requests(Requests),
    /// Takes all that is on the broker into files, with both sides stopped
    ///
    /// The queues with their consumers, the facts and the dead letters: a file for each stream, and a
    /// manifest, which is written last; without it a directory is no backup. They cannot all be taken
    /// at one moment, so it refuses while a side waits for messages, and fails if anything has
    /// changed by the time it ends. Changes nothing on the broker. Exit status 0 if the backup is
    /// whole, 2 if there is none.
    Backup(BackupSettings),
    /// Puts a backup on a broker that has none of it
    ///
    /// Compares all files with the manifest first, and refuses where one of the streams is there
    /// already. With --replicas the backup of a single broker becomes the streams of a cluster.
    /// Ends when each stream and consumer is there as it was backed up, on as many brokers as are to
    /// keep it. Start both sides only then, and ask `decoupled audit` for the verdict. Exit status 0
    /// if all is restored, 2 if not.
    Restore(RestoreSettings),
    /// Asks a `declare --watch` that runs whether it is ready
    ///
    /// Exit status 0 if it is, 1 if it is not, with the reason. Meant for where there is neither a shell
    /// nor curl.
    Healthcheck {
        /// Address of its admin endpoint
        #[arg(long, env, value_parser = workqueue::address, value_name = "HOST:PORT")]
        admin_addr: SocketAddr,
    },
}

/// Runs a command to its end, or until a signal ends it, and gives the exit status.
///
/// # Errors
///
/// Where the command fails, or a signal came first.
pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    if let CliCommand::Declare(settings) = &cli.command
        && settings.watch
    {
        // It stops in order, and logs as a service does.
        let _logs = workqueue::init_telemetry(&settings.watching.telemetry)?;
        declare::run(settings).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let _logs = terminal::init_logs()?;
    let mut signals = StopSignals::listen()?;
    tokio::select! {
        done = carry_out(cli.command) => done,
        (signal, _) = signals.next() => bail!("{signal}: ended at once, before it was done"),
    }
}

async fn carry_out(command: CliCommand) -> anyhow::Result<ExitCode> {
    match command {
        CliCommand::Declare(settings) => declare::run(&settings).await?,
        CliCommand::Audit(settings) => return audit::run(&settings).await,
        CliCommand::DeadLetters(command) => dead_letters::run(&command).await?,
        CliCommand::Queues(command) => queues::run(&command).await?,
        CliCommand::Schedules(command) => schedules::run(&command).await?,
        CliCommand::Requests(command) => requests::run(command).await?,
        CliCommand::Backup(settings) => backup::run_backup(&settings).await?,
        CliCommand::Restore(settings) => backup::run_restore(&settings).await?,
        CliCommand::Healthcheck { admin_addr } => {
            if let Err(reason) = workqueue::healthcheck(admin_addr).await {
                terminal::tell(reason);
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
