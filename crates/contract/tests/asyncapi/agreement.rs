//! Rust reads each message that the document allows, and none that it forbids.

use proptest::prelude::*;
use serde_json::{Value, json};
use workqueue::JobId;

use crate::arbitrary::{
    a_number_near_a_limit, any_json, nearly_a_time, nearly_an_id, nearly_strings,
};
use crate::document::at;
use crate::kinds::{assert_same_verdict, kinds, request_kind, response_kind, with};

#[test]
fn golden_files_decode_and_encode_unchanged() {
    for kind in kinds() {
        for body in [&kind.golden, &kind.all_fields] {
            assert_eq!((kind.read)(body).as_ref(), Ok(body), "{kind:?}");
        }
    }
}

#[test]
fn golden_files_match_the_document() {
    for kind in kinds() {
        for body in [&kind.golden, &kind.all_fields] {
            kind.payload
                .validate(body)
                .unwrap_or_else(|error| panic!("{kind:?} at {}: {error}", error.instance_path()));
            assert!(kind.allows(body), "{kind:?}");
        }
    }
}

#[test]
fn null_in_an_optional_field_counts_as_absent() {
    for kind in kinds() {
        // A priority is one of three words.
        for field in kind.optional_fields().filter(|field| *field != "priority") {
            let mut body = kind.all_fields.clone();
            body[field] = Value::Null;
            assert!(kind.allows(&body), "{kind:?}: {field}");
            let read = (kind.read)(&body);
            body.as_object_mut().unwrap().remove(field);
            assert_eq!(read.as_ref(), Ok(&body), "{kind:?}: {field}");
        }
    }
}

#[test]
fn body_that_lacks_a_field_is_refused() {
    for kind in kinds() {
        for field in kind.fields() {
            let mut body = kind.golden.clone();
            body.as_object_mut().unwrap().remove(field);
            assert!(!kind.payload.is_valid(&body), "{kind:?} without {field}");
            assert!((kind.read)(&body).is_err(), "{kind:?} without {field}");
        }
    }
}

#[test]
fn limits_are_those_of_the_document() {
    let (request, response) = (request_kind(), response_kind());
    for count in [0, 1, 2, 63, 64, 65, 66, 999, 1000, 1001] {
        for length in [0, 1, 2, 64, 65, 66, 1023, 1024, 1025] {
            let mut asked = with(request, "count", json!(count));
            asked["length"] = json!(length);
            assert_same_verdict(request, &asked);
            let answered = with(response, "values", json!(vec!["x".repeat(length); count]));
            assert_same_verdict(response, &answered);
            assert_eq!(request.allows(&asked), response.allows(&answered), "{count} × {length}");
        }
    }
}

#[test]
fn number_with_a_decimal_point_is_refused() {
    let kind = request_kind();
    let body = with(kind, "count", json!(2.0));
    assert!(kind.payload.is_valid(&body), "{body}");
    assert!((kind.read)(&body).is_err(), "{body}");
    assert!(at("/info/description").as_str().unwrap().contains("`1.0`"));
}

#[test]
fn time_with_another_offset_is_read() {
    let kind = request_kind();
    let body = with(kind, "requested_at", json!("2026-03-02T11:14:07.382419+02:00"));
    assert!(!kind.payload.is_valid(&body));
    assert_eq!((kind.read)(&body).as_ref(), Ok(&kind.golden));
}

#[test]
fn document_allows_one_spelling_of_a_time() {
    let mut without_format = at("/components/schemas/Time").clone();
    without_format.as_object_mut().unwrap().remove("format");
    let schema = jsonschema::draft7::new(&without_format).unwrap();
    for time in ["2026-03-02T09:14:07Z", "2026-03-02T09:14:07.5Z", "2026-03-02T09:14:07+00:00"] {
        assert!(schema.is_valid(&json!(time)), "{time}");
    }
    for time in [
        "2026-03-02 09:14:07Z",
        "2026-03-02t09:14:07z",
        "+002026-03-02T09:14:07Z",
        "2026-03-02T09:14:07",
        "2026-03-02T09:14:60Z",
        "2026-03-02T09:14:07,5Z",
        "2026-03-02T09:14:07-00:00",
        "2026-03-02T10:14:07+01:00",
        "2026-03-02T09:14:07Z[UTC]",
    ] {
        assert!(!schema.is_valid(&json!(time)), "{time}");
    }
}

proptest! {
    #[test]
    fn document_allows_the_amounts_that_rust_reads(
        count in a_number_near_a_limit(),
        length in a_number_near_a_limit(),
    ) {
        let mut body = with(request_kind(), "count", json!(count));
        body["length"] = json!(length);
        assert_same_verdict(request_kind(), &body);
    }

    #[test]
    fn document_allows_the_strings_that_rust_reads(values in nearly_strings()) {
        assert_same_verdict(response_kind(), &with(response_kind(), "values", values));
    }

    #[test]
    fn document_allows_the_ids_that_rust_reads(id in nearly_an_id()) {
        assert_same_verdict(request_kind(), &with(request_kind(), "id", json!(id)));
        // Many readers ignore formats, so the pattern alone has to be as strict.
        let without_format = jsonschema::draft7::new(at("/components/schemas/RequestId")).unwrap();
        prop_assert_eq!(without_format.is_valid(&json!(id)), id.parse::<JobId>().is_ok());
    }

    #[test]
    fn document_allows_the_times_that_rust_reads(time in nearly_a_time()) {
        assert_same_verdict(request_kind(), &with(request_kind(), "requested_at", json!(time)));
    }

    #[test]
    fn document_allows_the_field_values_that_rust_reads(value in any_json()) {
        for kind in kinds() {
            for field in kind.fields().chain(kind.optional_fields()) {
                assert_same_verdict(kind, &with(kind, field, value.clone()));
            }
        }
    }

    #[test]
    fn any_other_json_is_no_message(body in any_json()) {
        for kind in kinds() {
            prop_assert!(!kind.payload.is_valid(&body));
            prop_assert!((kind.read)(&body).is_err());
        }
    }
}
