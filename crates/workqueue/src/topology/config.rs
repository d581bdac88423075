//! The configuration that each stream, bucket and consumer should have.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, Config as Consumer, DeliverPolicy};
use async_nats::jetstream::stream::{
    Config as Stream, DiscardPolicy, RetentionPolicy, StorageType,
};

use crate::dead_letters;
use crate::facts::Bucket;
use crate::lease;
use crate::queue::{Lane, Queue};
use crate::settings::Limits;

/// The time for which facts are kept beyond `FACTS_MAX_AGE`, so that a fact outlives the last message that may create
/// it.
pub(super) const FACTS_MARGIN: Duration = Duration::from_hours(1);

/// How long a dead letter is kept, if facts are not kept for longer: it accounts for its job.
const DEAD_LETTERS_MAX_AGE: Duration = Duration::from_hours(7 * 24);

/// How long a counter of a second is kept.
const RATES_MAX_AGE: Duration = Duration::from_secs(10);

/// The most bytes of counters, for an account that requires a limit: enough for ten seconds, and little of the memory
/// that the broker reserves.
const RATES_MAX_BYTES: u64 = 1024 * 1024;

/// The largest message that a queue accepts, with its headers, in bytes. The limit ensures that each message of a queue
/// fits into a dead letter, which has further headers.
const MAX_MESSAGE_SIZE: i32 = 256 * 1024;

/// How long the broker remembers message ids. It is a convenience: the facts are the guarantee.
const DUPLICATE_WINDOW: Duration = Duration::from_mins(2);

/// The key of the metadata with the most messages of a queue with schedules. The producers enforce this limit, instead
/// of the broker.
pub(super) const QUEUE_LIMIT: &str = "queue_limit";

/// The stream of a queue.
#[must_use]
pub fn queue(queue: Queue, limits: &Limits) -> Stream {
    let of_all = Stream {
        description: Some("A queue: holds what is still to be done, and empties itself".to_owned()),
        subjects: queue.subjects(),
        retention: RetentionPolicy::WorkQueue,
        max_messages: limits.queue_limit.try_into().unwrap_or(i64::MAX),
        max_message_size: MAX_MESSAGE_SIZE,
        ..base(queue.stream, limits)
    };
    if queue.schedules().is_none() {
        return of_all;
    }
    // Message schedules do not work with `discard: new`. With `discard: old`, any limit would drop the oldest waiting
    // message.
    Stream {
        metadata: [(QUEUE_LIMIT.to_owned(), limits.queue_limit.to_string())].into(),
        max_messages: -1,
        discard: DiscardPolicy::Old,
        allow_message_schedules: true,
        ..of_all
    }
}

/// The stream of the dead letters.
#[must_use]
pub fn dead_letters(limits: &Limits) -> Stream {
    Stream {
        description: Some("Messages that could not be handled, each with its reason".to_owned()),
        subjects: vec![dead_letters::SUBJECTS.to_owned()],
        max_age: DEAD_LETTERS_MAX_AGE.max(limits.facts_max_age.saturating_add(FACTS_MARGIN)),
        ..base(dead_letters::STREAM, limits)
    }
}

/// The stream of a bucket, with the settings by which clients recognise a key-value bucket.
#[must_use]
pub fn bucket(bucket: Bucket, limits: &Limits) -> Stream {
    Stream {
        description: Some("Facts: each key is written once and never changed".to_owned()),
        subjects: vec![bucket.subjects()],
        max_age: limits.facts_max_age.saturating_add(FACTS_MARGIN),
        // Two, so that a second write of a key can be seen: there must never be one.
        max_messages_per_subject: 2,
        allow_rollup: true,
        deny_delete: true,
        ..base(bucket.stream, limits)
    }
}

/// The stream of the counters of rate limits. Each is needed for a second only, so they are in memory.
#[must_use]
pub fn rates(limits: &Limits) -> Stream {
    Stream {
        description: Some("Counters: how many jobs were started in each second".to_owned()),
        subjects: vec![lease::SUBJECTS.to_owned()],
        allow_message_counter: true,
        storage: StorageType::Memory,
        // A full stream of counters has to accept new counts.
        discard: DiscardPolicy::Old,
        max_age: RATES_MAX_AGE,
        duplicate_window: RATES_MAX_AGE,
        // The last one has the total.
        max_messages_per_subject: 1,
        max_bytes: limits.max_bytes.map_or(-1, |most| most.min(RATES_MAX_BYTES).cast_signed()),
        allow_direct: false,
        ..base(lease::STREAM, limits)
    }
}

fn base(name: &str, limits: &Limits) -> Stream {
    Stream {
        name: name.to_owned(),
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::New,
        storage: StorageType::File,
        num_replicas: limits.replicas,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_bytes: limits.max_bytes.map_or(-1, |most| most.try_into().unwrap_or(i64::MAX)),
        max_message_size: -1,
        max_consumers: -1,
        duplicate_window: DUPLICATE_WINDOW,
        allow_direct: true,
        ..Stream::default()
    }
}

/// The durable consumer of a lane of a queue.
#[must_use]
pub fn consumer(lane: Lane, limits: &Limits) -> Consumer {
    let mut filters = lane.filters();
    // The broker answers with one filter as with the only one.
    let filter = if filters.len() == 1 { filters.pop() } else { None };
    Consumer {
        durable_name: Some(lane.consumer()),
        name: Some(lane.consumer()),
        filter_subject: filter.unwrap_or_default(),
        filter_subjects: filters,
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: limits.ack_wait,
        // The workers count attempts. A broker that stops delivering leaves the message behind
        // with a notice that may come late, or never.
        max_deliver: -1,
        // A message that waits for its next attempt counts as pending here, too: with a limit,
        // enough of them would stop the queue.
        max_ack_pending: -1,
        ..Consumer::default()
    }
}
