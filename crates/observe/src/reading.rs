//! Reads the messages of streams, without changing anything.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::message::Message;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use futures_util::TryStreamExt;
use tokio::time::timeout;
use workqueue::{JobId, topology};

/// How long the broker may be silent while it sends messages.
const SILENCE: Duration = Duration::from_secs(10);

/// Shows each message of a stream under these subjects with its sequence, up to the last one that is
/// there now. The stream must not be a work queue: those cannot be browsed.
///
/// In a cluster the messages come from any of the stream's brokers, and one that was away may be
/// behind: that it has no more is not the end. The stream's leader says where the end is.
pub(crate) async fn each(
    nats: &Context,
    stream: &str,
    subjects: &str,
    mut show: impl FnMut(u64, &Message),
) -> anyhow::Result<()> {
    let state = topology::stream_state(nats, stream).await?.state;
    if state.messages == 0 {
        return Ok(());
    }
    let last = state.last_sequence;
    let what = || format!("cannot read the stream {stream}");
    let handle = nats.get_stream_no_info(stream).await.with_context(what)?;
    let config = OrderedConfig {
        // The call that creates a consumer with a name has its filter in the subject, and so in reach of
        // the broker's permissions.
        name: Some(format!("observe-{}", JobId::new())),
        filter_subject: subjects.to_owned(),
        ..OrderedConfig::default()
    };
    let consumer = handle.create_consumer(config).await.with_context(what)?;
    if consumer.cached_info().num_pending == 0
        && !is_more(&handle, subjects, 0, last).await.with_context(what)?
    {
        return Ok(());
    }
    let mut messages = consumer.messages().await.with_context(what)?;
    loop {
        let next = timeout(SILENCE, messages.try_next()).await;
        let next = next.map_err(|_| anyhow!("the broker went silent")).with_context(what)?;
        let Some(message) = next.with_context(what)? else {
            return Err(anyhow!("the broker stopped sending")).with_context(what);
        };
        let info = message.info().map_err(|error| anyhow!(error)).with_context(what)?;
        let (sequence, pending) = (info.stream_sequence, info.pending);
        show(sequence, &message);
        if sequence >= last
            || pending == 0
                && !is_more(&handle, subjects, sequence, last).await.with_context(what)?
        {
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
) -> anyhow::Result<bool> {
    match stream.get_first_raw_message_by_subject(subjects, after + 1).await {
        Ok(message) => Ok(message.sequence <= last),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}
