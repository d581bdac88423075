//! The metadata with the history of a stream: when it was created, which stream it replaced, which facts it has lost.

use async_nats::jetstream::stream::{Config as StreamConfig, Info as StreamInfo};
use jiff::{SignedDuration, Timestamp};

/// The key of a stream's metadata with the creation time of the earlier stream with the same name.
pub(super) const REPLACES: &str = "replaces";

/// The creation time of the earlier stream that a stream with this configuration has replaced: the messages of the
/// earlier one are gone. `None` if no process knew of an earlier one.
#[must_use]
pub fn replaces(config: &StreamConfig) -> Option<Timestamp> {
    config.metadata.get(REPLACES)?.parse().ok()
}

/// The key of a bucket's metadata that records its lost facts.
pub(super) const LOST_FACTS: &str = "lost_facts";

/// The time of the last lost fact of a bucket with this configuration, if a process has noticed a loss: the bucket was
/// emptied, or replaced by an older copy.
#[must_use]
pub fn lost_facts(config: &StreamConfig) -> Option<Timestamp> {
    config.metadata.get(LOST_FACTS)?.parse().ok()
}

/// The key of the metadata with the creation time of a stream in a backup. A cluster would lose it otherwise.
pub const FIRST_CREATED: &str = "first_created";

/// The creation time of this stream, or, if it was restored, that of the stream in the backup.
#[must_use]
pub fn first_created(stream: &StreamInfo) -> Timestamp {
    let backed_up = stream.config.metadata.get(FIRST_CREATED).and_then(|at| at.parse().ok());
    backed_up.unwrap_or_else(|| created_at(stream))
}

/// The time until which a stream with this configuration certainly keeps a message that was stored at this time.
#[must_use]
pub fn expires_at(config: &StreamConfig, stored: Timestamp) -> Timestamp {
    /// The largest difference of the clocks of two brokers.
    const CLOCKS: SignedDuration = SignedDuration::from_secs(1);

    if config.max_age.is_zero() {
        return Timestamp::MAX;
    }
    let expires = stored.saturating_add(config.max_age).unwrap_or(Timestamp::MAX);
    expires.checked_sub(CLOCKS).unwrap_or(expires)
}

/// When this stream was created.
#[must_use]
pub fn created_at(stream: &StreamInfo) -> Timestamp {
    Timestamp::from_nanosecond(stream.created.unix_timestamp_nanos()).unwrap_or_default()
}
