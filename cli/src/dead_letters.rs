//! `decoupled dead-letters`: lists, shows, replays and discards dead letters.

use crate::terminal::{self, say};
use anyhow::ensure;
use async_nats::jetstream::Context;
use clap::{Args, Subcommand};
use contract::queues;
use workqueue::dead_letters::{DeadLetter, Reason, STREAM, Selection, list, page};
use workqueue::{
    Connection, NatsSettings, Producer, Queue, Settings, chain, default_instance, topology,
};

/// The most dead letters that are read at a time.
const AT_A_TIME: usize = 100;

/// The subcommands of `decoupled dead-letters`.
#[derive(Clone, Debug, Subcommand)]
#[expect(missing_docs, reason = "clap would show it as the help of the whole group")]
pub enum DeadLetters {
    /// Lists the dead letters, the oldest first
    List {
        /// Print them as JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        nats: NatsSettings,
    },
    /// Shows a dead letter in full, with its headers and its body
    Show {
        /// The id of a request, or the sequence of a dead letter
        id: String,
        #[command(flatten)]
        nats: NatsSettings,
    },
    /// Publishes the original messages again, and removes each dead letter once its original is stored
    Replay {
        #[command(flatten)]
        chosen: SelectionArgs,
        #[command(flatten)]
        nats: NatsSettings,
    },
    /// Removes dead letters for good, with their messages
    ///
    /// If an accepted request depends on one of them, the request is cancelled first. If the strings of the request are
    /// stored and not marked, the dead letter is kept: replay it.
    Discard {
        #[command(flatten)]
        chosen: SelectionArgs,
        #[command(flatten)]
        nats: NatsSettings,
    },
}

/// Which dead letters to replay or discard.
#[derive(Args, Clone, Debug)]
#[group(required = true)]
pub struct SelectionArgs {
    /// The id of a request, or the sequence of a dead letter
    #[arg(conflicts_with_all = ["all", "reason", "queue"])]
    id: Option<String>,
    /// All dead letters
    #[arg(long, conflicts_with_all = ["reason", "queue"])]
    all: bool,
    /// Those with this reason: malformed, unsupported, expired, failed, exhausted or other
    #[arg(long, value_name = "WORD")]
    reason: Option<Reason>,
    /// Those from this queue
    #[arg(long, value_parser = queues::named, value_name = "NAME")]
    queue: Option<Queue>,
}

impl SelectionArgs {
    /// Calls `act` with the selected dead letters, a page at a time, because all of them may need too much memory. `act`
    /// returns the number of those that it kept. Returns the number of all, and of those that were kept.
    async fn each(
        &self,
        nats: &Context,
        act: impl AsyncFn(&[DeadLetter]) -> anyhow::Result<usize>,
    ) -> anyhow::Result<(usize, usize)> {
        if let Some(id) = &self.id {
            let letters = named(nats, id).await?;
            return Ok((letters.len(), act(&letters).await?));
        }
        let selection = Selection { reason: self.reason, queue: self.queue };
        // A replayed message may become a dead letter again, which is not meant.
        let last = topology::stream_state(nats, STREAM).await?.state.last_sequence;
        let (mut all, mut kept, mut next) = (0, 0, Some(1));
        while let Some(from) = next.filter(|from| *from <= last) {
            let mut page = page(nats, &selection, from, AT_A_TIME).await?;
            page.letters.retain(|letter| letter.sequence <= last);
            all += page.letters.len();
            kept += act(&page.letters).await?;
            next = page.next;
        }
        if all == 0 {
            say(format_args!("There are no such dead letters."))?;
        }
        Ok((all, kept))
    }
}

pub(crate) async fn run(command: &DeadLetters) -> anyhow::Result<()> {
    let (DeadLetters::List { nats, .. }
    | DeadLetters::Show { nats, .. }
    | DeadLetters::Replay { nats, .. }
    | DeadLetters::Discard { nats, .. }) = command;
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
        DeadLetters::Replay { chosen, .. } => {
            let replaying = async |letters: &[DeadLetter]| replay(&connection, letters).await;
            let (all, kept) = chosen.each(nats, replaying).await?;
            ensure!(kept == 0, "{kept} of {all} could not be replayed");
        }
        DeadLetters::Discard { chosen, .. } => {
            let producer = terminal::producer(&connection, Settings::from_env().limits);
            let discarding =
                async |letters: &[DeadLetter]| discard(&producer, &connection, letters).await;
            let (all, kept) = chosen.each(nats, discarding).await?;
            if all > 0 {
                say(format_args!("Discarded {} of {all}.", all - kept))?;
            }
            ensure!(kept == 0, "{kept} of {all} could not be discarded");
        }
    }
    Ok(())
}

/// The dead letters with this id or sequence. Fails if there is none.
async fn named(nats: &Context, id: &str) -> anyhow::Result<Vec<DeadLetter>> {
    let letters = list(nats, Some(id)).await?;
    ensure!(!letters.is_empty(), "there is no dead letter {id}");
    Ok(letters)
}

/// Replays dead letters, and prints the result of each. Returns the number of those that are kept.
///
/// # Errors
///
/// If a result cannot be printed.
pub async fn replay(connection: &Connection, letters: &[DeadLetter]) -> anyhow::Result<usize> {
    let mut kept = 0;
    for letter in letters {
        match letter.replay(connection, &queues::ALL).await {
            Ok(()) => match letter.left_out() {
                None => say(format_args!("replayed {letter}"))?,
                Some(missing) => {
                    let missing = missing.escape_debug();
                    say(format_args!("replayed {letter}, without its headers {missing}"))?;
                }
            },
            Err(error) => {
                kept += 1;
                say(format_args!("kept     {letter}: {}", chain(&error)))?;
            }
        }
    }
    Ok(kept)
}

/// Discards dead letters. Returns the number of those that are kept, and prints why.
async fn discard(
    producer: &Producer,
    connection: &Connection,
    letters: &[DeadLetter],
) -> anyhow::Result<usize> {
    let mut kept = 0;
    for letter in letters {
        let by = default_instance();
        if let Err(error) = requestor::discard(producer, connection, letter, &by).await {
            kept += 1;
            say(format_args!("kept     {letter}: {}", chain(&error)))?;
        }
    }
    Ok(kept)
}
