//! Reads dead letters some at a time, at a cost that does not grow with their number.

use std::collections::BTreeMap;

use async_nats::jetstream::Context;

use super::{DeadLetter, Reason, STREAM, SUBJECTS, subject};
use crate::batch;
use crate::queue::Queue;
use crate::reading::ReadStreamError;

/// The most dead letters that are read for one answer.
pub const MOST_READ: usize = 10_000;

/// How many to ask the broker for at a time. It sends fewer where they are large.
const AT_A_TIME: usize = 500;

/// The most questions to the broker for one answer. Each brings half a megabyte at the most, or one message.
const MOST_QUESTIONS: usize = 40;

/// Which dead letters: all of them, unless it says more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Those of this reason.
    pub reason: Option<Reason>,
    /// Those from this queue.
    pub queue: Option<Queue>,
}

impl Selection {
    /// Whether it has this one.
    #[must_use]
    pub fn has(&self, letter: &DeadLetter) -> bool {
        self.reason.is_none_or(|reason| reason == letter.kind())
            && self.queue.is_none_or(|queue| queue.stream == letter.stream)
    }

    fn subjects(&self) -> String {
        self.queue.map_or_else(|| SUBJECTS.to_owned(), |queue| subject(queue.stream, ">"))
    }
}

/// Some dead letters, and where those begin that come after them.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The dead letters, the oldest first.
    pub letters: Vec<DeadLetter>,
    /// The sequence from which on to read the next page, unless this is the last.
    pub next: Option<u64>,
}

/// At most `count` dead letters of a selection, from this sequence on. There are fewer where they are large, or
/// where no more are among the [`MOST_READ`] that are read.
///
/// # Errors
///
/// Where the broker does not answer, or has no dead letters' stream.
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

/// How many dead letters there are of each reason, among the oldest [`MOST_READ`] or fewer where they are large.
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

/// Shows dead letters from this sequence on, for as long as `show` wants more, or as many as are read for one
/// answer. Returns where to go on, unless there are no more.
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
