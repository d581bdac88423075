//! Calls of the broker's JetStream API, with one kind of error for all of them.

use async_nats::jetstream::context::{RequestError, RequestErrorKind};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::{Context, Error, ErrorCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The broker refuses the request.
    #[error("the broker refuses: {0}")]
    Refused(Error),
    /// The broker refuses for now: a cluster elects a leader, or it starts and lacks brokers that keep a stream.
    #[error("{0}")]
    Unavailable(Error),
    /// The broker did not answer in time. It never answers a user without the permission.
    #[error("no answer; perhaps a leader has died, or this user may not ask for that")]
    TimedOut,
    /// The request did not reach the broker, or its answer cannot be read.
    #[error("JetStream does not answer; enable it on the broker, or set NATS_DOMAIN")]
    Unreachable(#[source] RequestError),
}

/// Asks the broker; `subject` is what follows `$JS.API.`.
///
/// # Errors
///
/// See [`ApiError`].
pub async fn call<T: DeserializeOwned>(
    context: &Context,
    subject: String,
    question: &impl Serialize,
) -> Result<T, ApiError> {
    match context.request(subject, question).await {
        Ok(response) => answer(response),
        Err(error) if error.kind() == RequestErrorKind::TimedOut => Err(ApiError::TimedOut),
        Err(error) => Err(ApiError::Unreachable(error)),
    }
}

/// Parses the answer of the broker.
///
/// # Errors
///
/// [`ApiError::Refused`] and [`ApiError::Unavailable`].
pub fn answer<T>(response: Response<T>) -> Result<T, ApiError> {
    match response {
        Response::Ok(answer) => Ok(answer),
        Response::Err { error }
            if error.error_code() == ErrorCode::CLUSTER_NO_PEERS
                || (error.code() == 503
                    && error.error_code() != ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT) =>
        {
            Err(ApiError::Unavailable(error))
        }
        Response::Err { error } => Err(ApiError::Refused(error)),
    }
}
