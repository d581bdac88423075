//! The JSON of dead letters. Any of their bytes may be invalid.

use observe::snapshot::shortened;
use serde::Serialize;
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, Type};
use utoipa::{PartialSchema, ToSchema};
use workqueue::dead_letters::{DeadLetter, Reason};

/// The most characters of a body, and of a header, in a list.
const SHOWN: usize = 2000;

/// A page of dead letters.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadLetterList {
    /// The number of all dead letters, without any filter.
    pub(super) total: u64,
    /// The number of dead letters with each reason, among the oldest ones.
    pub(super) reasons: Vec<ReasonCount>,
    /// The number of dead letters that were counted for `reasons`: at most 10,000, and fewer if they are large.
    pub(super) counted: u64,
    /// The sequence of the last dead letter: the `until` that replays or discards none of a later time.
    pub(super) until: u64,
    /// The dead letters, the oldest first.
    pub(super) dead_letters: Vec<DeadLetterDetails>,
    /// The `from` of the next page. Absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) next: Option<u64>,
}

/// The number of dead letters with one reason.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReasonCount {
    #[schema(value_type = ReasonSchema)]
    pub(super) reason: Reason,
    pub(super) count: u64,
}

/// A dead letter: the message, and the reason.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadLetterDetails {
    /// Its sequence among the dead letters, which identifies it.
    sequence: u64,
    #[schema(value_type = ReasonSchema)]
    kind: Reason,
    /// The reason, for people.
    reason: String,
    /// The queue that it was in.
    queue: String,
    /// The id of its request, from its subject.
    id: String,
    /// The subject that it had.
    subject: String,
    /// The number of its deliveries, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    attempts: Option<u64>,
    /// When it became a dead letter, by its own header.
    at: String,
    /// The instance that dead-lettered it.
    by: String,
    /// Its headers, in the order of their names.
    headers: Vec<DeadLetterHeader>,
    /// Its body as text. In a list it may be cut, and so may the headers.
    body: String,
    /// The length of the body in bytes.
    bytes: usize,
}

/// A header of a dead letter.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadLetterHeader {
    name: String,
    value: String,
}

impl DeadLetterDetails {
    /// A dead letter in full.
    pub(super) fn full(letter: &DeadLetter) -> Self {
        Self::cut(letter, usize::MAX)
    }

    /// A dead letter, shortened for a list.
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

/// The results for a page of dead letters.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadLetterReport {
    /// The number of dead letters that were replayed, or discarded.
    pub(super) done: u64,
    /// The dead letters that were kept.
    pub(super) kept: Vec<KeptDeadLetter>,
    /// The `from` of the next page. Absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) next: Option<u64>,
    /// The last dead letter at the time of the first page. Send it with `next`, to exclude messages that meanwhile
    /// became dead letters again.
    pub(super) until: u64,
}

/// A dead letter that was kept.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct KeptDeadLetter {
    pub(super) sequence: u64,
    /// The reason for keeping it.
    pub(super) why: String,
}

/// The words of the engine's [`Reason`].
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

/// As [`ReasonSchema`], and `any` for all reasons.
pub(crate) struct AnyReasonSchema;

impl PartialSchema for AnyReasonSchema {
    fn schema() -> RefOr<Schema> {
        let words = Reason::ALL.map(Reason::as_str).into_iter().chain(["any"]);
        ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words)).into()
    }
}

impl ToSchema for AnyReasonSchema {}
