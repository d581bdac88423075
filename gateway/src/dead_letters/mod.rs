//! The API of dead letters: list, count by reason, and, if `CONTROL` allows it, replay and discard.

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
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use workqueue::dead_letters::{self, DeadLetter, ReplayError, Selection};
use workqueue::{Connection, PublishError, chain, topology};

use crate::input::{Empty, Json, NoQuery, path, query, whole_number};
use crate::problem::{Problem, ProblemKind};
use crate::requests::json;
use crate::requests::reader::permit;
use crate::state::{Gateway, Operator};
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
/// Lists dead letters, the oldest first: `limit` of them, or fewer if they are large. If a page has a `next`, get the
/// next page with it as `from`. A page reads at most 10,000 dead letters, so with a rare `reason` it may have fewer
/// than `limit`, or none, and a `next`.
#[utoipa::path(
    get,
    path = "/dead-letters",
    operation_id = "listDeadLetters",
    tag = "dead letters",
    params((
        "reason" = inline(Option<view::ReasonSchema>), Query, description = "Only dead letters with this reason",
        nullable = false,
    ), (
        "queue" = inline(Option<crate::queues::QueueName>), Query, description = "Only dead letters from this queue",
        nullable = false,
    ), (
        "from" = Option<u64>, Query, description = "Only dead letters from this sequence on",
        minimum = 0, nullable = false,
    ), (
        "limit" = Option<u32>, Query, description = "The length of a page, 50 by default",
        minimum = 1, maximum = 1000, nullable = false,
    )),
    responses(
        (status = 200, description = "A page of dead letters", body = DeadLetterList,
         example = json!({
             "total": 4, "reasons": [{ "reason": "malformed", "count": 3 }, { "reason": "failed", "count": 1 }],
             "counted": 4, "until": 9, "next": 8, "dead_letters": [{
                 "sequence": 7, "kind": "malformed", "queue": "REQUESTS",
                 "reason": "malformed: its body is not a message: it is not a JSON object",
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
    let reading = async {
        // A page may have many megabytes.
        let _slot = LISTS.acquire().await.expect("it is never closed");
        // Read before the page, so that `until` includes no dead letter that nobody has seen.
        let state = state(connection).await?;
        let page = page(connection, &Selection { reason, queue }, from, limit).await?;
        let counts = gateway.reasons.of(connection, &state).await;
        Ok::<_, Problem>((page, state, counts.map_err(|error| unread(&error))?))
    };
    let Ok(read) = timeout(LIST_DEADLINE, reading).await else {
        return Err(ProblemKind::Busy.because("the dead letters could not be read in time"));
    };
    let (page, state, counts) = read?;
    let counts = counts.into_iter().map(|(reason, count)| ReasonCount { reason, count });
    let reasons: Vec<ReasonCount> = counts.collect();
    Ok(json(&DeadLetterList {
        total: state.messages,
        counted: reasons.iter().map(|reason| reason.count).sum(),
        reasons,
        until: state.last_sequence,
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
    params(("sequence" = u64, Path, description = "The sequence of the dead letter", minimum = 1)),
    responses(
        (status = 200, description = "The dead letter in full", body = DeadLetterDetails, example = json!({
            "sequence": 7, "kind": "malformed", "queue": "REQUESTS",
            "reason": "malformed: its body is not a message: it is not a JSON object",
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
    sequence: Result<Path<String>, PathRejection>,
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
    params(("sequence" = u64, Path, description = "The sequence of the dead letter", minimum = 1)),
    request_body(content((Empty = "application/json", example = json!({}))), description = "An empty object"),
    responses((status = 204, description = "The message is in its queue again"))
)]
pub(crate) async fn replay(
    State(gateway): State<Arc<Gateway>>,
    sequence: Result<Path<String>, PathRejection>,
    uri: Uri,
    Json(Empty {}): Json<Empty>,
) -> Result<StatusCode, Problem> {
    let NoQuery {} = query(&uri)?;
    with_one(&gateway, sequence, Action::Replay).await
}

/// Replay dead letters
///
/// Replays a page of dead letters, the oldest first: all, or those with a reason or from a queue. While an answer has a
/// `next`, repeat the call with it as `from`, and with the `until` of the answer. Needs `CONTROL=on`.
#[utoipa::path(
    post,
    path = "/dead-letters/replay",
    operation_id = "replayDeadLetters",
    tag = "dead letters",
    params((
        "reason" = inline(Option<view::ReasonSchema>), Query, description = "Only dead letters with this reason",
        nullable = false,
    ), (
        "queue" = inline(Option<crate::queues::QueueName>), Query, description = "Only dead letters from this queue",
        nullable = false,
    ), (
        "from" = Option<u64>, Query, description = "Only dead letters from this sequence on",
        minimum = 0, nullable = false,
    ), (
        "until" = Option<u64>, Query, description = "Only dead letters up to this sequence",
        minimum = 0, nullable = false,
    )),
    request_body(content((Empty = "application/json", example = json!({}))), description = "An empty object"),
    responses(
        (status = 200, description = "The dead letters that are done, and those that were kept", body = DeadLetterReport, example = json!({
            "done": 49, "kept": [{
                "sequence": 7,
                "why": "it has expired: its `expires_at` has passed, or its facts may be gone, so that its effect \
                        could happen a second time"
            }],
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
/// Removes the dead letter for good, with its message. Needs `CONTROL=on`.
#[utoipa::path(
    delete,
    path = "/dead-letters/{sequence}",
    operation_id = "discardDeadLetter",
    tag = "dead letters",
    params(("sequence" = u64, Path, description = "The sequence of the dead letter", minimum = 1)),
    responses((status = 204, description = "The dead letter is removed"))
)]
pub(crate) async fn discard_one(
    State(gateway): State<Arc<Gateway>>,
    sequence: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<StatusCode, Problem> {
    let NoQuery {} = query(&uri)?;
    with_one(&gateway, sequence, Action::Discard).await
}

/// Discard dead letters
///
/// Discards a page of dead letters: those with a reason, or with any, and of one queue if it is named. While an answer
/// has a `next`, repeat the call with it as `from`, and with the `until` of the answer. Needs `CONTROL=on`.
#[utoipa::path(
    delete,
    path = "/dead-letters",
    operation_id = "discardDeadLetters",
    tag = "dead letters",
    params((
        "reason" = inline(view::AnyReasonSchema), Query, description = "Only dead letters with this reason, or with `any`",
    ), (
        "queue" = inline(Option<crate::queues::QueueName>), Query, description = "Only dead letters from this queue",
        nullable = false,
    ), (
        "from" = Option<u64>, Query, description = "Only dead letters from this sequence on",
        minimum = 0, nullable = false,
    ), (
        "until" = Option<u64>, Query, description = "Only dead letters up to this sequence",
        minimum = 0, nullable = false,
    )),
    responses(
        (status = 200, description = "The dead letters that are done, and those that were kept", body = DeadLetterReport,
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

/// The pages that are read, or handled, at a time, and the time limit for a list, with the wait for others.
static LISTS: Semaphore = Semaphore::const_new(2);
const LIST_DEADLINE: Duration = Duration::from_secs(10);

/// The most dead letters that one call handles, and the time after which it begins with no further one, once it has read
/// them. The client continues with the next call, because a proxy may wait for an answer for only a minute.
const MOST: usize = 500;
const CALL: Duration = Duration::from_secs(5);

/// The time limit for discarding a dead letter, and for cancelling its request first.
const DEADLINE: Duration = Duration::from_secs(5);

/// The action on a dead letter.
#[derive(Clone, Copy)]
enum Action {
    Replay,
    Discard,
}

impl Action {
    /// Returns the reason if the dead letter still exists, or may still exist.
    async fn apply(
        self,
        letter: &DeadLetter,
        operator: &Operator,
        by: &str,
    ) -> Result<(), Problem> {
        let Operator { connection, producer } = operator;
        let kept = |why: String| Err(ProblemKind::Conflict.because(why));
        match self {
            Self::Replay => match letter.replay(connection, &queues::ALL).await {
                Ok(()) => Ok(()),
                Err(
                    error @ (ReplayError::NoAnswer
                    | ReplayError::NotStored(PublishError::Unconfirmed(_))),
                ) => Err(ProblemKind::BrokerAway.because(chain(&error))),
                Err(error @ ReplayError::NotStored(PublishError::Full(_))) => {
                    Err(ProblemKind::QueueFull.because(chain(&error)))
                }
                Err(error) => kept(chain(&error)),
            },
            Self::Discard => {
                let discarding = discard(producer, connection, letter, by);
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

/// Applies the action to the dead letter that a path names.
async fn with_one(
    gateway: &Gateway,
    sequence: Result<Path<String>, PathRejection>,
    action: Action,
) -> Result<StatusCode, Problem> {
    let operator = gateway.operator()?;
    let letter = one(gateway.connection()?, sequence).await?;
    action.apply(&letter, operator, &gateway.settings.instance).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Applies the action to each dead letter of a page until [`CALL`] is over, and reports the results.
async fn with_each(
    gateway: &Gateway,
    range: RangeQuery,
    action: Action,
) -> Result<DeadLetterReport, Problem> {
    let operator = gateway.operator()?;
    let why = "too many clients read dead letters at this moment";
    let _slot = permit(&LISTS, LIST_DEADLINE, why).await?;
    let RangeQuery { reason, queue, from, until } = range;
    let connection = gateway.connection()?;
    let until = match until {
        Some(until) => until,
        None => state(connection).await?.last_sequence,
    };
    let page = page(connection, &Selection { reason, queue }, from, MOST).await?;
    let end = Instant::now() + CALL;
    let next = page.next.filter(|next| *next <= until);
    let mut report = DeadLetterReport { done: 0, kept: Vec::new(), next, until };
    for letter in page.letters.iter().filter(|letter| letter.sequence <= until) {
        if Instant::now() > end {
            report.next = Some(letter.sequence);
            break;
        }
        match action.apply(letter, operator, &gateway.settings.instance).await {
            Ok(()) => report.done += 1,
            // The others would each wait for the broker, too.
            Err(problem) if !operator.connection.is_connected() => {
                if report.done == 0 && report.kept.is_empty() {
                    return Err(ProblemKind::BrokerAway.because(problem.detail()));
                }
                report.next = Some(letter.sequence);
                break;
            }
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
    sequence: Result<Path<String>, PathRejection>,
) -> Result<DeadLetter, Problem> {
    let text = path(sequence)?;
    let sequence = whole_number(&text).ok_or_else(|| {
        let help = "is not the sequence of a dead letter: write a whole number, such as 7";
        ProblemKind::Invalid.because(format_args!("'{text}' {help}"))
    })?;
    let page = page(connection, &Selection::default(), sequence, 1).await?;
    let letter = page.letters.into_iter().next().filter(|letter| letter.sequence == sequence);
    letter.ok_or_else(|| {
        ProblemKind::NoDeadLetter.because(format_args!("there is no dead letter {sequence}"))
    })
}
