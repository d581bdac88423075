//! Reads all messages of a stream, without changing anything.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::message::Message;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use futures_util::TryStreamExt;
use tokio::time::timeout;

use crate::error_chain::Source;
use crate::id::JobId;
use crate::topology::{self, DeclareError};

/// The longest pause between two messages of the broker.
const SILENCE: Duration = Duration::from_secs(10);

/// The messages of a stream could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadStreamError {
    /// Its state could not be read: the stream may not exist.
    #[error("{0}")]
    State(#[from] DeclareError),
    /// Its messages could not be read.
    #[error("cannot read the stream {stream}")]
    Messages {
        /// The name of the stream.
        stream: String,
        /// The error.
        source: Source,
    },
}

impl ReadStreamError {
    /// The error of reading the messages of this stream.
    pub(crate) fn of(stream: &str) -> impl FnOnce(Source) -> Self {
        |source| Self::Messages { stream: stream.to_owned(), source }
    }
}

/// Calls `show` with each message of a stream under these subjects and its sequence, up to the currently last one. The
/// stream must not be a work queue, because those cannot be browsed.
///
/// In a cluster the messages come from any of the stream's brokers, and a broker that was away may lag: the end of its
/// messages is not the end of the stream. So the leader of the stream determines the end.
///
/// # Errors
///
/// If the broker does not answer, or has no such stream.
pub async fn each(
    nats: &Context,
    stream: &str,
    subjects: &str,
    show: impl FnMut(u64, &Message),
) -> Result<(), ReadStreamError> {
    let state = topology::stream_state(nats, stream).await?.state;
    if state.messages == 0 {
        return Ok(());
    }
    let reading = up_to(nats, stream, subjects, state.last_sequence, show);
    reading.await.map_err(ReadStreamError::of(stream))
}

/// Shows each message under these subjects that comes not after the `last` one.
async fn up_to(
    nats: &Context,
    stream: &str,
    subjects: &str,
    last: u64,
    mut show: impl FnMut(u64, &Message),
) -> Result<(), Source> {
    let handle = nats.get_stream_no_info(stream).await?;
    let config = OrderedConfig {
        // The call that creates a consumer with a name has its filter in the subject, and so in reach of
        // the broker's permissions.
        name: Some(format!("reading-{}", JobId::new())),
        filter_subject: subjects.to_owned(),
        ..OrderedConfig::default()
    };
    let consumer = handle.create_consumer(config).await?;
    if consumer.cached_info().num_pending == 0 && !is_more(&handle, subjects, 0, last).await? {
        return Ok(());
    }
    let mut messages = consumer.messages().await?;
    loop {
        let next = timeout(SILENCE, messages.try_next()).await;
        let next = next.map_err(|_too_long| "the broker went silent")??;
        let message = next.ok_or("the broker stopped sending")?;
        let info = message.info()?;
        let (sequence, pending) = (info.stream_sequence, info.pending);
        show(sequence, &message);
        if sequence >= last || pending == 0 && !is_more(&handle, subjects, sequence, last).await? {
            return Ok(());
        }
    }
}

/// Whether the leader of the stream has a message under these subjects that comes after this
/// sequence, and not after the last one.
async fn is_more(
    stream: &Stream<()>,
    subjects: &str,
    after: u64,
    last: u64,
) -> Result<bool, Source> {
    match stream.get_first_raw_message_by_subject(subjects, after + 1).await {
        Ok(message) => Ok(message.sequence <= last),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}
