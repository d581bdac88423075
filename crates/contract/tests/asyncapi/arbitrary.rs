//! Arbitrary messages and facts, valid and almost valid.

use async_nats::{HeaderMap, HeaderValue};
use contract::facts::{Asked, Cancellation, Received};
use contract::queues::{Acknowledgment, Request, Response};
use contract::{Amount, MAX_CHARACTERS, MAX_COUNT, MAX_KEY, MAX_LENGTH, Strings};
use jiff::Timestamp;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::string::string_regex;
use serde_json::{Value, json};
use uuid::{Builder, Uuid};
use workqueue::{JobId, Priority, Trace};

pub fn an_id() -> impl Strategy<Value = JobId> {
    (any::<u64>(), any::<[u8; 10]>()).prop_map(|(millis, random)| {
        let uuid = Builder::from_unix_timestamp_millis(millis, &random).into_uuid();
        uuid.to_string().parse().unwrap()
    })
}

/// Any moment in a year of four digits.
pub fn a_time() -> impl Strategy<Value = Timestamp> {
    let first: Timestamp = "0000-01-01T00:00:00Z".parse().unwrap();
    let nanosecond =
        prop_oneof![Just(0), 0..1_000_000_000, (0..1000).prop_map(|ms| ms * 1_000_000)];
    (first.as_second()..=Timestamp::MAX.as_second(), nanosecond)
        .prop_map(|(second, nanosecond)| Timestamp::new(second, nanosecond).unwrap())
}

pub fn an_instance() -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..40).prop_map(String::from_iter)
}

pub fn an_amount() -> impl Strategy<Value = (u32, u32)> {
    (1..=MAX_COUNT).prop_flat_map(|count| {
        let longest = MAX_LENGTH.min(MAX_CHARACTERS / count);
        (Just(count), prop_oneof![1..=longest, Just(longest)])
    })
}

pub fn a_list_of_strings() -> impl Strategy<Value = Strings> {
    // Repeats a few characters, because drawing each character would take long.
    (an_amount(), string_regex("[A-Za-z0-9]{1,70}").unwrap()).prop_map(|((count, length), some)| {
        let mut characters = some.chars().cycle();
        let values: Vec<String> =
            (0..count).map(|_| characters.by_ref().take(length as usize).collect()).collect();
        values.try_into().unwrap()
    })
}

/// Any text that a header can carry: one line.
pub fn a_header() -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..40).prop_map(|characters| {
        characters.into_iter().filter(|character| !['\r', '\n'].contains(character)).collect()
    })
}

pub fn a_trace() -> impl Strategy<Value = Trace> {
    (proptest::option::of(a_header()), proptest::option::of(a_header())).prop_map(
        |(parent, state)| {
            let mut headers = HeaderMap::new();
            for (name, value) in [("traceparent", parent), ("tracestate", state)] {
                if let Some(value) = value {
                    headers.insert(name, value.parse::<HeaderValue>().unwrap());
                }
            }
            Trace::of(Some(&headers))
        },
    )
}

pub fn a_request() -> impl Strategy<Value = Request> {
    let priority = proptest::sample::select(&Priority::ALL);
    let expires_at = proptest::option::of(a_time());
    (an_id(), an_amount(), priority, an_instance(), a_time(), expires_at).prop_map(
        |(id, (count, length), priority, requestor, requested_at, expires_at)| {
            let amount = Amount::new(count, length).unwrap();
            Request { id, amount, priority, requestor, requested_at, expires_at }
        },
    )
}

pub fn an_asked() -> impl Strategy<Value = Asked> {
    let key = vec(any::<char>(), 1..=MAX_KEY).prop_map(String::from_iter);
    let not_before = proptest::option::of(a_time());
    let delay_ms = proptest::option::of(0..=2_592_000_000_u64);
    (key, a_request(), not_before, delay_ms).prop_map(|(key, request, not_before, delay_ms)| {
        Asked { key: key.try_into().unwrap(), request, not_before, delay_ms }
    })
}

pub fn a_response() -> impl Strategy<Value = Response> {
    let started_at = proptest::option::of(a_time());
    (an_id(), a_time(), a_list_of_strings(), an_instance(), started_at, a_time()).prop_map(
        |(id, requested_at, values, generator, started_at, generated_at)| Response {
            id,
            requested_at,
            values,
            generator,
            started_at,
            generated_at,
        },
    )
}

pub fn an_acknowledgment() -> impl Strategy<Value = Acknowledgment> {
    (a_response(), an_instance(), a_time()).prop_map(|(response, requestor, stored_at)| {
        Acknowledgment::new(response, &requestor, stored_at)
    })
}

pub fn a_cancellation() -> impl Strategy<Value = Cancellation> {
    (an_id(), an_instance(), a_time()).prop_map(|(id, cancelled_by, cancelled_at)| Cancellation {
        id,
        cancelled_by,
        cancelled_at,
    })
}

pub fn a_received() -> impl Strategy<Value = Received> {
    (an_id(), a_list_of_strings(), an_instance(), a_time()).prop_map(
        |(id, values, marked_by, received_at)| Received { id, values, marked_by, received_at },
    )
}

/// Any JSON, except for numbers such as `1.0`: a schema accepts them as integers, and Rust does not. A test of its own
/// covers them.
pub fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-2000..2000).prop_map(|number| Value::from(f64::from(number) + 0.5)),
        an_instance().prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            btree_map(an_instance(), inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

pub fn a_number_near_a_limit() -> impl Strategy<Value = i64> {
    let near = |limit: u32| i64::from(limit) - 2..=i64::from(limit) + 2;
    prop_oneof![
        -2..=70i64,
        near(MAX_COUNT),
        near(MAX_LENGTH),
        near(MAX_CHARACTERS),
        Just(i64::from(u32::MAX) + 1),
        any::<i64>(),
    ]
}

/// A text that looks like an id, and sometimes is one.
pub fn nearly_an_id() -> impl Strategy<Value = String> {
    // More often in the version and the variant than elsewhere.
    let place = prop_oneof![4 => 0..36usize, 1 => Just(14), 1 => Just(19)];
    let changed =
        (an_id(), place, select(b"0789abcfABCFg- {\n".as_slice())).prop_map(|(id, place, byte)| {
            let mut text = id.to_string().into_bytes();
            text[place] = byte;
            String::from_utf8(text).unwrap()
        });
    let spelled = (an_id(), 0..7usize).prop_map(|(id, spelling)| {
        let uuid = Uuid::from(id);
        match spelling {
            0 => uuid.to_string(),
            1 => uuid.to_string().to_uppercase(),
            2 => uuid.simple().to_string(),
            3 => uuid.braced().to_string(),
            4 => uuid.urn().to_string(),
            5 => format!("{uuid}\n"),
            _ => format!(" {uuid}"),
        }
    });
    prop_oneof![changed, spelled]
}

/// A text that looks like a time of the contract, and sometimes is one. Without the last days of the year 9999, which
/// `jiff` cannot represent, and without second 60, which it reads as 59.
pub fn nearly_a_time() -> impl Strategy<Value = String> {
    let date = (0..9999u16, 0..=13u8, 0..=32u8);
    let time = (0..=25u8, 0..=61u8, prop_oneof![9 => 0..60u8, 1 => 61..100u8]);
    let rest = (string_regex("([.][0-9]{0,11})?").unwrap(), select(vec!["Z", "+00:00", ""]));
    (date, time, rest).prop_map(
        |((year, month, day), (hour, minute, second), (fraction, offset))| {
            format!(
                "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}{offset}"
            )
        },
    )
}

pub fn nearly_strings() -> impl Strategy<Value = Value> {
    let some = string_regex("[A-Za-z0-9]{0,3}").unwrap();
    let long = (a_number_near_a_limit()).prop_map(|length| {
        let length = usize::try_from(length).unwrap_or_default().min(MAX_CHARACTERS as usize + 2);
        json!(["x".repeat(length)])
    });
    let many = (a_number_near_a_limit(), 0..70usize).prop_map(|(count, length)| {
        let count = usize::try_from(count).unwrap_or_default().min(MAX_COUNT as usize + 2);
        json!(vec!["x".repeat(length); count])
    });
    let uneven = vec(some, 0..4).prop_map(Value::from);
    let other_characters =
        (string_regex("[a-z0-9_ ä\n-]{3}").unwrap(), any::<bool>()).prop_map(|(other, first)| {
            if first { json!([other, "abc"]) } else { json!(["abc", other]) }
        });
    let other_types = (any_json(), any_json()).prop_map(|(one, other)| json!([one, "abc", other]));
    prop_oneof![
        a_list_of_strings().prop_map(|strings| json!(strings)),
        long,
        many,
        uneven,
        other_characters,
        other_types
    ]
}
