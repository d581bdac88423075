//! Finds the existing stream or consumer that takes the messages of a new one.

use async_nats::jetstream::consumer::Info as ConsumerInfo;
use async_nats::jetstream::{Context, Error, ErrorCode};
use serde::Deserialize;
use serde_json::json;

use super::api;
use crate::api::call;
use crate::queue::Lane;

/// Describes the stream on the broker whose subjects overlap with these.
pub async fn subject_taken(context: &Context, subjects: &[String]) -> String {
    let ours = subjects.join(", ");
    for subject in subjects {
        let Ok(stream) = context.stream_by_subject(subject).await else { continue };
        if let Ok(info) = api::stream_info(context, &stream).await {
            let theirs = info.config.subjects.join(", ");
            return format!("stream {stream} stores {theirs} already, which overlaps with {ours}");
        }
    }
    // The user may not be permitted to ask.
    format!("another stream stores some of {ours} already")
}

/// Whether the broker refuses a consumer of a queue because another consumer takes the same messages.
pub(super) fn is_of_another_consumer(error: &Error) -> bool {
    let codes =
        [ErrorCode::CONSUMER_WQ_MULTIPLE_UNFILTERED, ErrorCode::CONSUMER_WQ_CONSUMER_NOT_UNIQUE];
    codes.contains(&error.error_code())
}

/// Describes the consumer that takes the messages of this lane's consumer.
pub(super) async fn messages_taken(context: &Context, lane: Lane) -> String {
    #[derive(Deserialize)]
    struct Consumers {
        consumers: Vec<ConsumerInfo>,
    }

    let ours = lane.filters();
    let listed = call(context, format!("CONSUMER.LIST.{}", lane.queue.stream), &json!({})).await;
    // The user may not be permitted to ask.
    let consumers = listed.map_or_else(|_| Vec::new(), |Consumers { consumers }| consumers);
    for ConsumerInfo { name, config, .. } in consumers {
        let mut theirs = config.filter_subjects;
        theirs.push(config.filter_subject);
        theirs.retain(|filter| !filter.is_empty());
        if theirs.is_empty() {
            return format!("consumer {name} takes all messages already");
        }
        if theirs.iter().any(|filter| ours.iter().any(|our| overlap(filter, our))) {
            let (theirs, ours) = (theirs.join(", "), ours.join(", "));
            return format!("consumer {name} takes {theirs} already, which overlaps with {ours}");
        }
    }
    format!("another consumer takes some of {} already", ours.join(", "))
}

/// Whether a subject can match both filters.
fn overlap(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(word), Some(same)) if word == same || [word, same].contains(&"*") => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_overlap_word_by_word() {
        for (one, other) in [("a.>", "a.b"), ("a.*.c", "a.b.*"), ("a.b", "a.b"), (">", "a.b")] {
            assert!(overlap(one, other) && overlap(other, one), "{one} {other}");
        }
        for (one, other) in [("a.>", "a"), ("a.*", "a.b.c"), ("a.b", "a.c"), ("a", "b.>")] {
            assert!(!overlap(one, other) && !overlap(other, one), "{one} {other}");
        }
    }
}
