//! Looks for dead letters.

use std::pin::pin;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use contract::queues::Queue;
use contract::{RequestId, dead_letters};
use workqueue::{Connection, ReadError};

/// The last message about this request that was taken from this queue and given up, if there is one.
///
/// # Errors
///
/// Where the broker does not say.
pub(crate) async fn dead_letter(
    connection: &Connection,
    queue: Queue,
    id: RequestId,
) -> Result<Option<StreamMessage>, ReadError> {
    let stream = connection.context().get_stream_no_info(dead_letters::STREAM).await;
    let stream = stream.expect("the names of the contract are valid");
    let subject = dead_letters::subject(queue.stream, &id.to_string());
    let last = stream.get_last_raw_message_by_subject(&subject);
    match connection.ask(pin!(last)).await.ok_or(ReadError::Unknown)? {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(_) => Err(ReadError::Unknown),
    }
}

/// Why it was given up, as it says itself.
pub(crate) fn reason(dead: &StreamMessage) -> &str {
    dead.headers.get(dead_letters::REASON).map_or("no reason given", |reason| reason.as_str())
}
