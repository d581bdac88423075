//! `decoupled dead-letters`: lists, shows, replays and discards dead letters.

use crate::output::say;
use crate::terminal::{self, DEADLINE, TOO_LATE};
use anyhow::ensure;
use async_nats::jetstream::Context;
use clap::{Args, Subcommand};
use contract::queues;
use tokio::time::timeout;
use workqueue::dead_letters::{DeadLetter, Reason, STREAM, Selection, list, page};
use workqueue::topology::{self, Limits};
use workqueue::{Connection, NatsSettings, Producer, Queue, chain, default_instance};

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
        #[command(flatten)]
        limits: Limits,
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
    /// Calls `act` with the selected dead letters up to the `last` sequence, a page at a time. `act` returns the number
    /// of those that it kept. Returns the number of all, and of those that were kept.
    async fn each(
        &self,
        nats: &Context,
        last: u64,
        act: impl AsyncFn(&[DeadLetter]) -> anyhow::Result<usize>,
    ) -> anyhow::Result<(usize, usize)> {
        if let Some(id) = &self.id {
            let letters = named(nats, id).await?;
            return Ok((letters.len(), act(&letters).await?));
        }
        let selection = Selection { reason: self.reason, queue: self.queue };
        let (mut all, mut kept) = (0, 0);
        each_page(nats, &selection, last, async |letters| {
            all += letters.len();
            kept += act(letters).await?;
            Ok(())
        })
        .await?;
        if all == 0 {
            say("There are no such dead letters.").await?;
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
    // A missing stream has an error of its own. A replayed message may become a dead letter again, which is not meant.
    let last = topology::stream_state(nats, STREAM).await?.state.last_sequence;
    match command {
        DeadLetters::List { json: true, .. } => list_as_json(nats, last).await?,
        DeadLetters::List { .. } => {
            let mut is_empty = true;
            each_page(nats, &Selection::default(), last, async |letters| {
                is_empty &= letters.is_empty();
                for letter in letters {
                    say(letter).await?;
                }
                Ok(())
            })
            .await?;
            if is_empty {
                say("There are no dead letters.").await?;
            }
        }
        DeadLetters::Show { id, .. } => {
            for letter in named(nats, id).await? {
                say(letter.full()).await?;
            }
        }
        DeadLetters::Replay { chosen, .. } => {
            let replaying = async |letters: &[DeadLetter]| replay(&connection, letters).await;
            let (all, kept) = chosen.each(nats, last, replaying).await?;
            ensure!(kept == 0, "{kept} of {all} could not be replayed");
        }
        DeadLetters::Discard { chosen, limits, .. } => {
            terminal::compare_clocks(nats, STREAM).await?;
            let producer = terminal::producer(&connection, *limits);
            let discarding =
                async |letters: &[DeadLetter]| discard(&producer, &connection, letters).await;
            let (all, kept) = chosen.each(nats, last, discarding).await?;
            if all > 0 {
                say(format_args!("Discarded {} of {all}.", all - kept)).await?;
            }
            ensure!(kept == 0, "{kept} of {all} could not be discarded");
        }
    }
    Ok(())
}

/// Calls `act` with the dead letters of a selection up to the `last` sequence, a page at a time, because all of them
/// may need too much memory.
async fn each_page(
    nats: &Context,
    selection: &Selection,
    last: u64,
    mut act: impl AsyncFnMut(&[DeadLetter]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut next = Some(1);
    while let Some(from) = next.filter(|from| *from <= last) {
        let mut page = page(nats, selection, from, AT_A_TIME).await?;
        page.letters.retain(|letter| letter.sequence <= last);
        act(&page.letters).await?;
        next = page.next;
    }
    Ok(())
}

/// Prints an array with the dead letters, each once the next one is read, because a comma may follow it.
async fn list_as_json(nats: &Context, last: u64) -> anyhow::Result<()> {
    let mut held: Option<String> = None;
    each_page(nats, &Selection::default(), last, async |letters| {
        for letter in letters {
            let text = serde_json::to_string_pretty(letter)?.replace('\n', "\n  ");
            match held.replace(text) {
                Some(before) => say(format_args!("  {before},")).await?,
                None => say("[").await?,
            }
        }
        Ok(())
    })
    .await?;
    match held {
        Some(text) => say(format_args!("  {text}\n]")).await,
        None => say("[]").await,
    }
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
                None => say(format_args!("replayed {letter}")).await?,
                Some(missing) => {
                    let missing = missing.escape_debug();
                    say(format_args!("replayed {letter}, without its headers {missing}")).await?;
                }
            },
            Err(error) => {
                kept += 1;
                say(format_args!("kept     {letter}: {}", chain(&error))).await?;
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
        let discarding = timeout(DEADLINE, requestor::discard(producer, connection, letter, &by));
        let what =
            format!("waiting for the broker to confirm that {} is discarded", letter.sequence);
        let why = match terminal::tell_unless_soon(what, discarding).await {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => chain(&error),
            Err(_too_late) => TOO_LATE.to_owned(),
        };
        kept += 1;
        say(format_args!("kept     {letter}: {why}")).await?;
        ensure!(connection.is_connected(), "the broker is away");
    }
    Ok(kept)
}
