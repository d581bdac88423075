//! Reads the state of the topology, and changes nothing.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::Info as ConsumerInfo;
use async_nats::jetstream::stream::{Config as StreamConfig, Info as StreamInfo};
use futures_util::future::try_join_all;
use jiff::Timestamp;

use super::error::DeclareError;
use super::pause::paused_until;
use super::{api, config};
use crate::facts::Bucket;
use crate::queue::{Lane, Queue};

/// A queue with less room, in bytes, does not accept even a small message.
const SMALLEST_MESSAGE: u64 = 200;

/// The state of a queue on the broker.
#[derive(Debug)]
pub struct QueueState {
    /// The stream.
    pub stream: StreamInfo,
    /// The lanes, the most urgent first, and the consumer of each.
    pub lanes: Vec<(Lane, ConsumerInfo)>,
}

impl QueueState {
    /// Messages that were delivered and are not settled yet.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.consumers().map(|consumer| consumer.num_ack_pending as u64).sum()
    }

    /// Messages that are due, and not delivered yet.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        if self.has_schedules() {
            // The stream has those that are not due as well.
            self.pending()
        } else {
            self.stream.state.messages.saturating_sub(self.in_flight())
        }
    }

    /// Messages that are not due yet: jobs that were submitted for later, and recurring schedules.
    #[must_use]
    pub fn scheduled(&self) -> u64 {
        if self.has_schedules() {
            self.stream.state.messages.saturating_sub(self.pending() + self.in_flight())
        } else {
            0
        }
    }

    /// Deliveries beyond the first of each message, as far as the broker remembers. Each delivery that a killed broker
    /// has forgotten, and each message that was removed while it waited, lowers the number, also below zero. While
    /// messages arrive it is a little too low.
    #[must_use]
    pub fn redelivered(&self) -> i64 {
        if self.has_schedules() {
            // Its sequences also count messages that are not due. The broker reports only how many of the messages in
            // flight are redelivered.
            return self.consumers().map(|it| it.num_redelivered.cast_signed() as i64).sum();
        }
        let deliveries: u64 = self.consumers().map(|it| it.delivered.consumer_sequence).sum();
        let delivered = self.stream.state.last_sequence.saturating_sub(self.pending());
        deliveries.cast_signed() - delivered.cast_signed()
    }

    /// The time of its oldest message, delivered or not, if there is one.
    #[must_use]
    pub fn oldest_at(&self) -> Option<Timestamp> {
        let state = &self.stream.state;
        let first = Timestamp::from_nanosecond(state.first_timestamp.unix_timestamp_nanos()).ok();
        first.filter(|_| state.messages > 0)
    }

    /// The end of its pause, if one of its lanes is paused.
    #[must_use]
    pub fn paused_until(&self) -> Option<Timestamp> {
        self.consumers().filter_map(paused_until).max()
    }

    fn has_schedules(&self) -> bool {
        self.lanes.first().is_some_and(|(lane, _)| lane.queue.schedules().is_some())
    }

    fn pending(&self) -> u64 {
        self.consumers().map(|it| it.num_pending).sum()
    }

    fn consumers(&self) -> impl Iterator<Item = &ConsumerInfo> {
        self.lanes.iter().map(|(_, consumer)| consumer)
    }
}

/// The most messages that the queue of this stream holds, if there is a limit.
#[must_use]
pub fn limit(stream: &StreamConfig) -> Option<u64> {
    match stream.metadata.get(config::QUEUE_LIMIT) {
        Some(limit) => limit.parse().ok(),
        None => stream.max_messages.try_into().ok(),
    }
}

/// The reason if the queue of this stream accepts no further message: its number of messages, or its bytes.
#[must_use]
pub fn no_room(stream: &StreamInfo) -> Option<String> {
    let (config, state) = (&stream.config, &stream.state);
    if let Some(limit) = limit(config).filter(|limit| state.messages >= *limit) {
        return Some(format!("{} holds {limit} messages, which is its limit", config.name));
    }
    let most = u64::try_from(config.max_bytes).ok()?;
    let room = most.saturating_sub(state.bytes);
    // With schedules the broker would drop the oldest waiting message, so the stream has to stay far below its limit.
    let needed = if config.allow_message_schedules { most / 10 } else { SMALLEST_MESSAGE };
    (room < needed).then(|| format!("{} holds {} of {most} bytes", config.name, state.bytes))
}

/// The state of a queue on the broker.
///
/// # Errors
///
/// As [`declare`](super::declare), and [`DeclareError::Refused`] if the queue does not exist.
pub async fn queue_state(context: &Context, queue: Queue) -> Result<QueueState, DeclareError> {
    let lanes = try_join_all(queue.lanes().map(async |lane| {
        let state = lane_state(context, lane).await;
        state.map(|state| (lane, state))
    }));
    let lanes = lanes.await?;
    // Last, so that no delivery is taken for a second one that was the first.
    let stream = stream_state(context, queue.stream).await?;
    Ok(QueueState { stream, lanes })
}

/// The state of the durable consumer of a lane.
///
/// # Errors
///
/// As [`queue_state`].
pub async fn lane_state(context: &Context, lane: Lane) -> Result<ConsumerInfo, DeclareError> {
    api::consumer_info(context, lane)
        .await
        .map_err(|error| DeclareError::new(context, format!("show {}", lane.described()), error))
}

/// The state of the stream that keeps a bucket's facts.
///
/// # Errors
///
/// As [`queue_state`].
pub async fn bucket_state(context: &Context, bucket: Bucket) -> Result<StreamInfo, DeclareError> {
    stream_state(context, bucket.stream).await
}

/// The state of the stream with this name.
///
/// # Errors
///
/// As [`queue_state`].
pub async fn stream_state(context: &Context, name: &str) -> Result<StreamInfo, DeclareError> {
    api::stream_info(context, name)
        .await
        .map_err(|error| DeclareError::new(context, format!("show stream {name}"), error))
}

/// The time for which the guarantees hold after a job is made, by the settings of these buckets on the broker:
/// [`Duration::MAX`] if none of them has an age limit.
///
/// # Errors
///
/// As [`queue_state`].
pub async fn facts_max_age(
    context: &Context,
    buckets: &[Bucket],
) -> Result<Duration, DeclareError> {
    let mut shortest = Duration::MAX;
    for bucket in buckets {
        shortest = shortest.min(guard_time(&bucket_state(context, *bucket).await?.config));
    }
    Ok(shortest)
}

/// The time for which the facts of a bucket with this configuration prevent a second effect: [`Duration::MAX`] without
/// an age limit. The rest of the time for which they are kept is a margin.
#[must_use]
pub fn guard_time(bucket: &StreamConfig) -> Duration {
    if bucket.max_age.is_zero() {
        Duration::MAX
    } else {
        bucket.max_age.saturating_sub(config::FACTS_MARGIN)
    }
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream::consumer::Config as ConsumerConfig;
    use serde_json::json;

    use super::*;

    const QUEUE: Queue = Queue::new("THUMBNAILS", "thumbnails").consumer("thumbnailer");

    /// A queue in which this many messages were ever stored and ever delivered, and all were settled.
    fn settled(stored: u64, delivered: u64) -> QueueState {
        let at = "2026-01-02T10:00:00Z";
        let stream = json!({
            "config": StreamConfig { name: QUEUE.stream.to_owned(), ..StreamConfig::default() },
            "created": at,
            "state": {
                "messages": 0,
                "bytes": 0,
                "first_seq": stored + 1,
                "first_ts": at,
                "last_seq": stored,
                "last_ts": at,
                "consumer_count": 1,
            },
        });
        let consumer = json!({
            "stream_name": QUEUE.stream,
            "name": "thumbnailer",
            "created": at,
            "config": ConsumerConfig::default(),
            "delivered": { "consumer_seq": delivered, "stream_seq": stored },
            "ack_floor": { "consumer_seq": delivered, "stream_seq": stored },
            "num_ack_pending": 0,
            "num_redelivered": 0,
            "num_waiting": 0,
            "num_pending": 0,
        });
        let consumer: ConsumerInfo = serde_json::from_value(consumer).unwrap();
        QueueState {
            stream: serde_json::from_value(stream).unwrap(),
            lanes: QUEUE.lanes().map(|lane| (lane, consumer.clone())).collect(),
        }
    }

    #[test]
    fn redeliveries_are_counted_after_deliveries_were_forgotten() {
        let before = settled(100, 90).redelivered();
        assert_eq!(before, -10);
        assert_eq!(settled(200, 193).redelivered() - before, 3);
    }
}
