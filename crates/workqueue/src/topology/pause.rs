//! Pauses and resumes a queue.
//!
//! It uses [`call`], because the conversion of the errors of the client's `pause_consumer` and `resume_consumer` to an
//! [`ApiError`](crate::api::ApiError) takes more code than the call.

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::Info as ConsumerInfo;
use async_nats::jetstream::stream::PauseResponse;
use jiff::Timestamp;
use serde_json::json;

use super::error::DeclareError;
use crate::api::call;
use crate::queue::Queue;

/// The end of the pause of a consumer, if it is paused.
#[must_use]
pub fn paused_until(consumer: &ConsumerInfo) -> Option<Timestamp> {
    let until = consumer.config.pause_until.filter(|_| consumer.paused)?;
    Timestamp::from_nanosecond(until.unix_timestamp_nanos()).ok()
}

/// Pauses a queue until this time: the broker delivers none of its jobs to any worker, and accepts more. Workers
/// finish their jobs in flight. The pause survives a restart of the broker. Returns whether the queue is paused now;
/// it is not if that time has passed.
///
/// # Errors
///
/// As [`queue_state`](super::queue_state).
pub async fn pause(
    context: &Context,
    queue: Queue,
    until: Timestamp,
) -> Result<bool, DeclareError> {
    set_pause(context, queue, Some(until)).await
}

/// Resumes a paused queue. The workers continue within a second: a pull lasts that long, and the broker does not wake
/// it.
///
/// # Errors
///
/// As [`queue_state`](super::queue_state).
pub async fn resume(context: &Context, queue: Queue) -> Result<(), DeclareError> {
    set_pause(context, queue, None).await.map(|_| ())
}

async fn set_pause(
    context: &Context,
    queue: Queue,
    until: Option<Timestamp>,
) -> Result<bool, DeclareError> {
    let question = until.map_or_else(|| json!({}), |until| json!({ "pause_until": until }));
    let action = if until.is_some() { "pause" } else { "resume" };
    let mut paused = true;
    for lane in queue.lanes() {
        let subject = format!("CONSUMER.PAUSE.{}.{}", queue.stream, lane.consumer());
        let answer: PauseResponse = call(context, subject, &question).await.map_err(|error| {
            DeclareError::new(context, format!("{action} {}", lane.described()), error)
        })?;
        paused &= answer.paused;
    }
    Ok(paused)
}
