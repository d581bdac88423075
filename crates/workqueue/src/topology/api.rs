//! The calls of the JetStream API for declaring, each with an [`ApiError`].
//!
//! The client has methods for them, each with its own error type, and the conversion to an [`ApiError`] takes more code
//! than these calls. It is not always possible, either: `create_stream`, `update_stream` and `consumer_info` drop the
//! broker's answer if something is not found, and `create_consumer_strict_on_stream` and `update_consumer_on_stream` do
//! not report whether JetStream was reached.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{Config as ConsumerConfig, Info as ConsumerInfo};
use async_nats::jetstream::stream::{Config as StreamConfig, Info as StreamInfo};
use serde_json::json;

use crate::api::{ApiError, call};
use crate::queue::Lane;

pub(super) async fn stream_info(context: &Context, name: &str) -> Result<StreamInfo, ApiError> {
    call(context, format!("STREAM.INFO.{name}"), &json!({})).await
}

pub(super) async fn create_stream(
    context: &Context,
    config: &StreamConfig,
) -> Result<StreamInfo, ApiError> {
    /// A shorter window would be of no use.
    const SHORTEST: Duration = Duration::from_secs(1);

    let mut config = config.clone();
    loop {
        match call(context, format!("STREAM.CREATE.{}", config.name), &config).await {
            // A server may have a limit of the window that it does not tell. The window is a convenience.
            Err(ApiError::Refused(error))
                if error.to_string().contains("duplicates window")
                    && config.duplicate_window > SHORTEST =>
            {
                config.duplicate_window = (config.duplicate_window / 2).max(SHORTEST);
            }
            answer => return answer,
        }
    }
}

pub(super) async fn update_stream(
    context: &Context,
    config: &StreamConfig,
) -> Result<StreamInfo, ApiError> {
    call(context, format!("STREAM.UPDATE.{}", config.name), config).await
}

pub(super) async fn consumer_info(context: &Context, lane: Lane) -> Result<ConsumerInfo, ApiError> {
    let subject = format!("CONSUMER.INFO.{}.{}", lane.queue.stream, lane.consumer());
    call(context, subject, &json!({})).await
}

/// Creates a consumer strictly: a different consumer with the same name is not changed.
pub(super) async fn create_consumer(
    context: &Context,
    lane: Lane,
    config: &ConsumerConfig,
) -> Result<ConsumerInfo, ApiError> {
    consumer(context, lane, config, "create").await
}

pub(super) async fn update_consumer(
    context: &Context,
    lane: Lane,
    config: &ConsumerConfig,
) -> Result<ConsumerInfo, ApiError> {
    consumer(context, lane, config, "update").await
}

async fn consumer(
    context: &Context,
    lane: Lane,
    config: &ConsumerConfig,
    action: &str,
) -> Result<ConsumerInfo, ApiError> {
    let (stream, consumer) = (lane.queue.stream, lane.consumer());
    // The broker wants the filter in the subject, if it is the only one.
    let subject = match config.filter_subject.as_str() {
        "" => format!("CONSUMER.CREATE.{stream}.{consumer}"),
        filter => format!("CONSUMER.CREATE.{stream}.{consumer}.{filter}"),
    };
    let request = json!({ "stream_name": stream, "config": config, "action": action });
    call(context, subject, &request).await
}
