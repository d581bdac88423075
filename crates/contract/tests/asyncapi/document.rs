//! The AsyncAPI document and the golden files, as the tests read them.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use async_nats::HeaderMap;
use contract::facts;
use jsonschema::{Draft, Validator};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use uuid::Uuid;
use workqueue::{Bucket, JobId, dead_letters};

/// The AsyncAPI document.
pub fn document() -> &'static Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
        serde_saphyr::from_str(include_str!("../../asyncapi.yaml")).expect("the document is YAML")
    });
    &DOCUMENT
}

/// The value in the document at this JSON pointer.
pub fn at(pointer: &str) -> &'static Value {
    document().pointer(pointer).unwrap_or_else(|| panic!("the document has no {pointer}"))
}

/// The golden file of this name.
pub fn golden(name: &str) -> Value {
    let text = match name {
        "request" => include_str!("../../examples/request.json"),
        "response" => include_str!("../../examples/response.json"),
        "acknowledgment" => include_str!("../../examples/acknowledgment.json"),
        "received" => include_str!("../../examples/received.json"),
        "due_request" => include_str!("../../examples/due_request.json"),
        "asked" => include_str!("../../examples/asked.json"),
        "request_all_fields" => include_str!("../../examples/request_all_fields.json"),
        "response_all_fields" => include_str!("../../examples/response_all_fields.json"),
        "acknowledgment_all_fields" => {
            include_str!("../../examples/acknowledgment_all_fields.json")
        }
        "due_request_all_fields" => include_str!("../../examples/due_request_all_fields.json"),
        "asked_all_fields" => include_str!("../../examples/asked_all_fields.json"),
        other => panic!("there is no golden file {other}.json"),
    };
    serde_json::from_str(text).expect("a golden file is JSON")
}

/// The request that all golden files are about.
pub fn golden_id() -> JobId {
    let id = &golden("request")["id"];
    id.as_str().expect("an id is text").parse().expect("the golden id is one")
}

/// The subjects of the contract for any id, as an address of the document.
pub fn address(subject: impl Fn(JobId) -> String) -> String {
    let id = golden_id();
    subject(id).replace(&id.to_string(), "{id}").replace(".normal.", ".{priority}.")
}

/// The address of the facts of a bucket. Those of `idempotency` have an idempotency key instead of an id.
pub fn bucket_address(bucket: Bucket) -> String {
    if bucket == facts::IDEMPOTENCY {
        bucket.subject_of("{key}")
    } else {
        bucket.subject_of("{id}")
    }
}

/// The address of the dead letters.
pub fn dead_letters_address() -> String {
    dead_letters::subject("{stream}", "{id}")
}

/// The channel with this address.
pub fn channel(address: &str) -> &'static Value {
    let channels = at("/channels").as_object().expect("channels have names");
    channels
        .values()
        .find(|channel| channel["address"] == address)
        .unwrap_or_else(|| panic!("the document has no channel with the address {address}"))
}

/// The JSON pointer to the one message of the channel with this address.
pub fn message(address: &str) -> String {
    let messages = channel(address)["messages"].as_object().expect("messages have names");
    let messages: Vec<&Value> = messages.values().collect();
    let [message] = messages[..] else { panic!("{address} has {} messages", messages.len()) };
    let reference = message["$ref"].as_str().expect("a channel refers to its message");
    reference.strip_prefix('#').expect("the document refers to itself").to_owned()
}

/// The schema in the document at this JSON pointer. It checks formats, and an unknown format is an error.
pub fn schema(pointer: &str) -> Validator {
    // The whole document serves as the schema, although most of its keywords are unknown there. So its references
    // resolve.
    let mut root = document().clone();
    root["allOf"] = json!([{ "$ref": format!("#{pointer}") }]);
    jsonschema::options()
        .with_draft(Draft::Draft7)
        .should_validate_formats(true)
        .should_ignore_unknown_formats(false)
        // This format is newer than draft 7, but readers of AsyncAPI know it.
        .with_format("uuid", |text: &str| Uuid::try_parse(text).is_ok())
        .build(&root)
        .unwrap_or_else(|error| panic!("{pointer} is no schema: {error}"))
}

/// Headers as the document describes them: an object of texts.
pub fn headers_as_json(headers: &HeaderMap) -> Value {
    let headers = headers.iter().map(|(name, values)| {
        let [value] = &values[..] else { panic!("{name} is there {} times", values.len()) };
        (name.to_string(), Value::from(value.as_str()))
    });
    Value::Object(headers.collect::<Map<_, _>>())
}

/// A valid value, read as this type.
pub fn typed<T: DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

/// The names of the fields of an object.
pub fn keys(object: &Value) -> BTreeSet<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

/// The texts in an array of texts.
pub fn texts(array: &Value) -> BTreeSet<&str> {
    array.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}
