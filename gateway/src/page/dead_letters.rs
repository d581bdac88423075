//! Dead letters: a page of them at a time, and their replay, where that is allowed.

use std::sync::Arc;

use async_nats::jetstream::stream::State as StreamState;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::Uri;
use axum::response::Response;
use contract::queues;
use observe::snapshot::shortened;
use serde::Deserialize;
use serde_json::{Value, json};
use workqueue::dead_letters::{self, DeadLetter};
use workqueue::{Connection, chain, topology};

use crate::problem::{Problem, ProblemKind};
use crate::requests::input::{JsonBody, query};
use crate::requests::json as answer;
use crate::state::Gateway;

/// How many letters to show, or to replay, at a time.
const PAGE: usize = 50;

/// How many characters of a body, and of a header, are shown.
const SHOWN: usize = 2000;

/// Which letters, by their sequences.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Range {
    from: u64,
    until: Option<u64>,
}

pub(super) async fn list(
    State(gateway): State<Arc<Gateway>>,
    uri: Uri,
) -> Result<Response, Problem> {
    let connection = gateway.connection()?;
    let Range { from, .. } = query(&uri)?;
    let letters = page(connection, from, PAGE).await?;
    let total = state(connection).await?.messages;
    let next = letters.last().map(|letter| letter.sequence + 1);
    let letters: Vec<Value> = letters.iter().map(shown).collect();
    Ok(answer(&json!({ "total": total, "letters": letters, "next": next })))
}

pub(super) async fn replay(
    State(gateway): State<Arc<Gateway>>,
    sequence: Result<Path<u64>, PathRejection>,
    _body: JsonBody,
) -> Result<Response, Problem> {
    let Path(sequence) =
        sequence.map_err(|error| ProblemKind::Invalid.because(error.body_text()))?;
    let operator = gateway.operator()?;
    let letters = page(gateway.connection()?, sequence, 1).await?;
    let letter = letters.first().filter(|letter| letter.sequence == sequence);
    let gone = || ProblemKind::NoDeadLetter.because("this dead letter is not there any more");
    let letter = letter.ok_or_else(gone)?;
    letter
        .replay(operator, &queues::ALL)
        .await
        .map_err(|error| ProblemKind::Conflict.because(chain(&error)))?;
    Ok(answer(&json!({ "replayed": 1 })))
}

/// Replays a page of dead letters. A client that wants all asks for the next page, until there is none,
/// and hands on `until`, the last one that was there when it began: what dies again comes behind that,
/// and would otherwise be replayed without end.
pub(super) async fn replay_all(
    State(gateway): State<Arc<Gateway>>,
    uri: Uri,
    _body: JsonBody,
) -> Result<Response, Problem> {
    let operator = gateway.operator()?;
    let connection = gateway.connection()?;
    let Range { from, until } = query(&uri)?;
    let until = match until {
        Some(until) => until,
        None => state(connection).await?.last_sequence,
    };
    let mut letters = page(connection, from, PAGE).await?;
    letters.retain(|letter| letter.sequence <= until);
    let next = next(letters.last().map(|letter| letter.sequence), until);
    let mut count = 0;
    let mut kept = Vec::new();
    for letter in &letters {
        match letter.replay(operator, &queues::ALL).await {
            Ok(()) => count += 1,
            Err(error) => {
                kept.push(json!({ "sequence": letter.sequence, "reason": chain(&error) }));
            }
        }
    }
    Ok(answer(&json!({ "replayed": count, "kept": kept, "next": next, "until": until })))
}

async fn state(connection: &Connection) -> Result<StreamState, Problem> {
    let stream = topology::stream_state(connection.context(), dead_letters::STREAM).await;
    Ok(stream.map_err(|error| ProblemKind::BrokerAway.because(error))?.state)
}

async fn page(
    connection: &Connection,
    from: u64,
    count: usize,
) -> Result<Vec<DeadLetter>, Problem> {
    let letters = dead_letters::page(connection.context(), from, count).await;
    letters.map_err(|error| ProblemKind::BrokerAway.because(chain(&error)))
}

/// Where the page after this letter begins, if one that counts can come. A short page may only be short
/// of bytes.
fn next(last: Option<u64>, until: u64) -> Option<u64> {
    last.filter(|last| *last < until).map(|last| last + 1)
}

/// A dead letter as the page shows it. All of it may be anything.
pub(super) fn shown(letter: &DeadLetter) -> Value {
    let cut = |text: &str| shortened(text, SHOWN);
    let headers = letter.headers();
    let headers: Vec<_> = headers.iter().map(|(name, value)| (cut(name), cut(value))).collect();
    json!({
        "sequence": letter.sequence,
        "id": cut(&letter.id),
        "subject": cut(&letter.subject),
        "reason": cut(&letter.reason),
        "attempts": letter.attempts,
        "at": cut(&letter.at),
        "by": cut(&letter.by),
        "headers": headers,
        "body": cut(&String::from_utf8_lossy(letter.body())),
        "bytes": letter.body().len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaying_all_ends_with_the_last_letter_at_its_start() {
        assert_eq!(next(Some(50), 60), Some(51));
        assert_eq!(next(Some(60), 60), None);
        // All that is left has died since.
        assert_eq!(next(None, 60), None);
    }
}
