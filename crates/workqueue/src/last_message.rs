use async_nats::jetstream::Context;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{LastRawMessageError, LastRawMessageErrorKind};

/// The last message of a stream under a subject, if there is one, from the leader of the stream.
///
/// # Errors
///
/// If the broker does not answer, or has no such stream.
///
/// # Panics
///
/// If no stream can have this name.
pub async fn last_message(
    context: &Context,
    stream: &str,
    subject: &str,
) -> Result<Option<StreamMessage>, LastRawMessageError> {
    let handle = context.get_stream_no_info(stream).await.expect("it asks for nothing yet");
    match handle.get_last_raw_message_by_subject(subject).await {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error),
    }
}
