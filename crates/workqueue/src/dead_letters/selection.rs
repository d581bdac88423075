//! Reads dead letters in pages, at a cost that does not grow with their number.

use std::collections::BTreeMap;

use async_nats::jetstream::Context;

use super::{DeadLetter, Reason, STREAM, SUBJECTS, subject};
use crate::batch;
use crate::queue::Queue;
use crate::reading::ReadStreamError;

/// The most dead letters that are read for one page.
pub const MOST_READ: usize = 10_000;

/// How many to request from the broker at a time. It sends fewer if they are large.
const AT_A_TIME: usize = 500;

/// The most requests to the broker for one page. Each returns at most half a megabyte, or one message.
const MOST_QUESTIONS: usize = 40;

/// A filter for dead letters. By default it selects all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Those with this reason.
    pub reason: Option<Reason>,
    /// Those from this queue.
    pub queue: Option<Queue>,
}

impl Selection {
    /// Whether it selects this dead letter.
    #[must_use]
    pub fn has(&self, letter: &DeadLetter) -> bool {
        self.reason.is_none_or(|reason| reason == letter.kind())
            && self.queue.is_none_or(|queue| queue.stream == letter.stream)
    }

    fn subjects(&self) -> String {
        self.queue.map_or_else(|| SUBJECTS.to_owned(), |queue| subject(queue.stream, ">"))
    }
}

/// A page of dead letters, and the beginning of the next one.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The dead letters, the oldest first.
    pub letters: Vec<DeadLetter>,
    /// The sequence from which on to read the next page, unless this is the last.
    pub next: Option<u64>,
}

/// At most `count` dead letters of a selection, from this sequence on. There are fewer if they are large, or if the
/// [`MOST_READ`] that it reads have no more.
///
/// # Errors
///
/// If the broker does not answer, or has no dead letters' stream.
pub async fn page(
    nats: &Context,
    selection: &Selection,
    from: u64,
    count: usize,
) -> Result<Page, ReadStreamError> {
    let mut letters = Vec::new();
    // Each that is read is one of the page, unless it is judged by its reason.
    let at_a_time = if selection.reason.is_none() { count.min(AT_A_TIME) } else { AT_A_TIME };
    let next = read(nats, &selection.subjects(), from, at_a_time, |letter| {
        if selection.has(&letter) {
            letters.push(letter);
        }
        letters.len() < count
    })
    .await?;
    Ok(Page { letters, next })
}

/// The number of dead letters with each reason, among the oldest [`MOST_READ`], or fewer if they are large.
///
/// # Errors
///
/// As [`page`].
pub async fn count(nats: &Context) -> Result<BTreeMap<Reason, u64>, ReadStreamError> {
    let mut counts = BTreeMap::new();
    read(nats, SUBJECTS, 1, AT_A_TIME, |letter| {
        *counts.entry(letter.kind()).or_default() += 1;
        true
    })
    .await?;
    Ok(counts)
}

/// Calls `show` with dead letters from this sequence on, until it wants no more, or the limit for one page is reached.
/// Returns the sequence to continue from, unless there are no more.
async fn read(
    nats: &Context,
    subjects: &str,
    mut from: u64,
    at_a_time: usize,
    mut show: impl FnMut(DeadLetter) -> bool,
) -> Result<Option<u64>, ReadStreamError> {
    let mut count = 0;
    for _ in 0..MOST_QUESTIONS {
        let (letters, left) = batch::from_sequence(nats, STREAM, subjects, from, at_a_time).await?;
        let mut behind = letters.len() as u64 + left;
        for letter in letters {
            from = letter.sequence + 1;
            behind -= 1;
            count += 1;
            if !show(letter.into()) || count == MOST_READ {
                return Ok((behind > 0).then_some(from));
            }
        }
        if left == 0 {
            return Ok(None);
        }
    }
    Ok(Some(from))
}
