//! The messages and facts, each with its schema, its golden file and the Rust type that reads it.

use std::fmt;
use std::sync::LazyLock;

use contract::facts::{Asked, Received, Stored};
use contract::queues::{self, Acknowledgment, DueRequest, Request, Response};
use jsonschema::Validator;
use serde_json::Value;
use workqueue::{Fact, Job};

use crate::document::{address, at, bucket_address, golden, golden_id, keys, message, schema};

/// A kind of message or fact: its schemas in the document, its golden files, and its Rust type.
pub struct BodyKind {
    pub address: String,
    pub golden: Value,
    /// The golden file with all optional fields.
    pub all_fields: Value,
    pub headers: Validator,
    pub payload: Validator,
    /// Decodes a body under the subject of its id, and encodes it again.
    pub read: fn(&Value) -> Result<Value, String>,
}

impl fmt::Debug for BodyKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.address)
    }
}

impl BodyKind {
    fn message<M: Job>(golden: [Value; 2]) -> Self {
        let read = |body: &Value| {
            let id = body["id"].as_str().and_then(|id| id.parse().ok()).unwrap_or_else(golden_id);
            M::decode(&M::QUEUE.subject(id), None, body.to_string().as_bytes())
                .map(|(_, message)| serde_json::to_value(message).unwrap())
                .map_err(|error| error.to_string())
        };
        Self::new(address(|id| M::QUEUE.subject(id)), golden, read)
    }

    fn fact<F: Fact>(golden: [Value; 2]) -> Self {
        let read = |body: &Value| {
            F::from_body(body.to_string().as_bytes())
                .map(|fact| serde_json::to_value(fact).unwrap())
                .map_err(|error| error.to_string())
        };
        Self::new(bucket_address(F::BUCKET), golden, read)
    }

    fn new(
        address: String,
        [golden, all_fields]: [Value; 2],
        read: fn(&Value) -> Result<Value, String>,
    ) -> Self {
        let message = message(&address);
        let headers = schema(&format!("{message}/headers"));
        let payload = schema(&format!("{message}/payload"));
        Self { address, golden, all_fields, headers, payload, read }
    }

    /// The names of its required fields.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        keys(&self.golden).into_iter()
    }

    /// The names of its optional fields.
    pub fn optional_fields(&self) -> impl Iterator<Item = &str> {
        let all = keys(&self.all_fields).into_iter();
        all.filter(|field| self.golden.get(field).is_none())
    }

    /// Whether the document allows this body: its schema, and its descriptions.
    pub fn allows(&self, body: &Value) -> bool {
        self.payload.is_valid(body) && self.descriptions_allow(body)
    }

    /// The rules that only the descriptions have, because no schema can express them: all strings have the same length,
    /// and there is a limit to all characters together.
    fn descriptions_allow(&self, body: &Value) -> bool {
        let limit = |name| at(&format!("/components/schemas/{name}/x-max-characters")).as_u64();
        if self.golden.get("values").is_none() {
            let characters = body["count"].as_u64().unwrap() * body["length"].as_u64().unwrap();
            return Some(characters) <= limit("Request");
        }
        // A cancellation has no strings.
        let Some(values) = body["values"].as_array() else { return true };
        let values = values.iter();
        let lengths: Vec<u64> =
            values.map(|value| value.as_str().unwrap().chars().count() as u64).collect();
        lengths.iter().all(|length| *length == lengths[0])
            && Some(lengths.iter().sum()) <= limit("Strings")
    }
}

/// All kinds.
pub fn kinds() -> &'static [BodyKind] {
    static KINDS: LazyLock<[BodyKind; 8]> = LazyLock::new(|| {
        let both = |name: &str| [golden(name), golden(&format!("{name}_all_fields"))];
        [
            BodyKind::message::<DueRequest>(both("due_request")),
            BodyKind::message::<Request>(both("request")),
            BodyKind::message::<Response>(both("response")),
            BodyKind::message::<Acknowledgment>(both("acknowledgment")),
            BodyKind::fact::<Asked>(both("asked")),
            BodyKind::fact::<Request>(both("request")),
            BodyKind::fact::<Stored>(both("acknowledgment")),
            // It has no optional fields.
            BodyKind::fact::<Received>([golden("received"), golden("received")]),
        ]
    });
    &*KINDS
}

/// The kind with this address.
pub fn kind(address: &str) -> &'static BodyKind {
    kinds().iter().find(|kind| kind.address == address).unwrap()
}

/// The kind of the request.
pub fn request_kind() -> &'static BodyKind {
    kind(&address(|id| queues::REQUESTS.subject(id)))
}

/// The kind of the response.
pub fn response_kind() -> &'static BodyKind {
    kind(&address(|id| queues::RESPONSES.subject(id)))
}

/// The golden file of this kind, with another value in this field.
pub fn with(kind: &BodyKind, field: &str, value: Value) -> Value {
    let mut body = kind.golden.clone();
    body[field] = value;
    body
}

/// Asserts that Rust reads this body if, and only if, the document allows it.
pub fn assert_same_verdict(kind: &BodyKind, body: &Value) {
    let read = (kind.read)(body);
    assert_eq!(kind.allows(body), read.is_ok(), "{kind:?}: {read:?}");
}
