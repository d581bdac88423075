//! Checks of the schemas that need no message.

use std::collections::BTreeSet;

use contract::{MAX_CHARACTERS, MAX_COUNT, MAX_KEY, MAX_LENGTH};
use serde_json::{Map, Value};

use crate::document::{at, document};

/// Every object in the document, with its JSON pointer.
fn objects() -> Vec<(String, &'static Map<String, Value>)> {
    let mut found = Vec::new();
    let mut open = vec![(String::from("#"), document())];
    while let Some((place, value)) = open.pop() {
        match value {
            Value::Object(object) => {
                found.push((place.clone(), object));
                open.extend(object.iter().map(|(key, value)| (format!("{place}/{key}"), value)));
            }
            Value::Array(array) => {
                let values = array.iter().enumerate();
                open.extend(values.map(|(index, value)| (format!("{place}/{index}"), value)));
            }
            _ => {}
        }
    }
    found
}

#[test]
fn limits_are_those_of_rust() {
    for (place, limit) in [
        ("Request/properties/count/minimum", 1),
        ("Request/properties/count/maximum", MAX_COUNT),
        ("Request/properties/length/minimum", 1),
        ("Request/properties/length/maximum", MAX_LENGTH),
        ("Request/x-max-characters", MAX_CHARACTERS),
        ("DueRequest/properties/count/minimum", 1),
        ("DueRequest/properties/count/maximum", MAX_COUNT),
        ("DueRequest/properties/length/minimum", 1),
        ("DueRequest/properties/length/maximum", MAX_LENGTH),
        ("DueRequest/x-max-characters", MAX_CHARACTERS),
        ("Asked/properties/count/minimum", 1),
        ("Asked/properties/count/maximum", MAX_COUNT),
        ("Asked/properties/length/minimum", 1),
        ("Asked/properties/length/maximum", MAX_LENGTH),
        ("Asked/x-max-characters", MAX_CHARACTERS),
        ("IdempotencyKey/minLength", 1),
        ("IdempotencyKey/maxLength", u32::try_from(MAX_KEY).unwrap()),
        ("Strings/minItems", 1),
        ("Strings/maxItems", MAX_COUNT),
        ("Strings/x-max-characters", MAX_CHARACTERS),
        ("RandomString/minLength", 1),
        ("RandomString/maxLength", MAX_LENGTH),
    ] {
        assert_eq!(*at(&format!("/components/schemas/{place}")), limit, "{place}");
    }
    // The descriptions have the limit that a schema cannot express.
    for name in ["DueRequest", "Request", "Asked", "Strings"] {
        let description = at(&format!("/components/schemas/{name}/description")).as_str().unwrap();
        assert!(description.contains(&format!(" {MAX_CHARACTERS}")), "{name}: {description}");
    }
}

#[test]
fn references_resolve_and_every_component_is_referenced() {
    let references: BTreeSet<&str> = objects()
        .into_iter()
        .filter_map(|(_, object)| object.get("$ref"))
        .map(|reference| reference.as_str().unwrap())
        .collect();
    for reference in &references {
        at(reference.strip_prefix('#').expect("the document refers only to itself"));
    }
    for (kind, components) in at("/components").as_object().unwrap() {
        for name in components.as_object().unwrap().keys() {
            let reference = format!("#/components/{kind}/{name}");
            assert!(references.contains(reference.as_str()), "{reference}");
        }
    }
}

#[test]
fn schemas_are_valid_and_allow_unknown_fields() {
    for (name, schema) in at("/components/schemas").as_object().unwrap() {
        jsonschema::draft7::meta::validate(schema)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for (place, object) in objects() {
        for word in ["additionalProperties", "unevaluatedProperties", "propertyNames"] {
            assert!(!object.contains_key(word), "{place} has {word}");
        }
    }
}
