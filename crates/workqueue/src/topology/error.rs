//! Why the topology could not be declared.

use async_nats::jetstream::context::RequestErrorKind;
use async_nats::jetstream::{Context, ErrorCode};

use super::difference::Difference;
use crate::api::ApiError;
use crate::commands;
use crate::connect_error::ClientEnded;
use crate::error_chain::Source;

/// Why the topology could not be declared.
#[derive(Debug, thiserror::Error)]
pub enum DeclareError {
    /// The broker is too old to keep the guarantees.
    #[error(
        "the broker is version {0}, and 2.12 is the oldest that keeps the guarantees: older ones \
         ignore settings that they do not know; run a newer one"
    )]
    BrokerTooOld(String),
    /// The broker keeps no streams.
    #[error(
        "the broker at {0} has no JetStream, so it cannot keep a queue; start nats-server with -js \
         or a jetstream block in its configuration, and enable it for the account"
    )]
    NoJetStream(String),
    /// A stream or consumer on the broker breaks a guarantee.
    #[error(
        "a stream or consumer on the broker breaks a guarantee: {}; change that setting there, or empty the stream \
         and delete it, and it is created anew",
        .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    Breaks(Vec<Difference>),
    /// Another stream stores the messages of this one.
    #[error(
        "the broker cannot create stream {stream}: {taken}; change the subjects of that stream, or give \
         this system an account of its own"
    )]
    SubjectTaken {
        /// The stream that is missing.
        stream: String,
        /// Which of its subjects another stream stores, and which stream that is.
        taken: String,
    },
    /// Another consumer takes the messages of this one.
    #[error(
        "the broker cannot create {consumer}: {taken}, and a queue gives each message to one consumer; delete \
         that consumer, or change its filter"
    )]
    MessagesTaken {
        /// The consumer that is missing.
        consumer: String,
        /// Which of its messages another consumer takes, and which consumer that is.
        taken: String,
    },
    /// The broker refused the request.
    #[error("{}", refused(action, source))]
    Refused {
        /// The call.
        action: String,
        /// The broker's answer.
        source: async_nats::jetstream::Error,
    },
    /// There was no answer, or one that may soon change. Try again.
    #[error("the broker does not {action} at present: {source}")]
    Unavailable {
        /// The call.
        action: String,
        /// The error.
        source: Source,
    },
    /// The client has panicked.
    #[error(transparent)]
    Client(#[from] ClientEnded),
}

/// The error of a refusal, with the remedy if the object does not exist.
fn refused(action: &str, source: &async_nats::jetstream::Error) -> String {
    match source.error_code() {
        ErrorCode::STREAM_NOT_FOUND | ErrorCode::CONSUMER_NOT_FOUND => format!(
            "the broker cannot {action}, which is not there; start a service, or run {}",
            commands::declare()
        ),
        ErrorCode::STREAM_MAX_BYTES_REQUIRED => {
            format!("the broker refuses to {action}: {source}; set MAX_BYTES")
        }
        ErrorCode::STORAGE_RESOURCES_EXCEEDED => format!(
            "the broker refuses to {action}: {source}; set a smaller MAX_BYTES, or give the broker or its account \
             more storage"
        ),
        _ => format!("the broker refuses to {action}: {source}"),
    }
}

impl DeclareError {
    /// The error of declaring for a failed call.
    pub(super) fn new(context: &Context, action: String, error: ApiError) -> Self {
        match error {
            // Within a cluster another member may have it, and be away.
            ApiError::Unreachable(source) if source.kind() == RequestErrorKind::NoResponders => {
                let broker = context.client().server_info();
                if broker.jetstream || broker.cluster.is_some() {
                    let source = ApiError::Unreachable(source).into();
                    return Self::Unavailable { action, source };
                }
                Self::NoJetStream(format!("{}:{}", broker.host, broker.port))
            }
            ApiError::Refused(source) => match source.error_code() {
                ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
                    Self::NoJetStream("this address, for this account,".to_owned())
                }
                _ => Self::Refused { action, source },
            },
            error => Self::Unavailable { action, source: error.into() },
        }
    }
}
