//! `decoupled dead-letters`: lists, shows and replays dead letters.

use crate::terminal::{self, say};
use anyhow::{bail, ensure};
use async_nats::jetstream::Context;
use clap::Subcommand;
use contract::queues;
use workqueue::dead_letters::{DeadLetter, list};
use workqueue::{Connection, NatsSettings, chain};

/// The subcommands of `decoupled dead-letters`.
#[derive(Clone, Debug, Subcommand)]
#[expect(missing_docs, reason = "clap would show it as the help of the whole group")]
pub enum DeadLetters {
    /// Lists all of them, the oldest first
    List {
        /// Print them as JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        nats: NatsSettings,
    },
    /// Shows all that there is of those with this name, bytes and headers
    Show {
        /// The id of a request, or the sequence of a dead letter
        id: String,
        #[command(flatten)]
        nats: NatsSettings,
    },
    /// Publishes the originals again; removes each dead letter once that is confirmed as stored
    Replay {
        /// The id of a request, or the sequence of a dead letter
        #[arg(required_unless_present = "all")]
        id: Option<String>,
        /// Replay all of them
        #[arg(long, conflicts_with = "id")]
        all: bool,
        #[command(flatten)]
        nats: NatsSettings,
    },
}

pub(crate) async fn run(command: &DeadLetters) -> anyhow::Result<()> {
    let (DeadLetters::List { nats, .. }
    | DeadLetters::Show { nats, .. }
    | DeadLetters::Replay { nats, .. }) = command;
    let connection = terminal::connect(nats, "decoupled dead-letters").await?;
    let nats = connection.context();
    match command {
        DeadLetters::List { json, .. } => {
            let letters = list(nats, None).await?;
            if *json {
                say(serde_json::to_string_pretty(&letters)?)?;
            } else if letters.is_empty() {
                say(format_args!("There are no dead letters."))?;
            } else {
                for letter in letters {
                    say(format_args!("{letter}"))?;
                }
            }
        }
        DeadLetters::Show { id, .. } => {
            for letter in named(nats, id).await? {
                say(format_args!("{}", letter.full()))?;
            }
        }
        DeadLetters::Replay { id, .. } => {
            let letters = match id {
                Some(id) => named(nats, id).await?,
                None => list(nats, None).await?,
            };
            if letters.is_empty() {
                say(format_args!("There are no dead letters."))?;
            }
            replay_all(&connection, &letters).await?;
        }
    }
    Ok(())
}

/// The dead letters of this name, of which there has to be one.
async fn named(nats: &Context, id: &str) -> anyhow::Result<Vec<DeadLetter>> {
    let letters = list(nats, Some(id)).await?;
    ensure!(!letters.is_empty(), "there is no dead letter {id}");
    Ok(letters)
}

/// Replays several, and prints the result of each.
///
/// # Errors
///
/// Where not all could be replayed.
pub async fn replay_all(connection: &Connection, letters: &[DeadLetter]) -> anyhow::Result<()> {
    let mut kept = 0;
    for letter in letters {
        match letter.replay(connection, &queues::ALL).await {
            Ok(()) => match letter.left_out() {
                None => say(format_args!("replayed {letter}"))?,
                Some(missing) => {
                    say(format_args!("replayed {letter}, without its headers {missing}"))?;
                }
            },
            Err(error) => {
                kept += 1;
                say(format_args!("kept     {letter}: {}", chain(&error)))?;
            }
        }
    }
    if kept > 0 {
        bail!("{kept} of {} could not be replayed", letters.len());
    }
    Ok(())
}
