//! The observations of each pair, from its output, and from the facts of the queue.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use contract::facts::Stored;
use contract::queues::Request;
use jiff::Timestamp;
use serde::Deserialize;
use workqueue::{Connection, JobId};

use super::figures::{CallerView, Seen};
use crate::stored_facts::each_fact;

/// A line of output of an example's requestor, for one request.
#[derive(Debug, Deserialize)]
struct Ended {
    asked_ms: f64,
    waited_ms: Option<f64>,
    /// The time for which the caller was blocked, if it did not wait for the end.
    held_ms: Option<f64>,
    outcome: String,
}

/// The last line of its output.
#[derive(Debug, Deserialize)]
struct Tally {
    asked: usize,
    /// Answers beyond the first, if there can be some.
    #[serde(default)]
    doubled: usize,
}

/// The observations of a pair of the examples, whose requestor started this long after the beginning.
pub(super) fn printed(requestor: &str, generator: &str, began: Duration) -> anyhow::Result<Seen> {
    let Some((before, tally)) = requestor.trim_end().rsplit_once('\n') else {
        // It was stopped before its first request.
        return Ok(Seen::default());
    };
    let what = || format!("a requestor has printed something else than its requests:\n{tally}");
    let tally: Tally = serde_json::from_str(tally).with_context(what)?;
    let mut requests = Vec::new();
    for line in before.lines() {
        let ended: Ended = serde_json::from_str(line)
            .with_context(|| format!("a requestor has printed something else: {line}"))?;
        let waited = ended.waited_ms.map(milliseconds);
        requests.push(CallerView {
            at: began + milliseconds(ended.asked_ms),
            held: ended.held_ms.map(milliseconds).or(waited).unwrap_or_default(),
            answered: waited.filter(|_| ended.outcome == "answered"),
        });
    }
    ensure!(
        requests.len() == tally.asked,
        "the requestor has reported {} of {} requests",
        requests.len(),
        tally.asked
    );
    Ok(Seen { requests, doubled: tally.doubled + made_again(generator) })
}

fn milliseconds(number: f64) -> Duration {
    Duration::try_from_secs_f64(number / 1000.0).unwrap_or_default()
}

/// The number of strings that were made for a request that had one already.
fn made_again(generator: &str) -> usize {
    let mut made: HashMap<&str, usize> = HashMap::new();
    for id in generator.lines().filter_map(|line| line.strip_prefix("made ")) {
        *made.entry(id).or_default() += 1;
    }
    made.values().map(|times| times - 1).sum()
}

/// The requests that the queue accepted, as their callers observed them. A caller is blocked until the broker has the
/// fact `requested`, and has its answer once the strings are stored.
pub(super) async fn facts(
    connection: &Connection,
    began: Timestamp,
) -> anyhow::Result<Vec<CallerView>> {
    let mut stored = HashMap::new();
    each_fact::<Stored>(connection, |fact, _| {
        if let Stored::Strings(strings) = fact {
            stored.insert(strings.id, strings.stored_at);
        }
    })
    .await?;
    let mut requests = Vec::new();
    each_fact(connection, |request, accepted| {
        let Request { id, requested_at, .. } = request;
        let answered: Option<&Timestamp> = stored.get::<JobId>(&id);
        requests.push(CallerView {
            at: between(began, requested_at),
            held: between(requested_at, accepted),
            answered: answered.map(|at| between(requested_at, *at)),
        });
    })
    .await?;
    Ok(requests)
}

/// The time from one moment to another; zero if the other is earlier.
fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn lines_of_a_coupled_requestor_are_its_requests() {
        let requestor = r#"{"id":"a","asked_ms":0.5,"waited_ms":51.0,"outcome":"answered"}
{"id":"b","asked_ms":50.0,"waited_ms":900.0,"outcome":"failed"}
{"asked":2,"answered":1,"failed":1}
"#;
        let generator =
            "listens on 127.0.0.1:1\nmade a\nmade b\nmade b\nlistens on 127.0.0.1:1\nmade b\n";
        let seen = printed(requestor, generator, MS).unwrap();
        let first = CallerView { at: MS * 3 / 2, held: MS * 51, answered: Some(MS * 51) };
        let second = CallerView { at: MS * 51, held: MS * 900, answered: None };
        assert_eq!((seen.requests, seen.doubled), (vec![first, second], 2));
    }

    #[test]
    fn caller_of_a_forgetful_requestor_is_not_blocked() {
        let requestor = r#"{"id":"a","asked_ms":1.0,"held_ms":0.0,"waited_ms":51.0,"outcome":"answered"}
{"id":"b","asked_ms":2.0,"held_ms":1.0,"waited_ms":null,"outcome":"lost"}
{"asked":2,"answered":1,"lost":1,"doubled":1}
"#;
        let seen = printed(requestor, "listening\nmade a\n", Duration::ZERO).unwrap();
        let first = CallerView { at: MS, held: Duration::ZERO, answered: Some(MS * 51) };
        let second = CallerView { at: MS * 2, held: MS, answered: None };
        assert_eq!((seen.requests, seen.doubled), (vec![first, second], 1));
    }

    #[test]
    fn requestor_that_reports_too_few_requests_is_noticed() {
        let requestor =
            "{\"asked_ms\":1.0,\"waited_ms\":1.0,\"outcome\":\"failed\"}\n{\"asked\":2}\n";
        assert!(printed(requestor, "", Duration::ZERO).is_err());
        assert!(printed("thread 'main' panicked\nat main.rs\n", "", Duration::ZERO).is_err());
        assert!(printed("", "", Duration::ZERO).unwrap().requests.is_empty());
    }
}
