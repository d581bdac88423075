//! Reads the last message under a subject.

use std::pin::pin;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};

use crate::connection::Connection;
use crate::facts::ReadError;

/// The last message of a stream under a subject, if there is one: as the stream's leader has it.
///
/// # Errors
///
/// [`ReadError::Unknown`] where the broker does not say.
pub async fn last_message(
    connection: &Connection,
    stream: &str,
    subject: &str,
) -> Result<Option<StreamMessage>, ReadError> {
    let stream = handle(connection, stream).await?;
    let last = stream.get_last_raw_message_by_subject(subject);
    match connection.ask(pin!(last)).await.ok_or(ReadError::Unknown)? {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(_) => Err(ReadError::Unknown),
    }
}

/// The same, from the nearest broker of a cluster, and only where that one has nothing from the leader.
/// For what never changes once it is there.
pub(crate) async fn nearest_message(
    connection: &Connection,
    stream: &str,
    subject: &str,
) -> Result<Option<StreamMessage>, ReadError> {
    let nearest = handle(connection, stream).await?;
    let nearest = nearest.direct_get_last_for_subject(subject);
    match connection.ask(pin!(nearest)).await.ok_or(ReadError::Unknown)? {
        Ok(message) => Ok(Some(message)),
        Err(_) => last_message(connection, stream, subject).await,
    }
}

async fn handle(connection: &Connection, stream: &str) -> Result<Stream<()>, ReadError> {
    // It asks for nothing yet; the name alone can be wrong.
    let handle = connection.context().get_stream_no_info(stream).await;
    handle.map_err(|_| ReadError::Unknown)
}
