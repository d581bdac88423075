//! Channels and operations, and their streams and consumers.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::jetstream::{consumer, stream};
use contract::{facts, queues};
use serde::Serialize;
use serde_json::{Value, json};
use workqueue::Lane;
use workqueue::topology::{Limits, config, guard_time};

use crate::document::{
    address, at, bucket_address, channel, dead_letters_address, schema, texts, typed,
};

/// The default limits of the services.
const LIMITS: Limits = Limits {
    queue_limit: 100_000,
    facts_max_age: Duration::from_hours(24),
    replicas: 1,
    ack_wait: Duration::from_secs(30),
    max_bytes: None,
};

#[test]
fn channels_are_those_of_the_contract() {
    let documented: BTreeSet<String> = at("/channels")
        .as_object()
        .unwrap()
        .values()
        .map(|channel| channel["address"].as_str().unwrap().to_owned())
        .collect();
    let queues = queues::ALL.map(|queue| address(|id| queue.subject(id)));
    let buckets = facts::ALL.map(bucket_address);
    let known: BTreeSet<String> =
        queues.into_iter().chain(buckets).chain([dead_letters_address()]).collect();
    assert_eq!(documented, known);
}

#[test]
fn channels_name_their_stream_or_bucket_and_consumer() {
    for (name, channel) in at("/channels").as_object().unwrap() {
        for text in ["title", "summary", "description"] {
            let text = channel[text].as_str().unwrap_or_default();
            assert!(!text.trim().is_empty(), "{name}: {channel}");
        }
    }
    for queue in queues::ALL {
        let description = channel(&address(|id| queue.subject(id)))["description"].as_str();
        for name in queue.lanes().map(Lane::consumer).chain([queue.stream.to_owned()]) {
            assert!(description.unwrap().contains(&format!("`{name}`")), "{name}");
        }
    }
}

#[test]
fn dead_letters_come_from_every_queue_and_no_other_stream() {
    let streams = &channel(&dead_letters_address())["parameters"]["stream"]["enum"];
    assert_eq!(texts(streams), queues::ALL.map(|queue| queue.stream).into());
    let ids = schema("/components/schemas/DeadLetterHeaders/properties/Nats-Msg-Id");
    for queue in queues::ALL {
        assert!(ids.is_valid(&json!(format!("{}:{}", queue.stream, u64::MAX))), "{queue:?}");
    }
    for other in ["DEAD_LETTERS:1", "REQUESTS:0", "REQUESTS:", "REQUESTS", "XREQUESTS:1"] {
        assert!(!ids.is_valid(&json!(other)), "{other}");
    }
}

#[test]
fn queue_is_received_by_one_service_and_sent_by_the_others() {
    let operations = at("/operations").as_object().unwrap();
    let services = |address: &str, action: &str| -> Vec<&str> {
        let of_channel = |operation: &&Value| {
            let channel = operation["channel"]["$ref"].as_str().unwrap();
            at(channel.strip_prefix('#').unwrap())["address"] == address
        };
        let mut services: Vec<&str> = operations
            .values()
            .filter(of_channel)
            .filter(|operation| operation["action"] == action)
            .map(|operation| operation["tags"][0]["name"].as_str().unwrap())
            .collect();
        services.sort_unstable();
        services
    };
    let consumers: BTreeSet<&str> = queues::ALL.map(|queue| queue.consumer).into();
    // The gateway submits requests, as the requestor does.
    let senders =
        [["gateway"].as_slice(), &["gateway", "requestor"], &["generator"], &["requestor"]];
    for (queue, senders) in queues::ALL.into_iter().zip(senders) {
        let address = address(|id| queue.subject(id));
        assert_eq!(services(&address, "receive"), [queue.consumer], "{address}");
        assert_eq!(services(&address, "send"), senders, "{address}");
        assert!(!senders.contains(&queue.consumer), "{address}");
    }
    let owners = [
        ["gateway"].as_slice(),
        &["gateway", "requestor"],
        &["gateway", "requestor"],
        &["generator"],
    ];
    for (bucket, owners) in facts::ALL.into_iter().zip(owners) {
        let address = bucket_address(bucket);
        assert_eq!(services(&address, "send"), owners, "{address}");
        assert!(services(&address, "receive").is_empty(), "{address}");
    }
    let address = dead_letters_address();
    assert_eq!(services(&address, "send"), consumers.into_iter().collect::<Vec<_>>());
    assert!(services(&address, "receive").is_empty());
}

#[test]
fn operation_sends_or_receives_the_message_of_its_channel() {
    for (name, operation) in at("/operations").as_object().unwrap() {
        let channel = operation["channel"]["$ref"].as_str().unwrap();
        let [message] = &operation["messages"].as_array().unwrap()[..] else {
            panic!("{name} has one message")
        };
        let message = message["$ref"].as_str().unwrap();
        assert!(message.starts_with(&format!("{channel}/messages/")), "{name}: {message}");
    }
}

#[test]
fn document_has_the_declared_stream_and_consumer_settings() {
    let queues = queues::ALL.map(|queue| address(|id| queue.subject(id)));
    let buckets = facts::ALL.map(bucket_address);
    let described: Vec<&Value> = queues
        .into_iter()
        .chain([dead_letters_address()])
        .chain(buckets)
        .map(|address| &channel(&address)["x-jetstream"]["stream"])
        .collect();
    let queues = queues::ALL.map(|queue| config::queue(queue, &LIMITS));
    let buckets = facts::ALL.map(|bucket| config::bucket(bucket, &LIMITS));
    let declared: Vec<_> =
        queues.into_iter().chain([config::dead_letters(&LIMITS)]).chain(buckets).collect();
    assert_eq!(described.len(), declared.len());
    for (described, declared) in described.into_iter().zip(declared) {
        assert_eq!(typed::<stream::Config>(described), declared);
        assert_each_setting_is_known(described, &declared);
    }
    for queue in queues::ALL {
        let channel = channel(&address(|id| queue.subject(id)));
        let described = channel["x-jetstream"]["consumers"].as_array().unwrap();
        assert_eq!(described.len(), queue.lanes().count());
        for (described, lane) in described.iter().zip(queue.lanes()) {
            let declared = config::consumer(lane, &LIMITS);
            assert_eq!(typed::<consumer::Config>(described), declared);
            assert_each_setting_is_known(described, &declared);
        }
    }
}

/// An unknown setting would be ignored without an error.
fn assert_each_setting_is_known(described: &Value, declared: &impl Serialize) {
    let declared = serde_json::to_value(declared).unwrap();
    for (setting, value) in described.as_object().unwrap() {
        assert_eq!(declared.get(setting), Some(value), "{setting}");
    }
}

#[test]
fn only_queues_have_consumers_and_facts_their_documented_age() {
    for (name, channel) in at("/channels").as_object().unwrap() {
        let is_queue = queues::ALL
            .iter()
            .any(|queue| channel["address"] == address(|id| queue.subject(id)).as_str());
        assert_eq!(channel["x-jetstream"].get("consumers").is_some(), is_queue, "{name}");
    }
    let text = at("/info/description").as_str().unwrap();
    for bucket in facts::ALL {
        let stream = &channel(&bucket_address(bucket))["x-jetstream"]["stream"];
        let hours = guard_time(&typed(stream)).as_secs() / 3600;
        assert!(text.contains(&format!(" {hours} hours from")), "{bucket:?}: {hours}");
    }
}

#[test]
fn server_is_the_default_broker_of_the_services() {
    let server = at("/servers/local");
    let (protocol, host) = (server["protocol"].as_str(), server["host"].as_str());
    assert_eq!((protocol, host), (Some("nats"), Some("127.0.0.1:4222")));
    assert_eq!(*at("/asyncapi"), "3.0.0");
}
