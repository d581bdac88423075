//! Dead letters: a page of them at a time, and their replay, where that is allowed.

use std::sync::Arc;

use async_nats::jetstream::stream::State;
use axum::extract::{self, Path};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use contract::{dead_letters as contracted, topology};
use observe::dead_letters::{self, DeadLetter};
use serde_json::{Value, json};
use workqueue::Connection;

use super::problem::Problem;
use super::{connected, parameter, unreadable};
use crate::Viewer;

/// How many letters to show, or to replay, at a time.
const PAGE: usize = 50;

/// How many characters of a body, and of a header, are shown.
const SHOWN: usize = 2000;

pub(super) async fn list(
    extract::State(viewer): extract::State<Arc<Viewer>>,
    uri: Uri,
) -> Result<Response, Problem> {
    let connection = connected(&viewer)?;
    let from = from(&uri)?;
    let letters = page(connection, from).await?;
    let total = state(connection).await?.messages;
    let next = letters.last().map(|letter| letter.sequence + 1);
    let letters: Vec<Value> = letters.iter().map(shown).collect();
    Ok(answer(&json!({ "total": total, "letters": letters, "next": next })))
}

pub(super) async fn replay(
    extract::State(viewer): extract::State<Arc<Viewer>>,
    Path(sequence): Path<u64>,
) -> Result<Response, Problem> {
    let replayer = replayer(&viewer)?;
    let letters = dead_letters::page(connected(&viewer)?.client(), sequence, 1).await;
    let letters = letters.map_err(|error| unreadable(&error))?;
    let letter = letters.first().filter(|letter| letter.sequence == sequence);
    let letter = letter.ok_or_else(|| {
        Problem::new(StatusCode::NOT_FOUND, "this dead letter is not there any more")
    })?;
    dead_letters::replay(replayer.context(), letter)
        .await
        .map_err(|error| Problem::new(StatusCode::CONFLICT, format!("{error:#}")))?;
    Ok(answer(&json!({ "replayed": 1 })))
}

/// Replays a page of dead letters. Whoever wants all asks for the next page, until there is none, and
/// hands on `until`, the last one that was there when it began: what dies again comes behind that, and
/// would otherwise be replayed without end.
pub(super) async fn replay_all(
    extract::State(viewer): extract::State<Arc<Viewer>>,
    uri: Uri,
) -> Result<Response, Problem> {
    let replayer = replayer(&viewer)?;
    let connection = connected(&viewer)?;
    let until = match sequence(&uri, "until")? {
        Some(until) => until,
        None => state(connection).await?.last_sequence,
    };
    let mut letters = page(connection, from(&uri)?).await?;
    letters.retain(|letter| letter.sequence <= until);
    let next = next(letters.last().map(|letter| letter.sequence), until);
    let mut count = 0;
    let mut kept = Vec::new();
    for letter in &letters {
        match dead_letters::replay(replayer.context(), letter).await {
            Ok(()) => count += 1,
            Err(error) => {
                kept.push(json!({ "sequence": letter.sequence, "reason": format!("{error:#}") }));
            }
        }
    }
    Ok(answer(&json!({ "replayed": count, "kept": kept, "next": next, "until": until })))
}

async fn state(connection: &Connection) -> Result<State, Problem> {
    let stream = topology::stream_state(connection.context(), contracted::STREAM).await;
    Ok(stream.map_err(|error| unreadable(&error.into()))?.state)
}

async fn page(connection: &Connection, from: u64) -> Result<Vec<DeadLetter>, Problem> {
    let letters = dead_letters::page(connection.client(), from, PAGE).await;
    letters.map_err(|error| unreadable(&error))
}

/// Where the page after this letter begins, if one that counts can come. A short page may only be short
/// of bytes.
fn next(last: Option<u64>, until: u64) -> Option<u64> {
    last.filter(|last| *last < until).map(|last| last + 1)
}

fn from(uri: &Uri) -> Result<u64, Problem> {
    Ok(sequence(uri, "from")?.unwrap_or(1))
}

fn sequence(uri: &Uri, name: &str) -> Result<Option<u64>, Problem> {
    let sequence = parameter(uri, name).map(str::parse).transpose();
    sequence.map_err(|_| {
        Problem::new(StatusCode::BAD_REQUEST, format!("{name} is the sequence of a dead letter"))
    })
}

fn replayer(viewer: &Viewer) -> Result<&Connection, Problem> {
    if viewer.settings.replay_nats().is_none() {
        let detail = "this deployment does not allow to replay from here (REPLAY)";
        return Err(Problem::new(StatusCode::FORBIDDEN, detail));
    }
    let replayer = viewer.replayer.get().filter(|replayer| replayer.is_connected());
    replayer.ok_or_else(|| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "there is no connection to replay through")
    })
}

/// A dead letter as the page shows it. All of it may be anything.
pub(super) fn shown(letter: &DeadLetter) -> Value {
    let headers = letter.headers();
    let headers: Vec<_> = headers.iter().map(|(name, value)| (cut(name), cut(value))).collect();
    json!({
        "sequence": letter.sequence,
        "id": cut(&letter.id),
        "subject": cut(&letter.subject),
        "reason": cut(&letter.reason),
        "attempts": cut(&letter.attempts),
        "at": cut(&letter.at),
        "by": cut(&letter.by),
        "headers": headers,
        "body": cut(&String::from_utf8_lossy(letter.body())),
        "bytes": letter.body().len(),
    })
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

fn answer(value: &Value) -> Response {
    ([("content-type", "application/json")], value.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaying_all_ends_with_the_last_letter_that_was_there_when_it_began() {
        assert_eq!(next(Some(50), 60), Some(51));
        assert_eq!(next(Some(60), 60), None);
        // All that is left has died since.
        assert_eq!(next(None, 60), None);
    }
}
