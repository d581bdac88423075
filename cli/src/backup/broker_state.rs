//! Detects activity on a broker.

use anyhow::bail;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::Info as ConsumerInfo;
use async_nats::jetstream::stream::Info as StreamInfo;
use contract::queues;
use jiff::Timestamp;
use workqueue::batch::count_since;
use workqueue::{Lane, Queue, topology};

use super::manifest::streams;

/// The state of the broker at one time.
pub(super) struct BrokerState {
    streams: Vec<StreamInfo>,
    pub(super) consumers: Vec<(Lane, ConsumerInfo)>,
}

impl BrokerState {
    /// Reads the state of all streams, and of the consumers of the queues.
    pub(super) async fn read(nats: &Context) -> anyhow::Result<Self> {
        let mut found = Self { streams: Vec::new(), consumers: Vec::new() };
        for stream in streams() {
            found.streams.push(topology::stream_state(nats, stream).await?);
        }
        for queue in queues::ALL {
            found.consumers.extend(topology::queue_state(nats, queue).await?.lanes);
        }
        Ok(found)
    }

    /// The creation time of this stream, or of the stream that it was restored from.
    pub(super) fn first_created(&self, name: &str) -> Option<Timestamp> {
        let stream = self.streams.iter().find(|stream| stream.config.name == name)?;
        Some(topology::first_created(stream))
    }

    /// Fails while a service waits for messages, as each running service does.
    pub(super) fn no_service_waits(&self) -> anyhow::Result<()> {
        let mut waiting = self.consumers.iter().filter(|(_, consumer)| consumer.num_waiting > 0);
        let Some((Lane { queue, .. }, _)) = waiting.next() else { return Ok(()) };
        let Queue { consumer, stream, .. } = queue;
        bail!("a {consumer} runs, and waits for messages of {stream}: stop both services first")
    }

    /// The change until a later state, except changes by expiry.
    pub(super) fn change(&self, later: &Self) -> Option<String> {
        for (is, later) in self.streams.iter().zip(&later.streams) {
            if let Some(what) = stream_changed(is, later) {
                return Some(format!("{} has {what}", is.config.name));
            }
        }
        let mut consumers = self.consumers.iter().zip(&later.consumers);
        let ((Lane { queue, .. }, _), _) = consumers.find(|((_, is), (_, later))| {
            // The times do not matter.
            let sequences = |info: &ConsumerInfo| {
                let (delivered, floor) = (&info.delivered, &info.ack_floor);
                (delivered.consumer_sequence, delivered.stream_sequence, floor.stream_sequence)
            };
            sequences(is) != sequences(later)
        })?;
        Some(format!("a {} has taken messages of {}", queue.consumer, queue.stream))
    }
}

/// The number of messages in the stream of this consumer that are for it.
pub(super) async fn in_the_queue(nats: &Context, consumer: &ConsumerInfo) -> anyhow::Result<u64> {
    let (stream, config) = (&consumer.stream_name, &consumer.config);
    let one = Some(&config.filter_subject).filter(|one| !one.is_empty());
    let mut messages = 0;
    for subjects in config.filter_subjects.iter().chain(one) {
        messages += count_since(nats, stream, subjects, Timestamp::UNIX_EPOCH).await?;
    }
    Ok(messages)
}

fn stream_changed(is: &StreamInfo, later: &StreamInfo) -> Option<&'static str> {
    let (config, is, later) = (&later.config, &is.state, &later.state);
    // A stream with an age limit removes old messages even while no service works.
    let forgets = !config.max_age.is_zero();
    if is.last_sequence != later.last_sequence {
        Some(if config.name == queues::SCHEDULES.stream {
            "got messages (one that falls due adds a message: remove it, or try again)"
        } else {
            "got messages"
        })
    } else if !forgets && is.messages != later.messages {
        Some("lost messages")
    } else {
        None
    }
}
