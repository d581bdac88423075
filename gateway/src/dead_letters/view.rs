//! How dead letters are shown. All of one may be anything.

use observe::snapshot::shortened;
use serde::Serialize;
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, Type};
use utoipa::{PartialSchema, ToSchema};
use workqueue::dead_letters::{DeadLetter, Reason};

/// How many characters of a body, and of a header, are shown in a list.
const SHOWN: usize = 2000;

/// A page of dead letters.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadLetterList {
    /// How many there are in all, whatever was asked for.
    pub(super) total: u64,
    /// How many there are of each reason, of the oldest ones.
    pub(super) reasons: Vec<ReasonCount>,
    /// How many were counted for `reasons`: all of them, but at most 10,000, and fewer where they are large.
    pub(super) counted: u64,
    /// The dead letters, the oldest first.
    pub(super) dead_letters: Vec<DeadLetterDetails>,
    /// The `from` of the next page. Absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) next: Option<u64>,
}

/// How many dead letters there are of a reason.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReasonCount {
    #[schema(value_type = ReasonSchema)]
    pub(super) reason: Reason,
    pub(super) count: u64,
}

/// A message that was given up, with its verdict.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadLetterDetails {
    /// Its number among the dead letters, which names it alone.
    sequence: u64,
    #[schema(value_type = ReasonSchema)]
    kind: Reason,
    /// Why it was given up, for people.
    reason: String,
    /// The queue that it was in.
    queue: String,
    /// The id of its request, as its subject had it.
    id: String,
    /// The subject that it had.
    subject: String,
    /// How many times it was delivered, where it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    attempts: Option<u64>,
    /// When it was given up, as it says.
    at: String,
    /// The instance that gave it up.
    by: String,
    /// Its headers, in the order of their names.
    headers: Vec<DeadLetterHeader>,
    /// Its body as text. In a list it may be cut, and so may the headers.
    body: String,
    /// How many bytes the body has.
    bytes: usize,
}

/// A header of a dead letter.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadLetterHeader {
    name: String,
    value: String,
}

impl DeadLetterDetails {
    /// One in full.
    pub(super) fn full(letter: &DeadLetter) -> Self {
        Self::cut(letter, usize::MAX)
    }

    /// As much of one as fits into a list.
    pub(crate) fn short(letter: &DeadLetter) -> Self {
        Self::cut(letter, SHOWN)
    }

    fn cut(letter: &DeadLetter, most: usize) -> Self {
        let cut = |text: &str| shortened(text, most);
        let headers = letter.headers().into_iter();
        let headers =
            headers.map(|(name, value)| DeadLetterHeader { name: cut(name), value: cut(value) });
        Self {
            sequence: letter.sequence,
            kind: letter.kind(),
            reason: cut(&letter.reason),
            queue: cut(&letter.stream),
            id: cut(&letter.id),
            subject: cut(&letter.subject),
            attempts: letter.attempts,
            at: cut(&letter.at),
            by: cut(&letter.by),
            headers: headers.collect(),
            body: cut(&String::from_utf8_lossy(letter.body())),
            bytes: letter.body().len(),
        }
    }
}

/// What became of a page of dead letters.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadLetterReport {
    /// How many were replayed, or discarded.
    pub(super) done: u64,
    /// Those that are still there.
    pub(super) kept: Vec<KeptDeadLetter>,
    /// The `from` of the next page. Absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) next: Option<u64>,
    /// The last dead letter that was there at the first page: hand it on with `next`, so that what dies again
    /// meanwhile is left for another time.
    pub(super) until: u64,
}

/// A dead letter that is still there.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct KeptDeadLetter {
    pub(super) sequence: u64,
    /// Why it is.
    pub(super) why: String,
}

/// The words of [`Reason`], which the engine has.
pub(crate) struct ReasonSchema;

impl PartialSchema for ReasonSchema {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("The word that the reason of a dead letter begins with"))
            .enum_values(Some(Reason::ALL.map(Reason::as_str)))
            .into()
    }
}

impl ToSchema for ReasonSchema {
    fn name() -> std::borrow::Cow<'static, str> {
        "DeadLetterReason".into()
    }
}

/// The same, and `any` for all of them.
pub(crate) struct AnyReasonSchema;

impl PartialSchema for AnyReasonSchema {
    fn schema() -> RefOr<Schema> {
        let words = Reason::ALL.map(Reason::as_str).into_iter().chain(["any"]);
        ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words)).into()
    }
}

impl ToSchema for AnyReasonSchema {}
