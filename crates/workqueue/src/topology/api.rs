//! The few calls of the broker's JetStream API that declaring needs, with one kind of failure.

use async_nats::jetstream::consumer::{Config as ConsumerConfig, Info as ConsumerInfo};
use async_nats::jetstream::context::{RequestError, RequestErrorKind};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{Config as StreamConfig, Info as StreamInfo};
use async_nats::jetstream::{Context, Error, ErrorCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::DeclareError;
use crate::Queue;
use crate::chain::chain;

/// Why a call came to nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// The broker answered that it will not.
    Refused(Error),
    /// The broker did not answer.
    Unanswered(RequestError),
}

impl Failure {
    pub(super) fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(error) => Some(error.error_code()),
            Self::Unanswered(_) => None,
        }
    }

    /// Whether nothing was heard at all.
    pub(super) fn is_silence(&self) -> bool {
        matches!(self, Self::Unanswered(error) if error.kind() == RequestErrorKind::TimedOut)
    }

    pub(super) fn into_error(self, action: String) -> DeclareError {
        match self {
            Self::Refused(source) => match source.error_code() {
                ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
                    DeclareError::NoJetStream("this address, for this account,".to_owned())
                }
                // Anything that calls itself unavailable (503) may be there a moment later, such
                // as a cluster that elects a leader. So may the brokers that are to keep a stream,
                // which are missing while a cluster starts, or one of them restarts.
                code if source.code() == 503 || code == ErrorCode::CLUSTER_NO_PEERS => {
                    DeclareError::Unavailable { action, reason: source.to_string() }
                }
                _ => DeclareError::Refused { action, source },
            },
            Self::Unanswered(error) => {
                let reason = match error.kind() {
                    RequestErrorKind::NoResponders => "its JetStream is not ready".to_owned(),
                    RequestErrorKind::TimedOut => {
                        "no answer; perhaps a leader has died, or this user may not ask for that"
                            .to_owned()
                    }
                    _ => chain(&error),
                };
                DeclareError::Unavailable { action, reason }
            }
        }
    }
}

pub(super) async fn stream_info(context: &Context, name: &str) -> Result<StreamInfo, Failure> {
    call(context, format!("STREAM.INFO.{name}"), &json!({})).await
}

pub(super) async fn create_stream(
    context: &Context,
    config: &StreamConfig,
) -> Result<StreamInfo, Failure> {
    call(context, format!("STREAM.CREATE.{}", config.name), config).await
}

pub(super) async fn update_stream(
    context: &Context,
    config: &StreamConfig,
) -> Result<StreamInfo, Failure> {
    call(context, format!("STREAM.UPDATE.{}", config.name), config).await
}

pub(super) async fn consumer_info(
    context: &Context,
    queue: Queue,
) -> Result<ConsumerInfo, Failure> {
    let subject = format!("CONSUMER.INFO.{}.{}", queue.stream, queue.consumer);
    call(context, subject, &json!({})).await
}

/// Creates a consumer, strictly: one that is there and differs is left as it is.
pub(super) async fn create_consumer(
    context: &Context,
    queue: Queue,
    config: &ConsumerConfig,
) -> Result<ConsumerInfo, Failure> {
    consumer(context, queue, config, "create").await
}

pub(super) async fn update_consumer(
    context: &Context,
    queue: Queue,
    config: &ConsumerConfig,
) -> Result<ConsumerInfo, Failure> {
    consumer(context, queue, config, "update").await
}

async fn consumer(
    context: &Context,
    queue: Queue,
    config: &ConsumerConfig,
    action: &str,
) -> Result<ConsumerInfo, Failure> {
    let Queue { stream, consumer, .. } = queue;
    let subject = format!("CONSUMER.CREATE.{stream}.{consumer}.{}", queue.filter());
    let request = json!({ "stream_name": stream, "config": config, "action": action });
    call(context, subject, &request).await
}

async fn call<T: DeserializeOwned>(
    context: &Context,
    subject: String,
    payload: &impl Serialize,
) -> Result<T, Failure> {
    match context.request(subject, payload).await {
        Ok(Response::Ok(answer)) => Ok(answer),
        Ok(Response::Err { error }) => Err(Failure::Refused(error)),
        Err(error) => Err(Failure::Unanswered(error)),
    }
}
