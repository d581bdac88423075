//! Dead letters: some of them at a time, their reasons counted, and what may become of them, where that is allowed.

pub(crate) mod counts;
mod input;
pub(crate) mod view;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use axum::routing::{get, post};
use contract::queues;
use requestor::{DiscardError, discard};
use tokio::time::timeout;
use workqueue::dead_letters::{self, DeadLetter, Selection};
use workqueue::{Connection, Metrics, Producer, chain, topology};

use crate::input::{Empty, Json, NoQuery, query};
use crate::problem::{Problem, ProblemKind};
use crate::requests::json;
use crate::state::Gateway;
use input::{DiscardQuery, ListQuery, RangeQuery};
use view::{DeadLetterDetails, DeadLetterList, DeadLetterReport, KeptDeadLetter, ReasonCount};

/// The routes of the dead letters.
pub(crate) fn routes() -> Router<Arc<Gateway>> {
    Router::new()
        .route("/dead-letters", get(list).delete(discard_all))
        .route("/dead-letters/replay", post(replay_all))
        .route("/dead-letters/{sequence}", get(show).delete(discard_one))
        .route("/dead-letters/{sequence}/replay", post(replay))
}

/// List dead letters
///
/// The oldest first, at most 50 unless `limit` says more; fewer where they are large. A page that says `next` is
/// followed by another, which is asked for with that as `from`. At most 10,000 are looked at for a page, so one of a
/// `reason` that is rare may have fewer than `limit`, or none, and a `next`.
#[utoipa::path(
    get,
    path = "/dead-letters",
    operation_id = "listDeadLetters",
    tag = "dead letters",
    params((
        "reason" = inline(Option<view::ReasonSchema>), Query, description = "Only those of this reason",
        nullable = false,
    ), (
        "queue" = inline(Option<crate::queues::QueueName>), Query, description = "Only those from this queue",
        nullable = false,
    ), (
        "from" = Option<u64>, Query, description = "Only those with this sequence and later ones",
        minimum = 0, nullable = false,
    ), (
        "limit" = Option<u32>, Query, description = "How many, 50 unless it is said",
        minimum = 1, maximum = 1000, nullable = false,
    )),
    responses(
        (status = 200, description = "A page of dead letters", body = DeadLetterList,
         example = json!({
             "total": 4, "reasons": [{ "reason": "malformed", "count": 3 }, { "reason": "failed", "count": 1 }],
             "counted": 4, "next": 8, "dead_letters": [{
                 "sequence": 7, "kind": "malformed", "queue": "REQUESTS",
                 "reason": "malformed: its body is not a message: it is no JSON object",
                 "id": "019cadd3-8896-7938-bc36-c32d4d2563a7",
                 "subject": "requests.019cadd3-8896-7938-bc36-c32d4d2563a7", "attempts": 1,
                 "at": "2026-11-21T07:19:02.10417Z", "by": "generator-2",
                 "headers": [{ "name": "Dead-Letter-Attempts", "value": "1" }],
                 "body": "give me strings!", "bytes": 16
             }]
         })),
    )
)]
pub(crate) async fn list(
    State(gateway): State<Arc<Gateway>>,
    uri: Uri,
) -> Result<Response, Problem> {
    let connection = gateway.connection()?;
    let ListQuery { reason, queue, from, limit } = query(&uri)?;
    let page = page(connection, &Selection { reason, queue }, from, limit).await?;
    let state = state(connection).await?;
    let counts = gateway.reasons.of(connection, &state).await.map_err(|error| unread(&error))?;
    let counts = counts.into_iter().map(|(reason, count)| ReasonCount { reason, count });
    let reasons: Vec<ReasonCount> = counts.collect();
    Ok(json(&DeadLetterList {
        total: state.messages,
        counted: reasons.iter().map(|reason| reason.count).sum(),
        reasons,
        dead_letters: page.letters.iter().map(DeadLetterDetails::short).collect(),
        next: page.next,
    }))
}

/// Look up a dead letter
#[utoipa::path(
    get,
    path = "/dead-letters/{sequence}",
    operation_id = "showDeadLetter",
    tag = "dead letters",
    params(("sequence" = u64, Path, description = "The number of the dead letter", minimum = 1)),
    responses(
        (status = 200, description = "All of it", body = DeadLetterDetails, example = json!({
            "sequence": 7, "kind": "malformed", "queue": "REQUESTS",
            "reason": "malformed: its body is not a message: it is no JSON object",
            "id": "019cadd3-8896-7938-bc36-c32d4d2563a7",
            "subject": "requests.019cadd3-8896-7938-bc36-c32d4d2563a7", "attempts": 1,
            "at": "2026-11-21T07:19:02.10417Z", "by": "generator-2",
            "headers": [{ "name": "Dead-Letter-Attempts", "value": "1" }],
            "body": "give me strings!", "bytes": 16
        })),
    )
)]
pub(crate) async fn show(
    State(gateway): State<Arc<Gateway>>,
    sequence: Result<Path<u64>, PathRejection>,
    uri: Uri,
) -> Result<Response, Problem> {
    let NoQuery {} = query(&uri)?;
    let letter = one(gateway.connection()?, sequence).await?;
    Ok(json(&DeadLetterDetails::full(&letter)))
}

/// Replay a dead letter
///
/// Publishes the message again, and removes the dead letter once the broker has confirmed that the message is stored.
/// Needs `CONTROL=on`.
#[utoipa::path(
    post,
    path = "/dead-letters/{sequence}/replay",
    operation_id = "replayDeadLetter",
    tag = "dead letters",
    params(("sequence" = u64, Path, description = "The number of the dead letter", minimum = 1)),
    request_body(content((Empty = "application/json", example = json!({}))), description = "An empty object"),
    responses((status = 204, description = "It is in its queue again"))
)]
pub(crate) async fn replay(
    State(gateway): State<Arc<Gateway>>,
    sequence: Result<Path<u64>, PathRejection>,
    uri: Uri,
    Json(Empty {}): Json<Empty>,
) -> Result<StatusCode, Problem> {
    let NoQuery {} = query(&uri)?;
    with_one(&gateway, sequence, Action::Replay).await
}

/// Replay dead letters
///
/// A page of them, the oldest first: all, or those of a reason or from a queue. While the answer says `next`, there
/// is another page: ask for it with `from` and `until` as the answer says them. Needs `CONTROL=on`.
#[utoipa::path(
    post,
    path = "/dead-letters/replay",
    operation_id = "replayDeadLetters",
    tag = "dead letters",
    params((
        "reason" = inline(Option<view::ReasonSchema>), Query, description = "Only those of this reason",
        nullable = false,
    ), (
        "queue" = inline(Option<crate::queues::QueueName>), Query, description = "Only those from this queue",
        nullable = false,
    ), (
        "from" = Option<u64>, Query, description = "Only those with this sequence and later ones",
        minimum = 0, nullable = false,
    ), (
        "until" = Option<u64>, Query, description = "Only those with this sequence and earlier ones",
        minimum = 0, nullable = false,
    )),
    request_body(content((Empty = "application/json", example = json!({}))), description = "An empty object"),
    responses(
        (status = 200, description = "What became of them", body = DeadLetterReport, example = json!({
            "done": 49, "kept": [{ "sequence": 7, "why": "it has expired: its facts may be gone, so it could happen a second time" }],
            "next": 51, "until": 120
        })),
    )
)]
pub(crate) async fn replay_all(
    State(gateway): State<Arc<Gateway>>,
    uri: Uri,
    Json(Empty {}): Json<Empty>,
) -> Result<Response, Problem> {
    let range: RangeQuery = query(&uri)?;
    Ok(json(&with_each(&gateway, range, Action::Replay).await?))
}

/// Discard a dead letter
///
/// Removes it, and with it the message that it was. Needs `CONTROL=on`.
#[utoipa::path(
    delete,
    path = "/dead-letters/{sequence}",
    operation_id = "discardDeadLetter",
    tag = "dead letters",
    params(("sequence" = u64, Path, description = "The number of the dead letter", minimum = 1)),
    responses((status = 204, description = "It is gone"))
)]
pub(crate) async fn discard_one(
    State(gateway): State<Arc<Gateway>>,
    sequence: Result<Path<u64>, PathRejection>,
    uri: Uri,
) -> Result<StatusCode, Problem> {
    let NoQuery {} = query(&uri)?;
    with_one(&gateway, sequence, Action::Discard).await
}

/// Discard dead letters
///
/// A page of those of a reason, or of any, and from a queue if that is said. While the answer says `next`, there is another page: ask for it
/// with `from` and `until` as the answer says them. Needs `CONTROL=on`.
#[utoipa::path(
    delete,
    path = "/dead-letters",
    operation_id = "discardDeadLetters",
    tag = "dead letters",
    params((
        "reason" = inline(view::AnyReasonSchema), Query, description = "Only those of this reason, or of `any`",
    ), (
        "queue" = inline(Option<crate::queues::QueueName>), Query, description = "Only those from this queue",
        nullable = false,
    ), (
        "from" = Option<u64>, Query, description = "Only those with this sequence and later ones",
        minimum = 0, nullable = false,
    ), (
        "until" = Option<u64>, Query, description = "Only those with this sequence and earlier ones",
        minimum = 0, nullable = false,
    )),
    responses(
        (status = 200, description = "What became of them", body = DeadLetterReport,
         example = json!({ "done": 3, "kept": [], "until": 120 })),
    )
)]
pub(crate) async fn discard_all(
    State(gateway): State<Arc<Gateway>>,
    uri: Uri,
) -> Result<Response, Problem> {
    let range = query::<DiscardQuery>(&uri)?.range()?;
    Ok(json(&with_each(&gateway, range, Action::Discard).await?))
}

/// How long it may take to discard a dead letter, and to cancel its request before.
const DEADLINE: Duration = Duration::from_secs(5);

/// What to do with a dead letter.
#[derive(Clone, Copy)]
enum Action {
    Replay,
    Discard,
}

impl Action {
    /// With how many at a time: each is a message and two answers of the broker, or one answer.
    fn most(self) -> usize {
        match self {
            Self::Replay => 50,
            Self::Discard => 500,
        }
    }

    /// Returns why the dead letter is still there, if it is, or may be.
    async fn apply(self, letter: &DeadLetter, operator: &Operator<'_>) -> Result<(), Problem> {
        let Operator { connection, producer, instance } = operator;
        let kept = |why: String| Err(ProblemKind::Conflict.because(why));
        match self {
            Self::Replay => match letter.replay(connection, &queues::ALL).await {
                Ok(()) => Ok(()),
                Err(error) => kept(chain(&error)),
            },
            Self::Discard => {
                let discarding = discard(producer, connection, letter, instance);
                match timeout(DEADLINE, discarding).await {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(error @ DiscardError::Unread(_))) => {
                        Err(ProblemKind::BrokerAway.because(chain(&error)))
                    }
                    Ok(Err(error)) => kept(chain(&error)),
                    Err(_too_late) => Err(ProblemKind::BrokerAway.because(
                        "the broker has not confirmed it in time; it is safe to try again",
                    )),
                }
            }
        }
    }
}

/// With what dead letters are replayed and discarded, one or many.
struct Operator<'a> {
    connection: &'a Connection,
    producer: Producer,
    instance: &'a str,
}

impl<'a> Operator<'a> {
    fn of(gateway: &'a Gateway) -> Result<Self, Problem> {
        let (connection, settings) = (gateway.operator()?, &gateway.settings);
        let metrics = Metrics::new("operator");
        let producer = Producer::new(connection, settings.limits, 1, &metrics);
        Ok(Self { connection, producer, instance: &settings.instance })
    }
}

/// Does this with the dead letter that a path names.
async fn with_one(
    gateway: &Gateway,
    sequence: Result<Path<u64>, PathRejection>,
    action: Action,
) -> Result<StatusCode, Problem> {
    let operator = Operator::of(gateway)?;
    let letter = one(gateway.connection()?, sequence).await?;
    action.apply(&letter, &operator).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Does this with each dead letter of a page, and tells what became of them.
async fn with_each(
    gateway: &Gateway,
    range: RangeQuery,
    action: Action,
) -> Result<DeadLetterReport, Problem> {
    let operator = Operator::of(gateway)?;
    let RangeQuery { reason, queue, from, until } = range;
    let connection = gateway.connection()?;
    let until = match until {
        Some(until) => until,
        None => state(connection).await?.last_sequence,
    };
    let page = page(connection, &Selection { reason, queue }, from, action.most()).await?;
    let next = page.next.filter(|next| *next <= until);
    let mut report = DeadLetterReport { done: 0, kept: Vec::new(), next, until };
    for letter in page.letters.iter().filter(|letter| letter.sequence <= until) {
        match action.apply(letter, &operator).await {
            Ok(()) => report.done += 1,
            Err(problem) => {
                let why = problem.detail().to_owned();
                report.kept.push(KeptDeadLetter { sequence: letter.sequence, why });
            }
        }
    }
    Ok(report)
}

async fn state(connection: &Connection) -> Result<async_nats::jetstream::stream::State, Problem> {
    let stream = topology::stream_state(connection.context(), dead_letters::STREAM).await;
    Ok(stream.map_err(|error| ProblemKind::BrokerAway.because(chain(&error)))?.state)
}

async fn page(
    connection: &Connection,
    selection: &Selection,
    from: u64,
    count: usize,
) -> Result<dead_letters::Page, Problem> {
    dead_letters::page(connection.context(), selection, from, count)
        .await
        .map_err(|error| unread(&error))
}

fn unread(error: &workqueue::reading::ReadStreamError) -> Problem {
    ProblemKind::BrokerAway.because(chain(error))
}

/// The dead letter that a path names.
async fn one(
    connection: &Connection,
    sequence: Result<Path<u64>, PathRejection>,
) -> Result<DeadLetter, Problem> {
    let Path(sequence) =
        sequence.map_err(|error| ProblemKind::Invalid.because(error.body_text()))?;
    let page = page(connection, &Selection::default(), sequence, 1).await?;
    let letter = page.letters.into_iter().next().filter(|letter| letter.sequence == sequence);
    letter.ok_or_else(|| {
        ProblemKind::NoDeadLetter.because(format_args!("there is no dead letter {sequence}"))
    })
}
