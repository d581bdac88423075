//! The metadata in which a stream keeps its past: when it was created, which stream it replaced, which facts it has lost.

use async_nats::jetstream::stream::{Config as StreamConfig, Info as StreamInfo};
use jiff::{SignedDuration, Timestamp};

/// The key of a stream's metadata under which it says when the one was created that was there before.
pub(super) const REPLACES: &str = "replaces";

/// When the stream was created in whose place a stream with this configuration was: what that one held is
/// gone. Nothing, as far as the processes knew that declared it.
#[must_use]
pub fn replaces(config: &StreamConfig) -> Option<Timestamp> {
    config.metadata.get(REPLACES)?.parse().ok()
}

/// The key of a bucket's metadata under which it says which facts it has lost.
pub(super) const LOST_FACTS: &str = "lost_facts";

/// When the last fact was stored that a bucket with this configuration has had and lost, as far as a process
/// has noticed: it was emptied, or an older copy of it was put in its place.
#[must_use]
pub fn lost_facts(config: &StreamConfig) -> Option<Timestamp> {
    config.metadata.get(LOST_FACTS)?.parse().ok()
}

/// The key of the metadata under which a stream in a backup says when it was created. A cluster would forget it.
pub const FIRST_CREATED: &str = "first_created";

/// When this stream was created, or the one that was backed up, if it was restored.
#[must_use]
pub fn first_created(stream: &StreamInfo) -> Timestamp {
    let backed_up = stream.config.metadata.get(FIRST_CREATED).and_then(|at| at.parse().ok());
    backed_up.unwrap_or_else(|| created_at(stream))
}

/// Until when a stream with this configuration certainly keeps a message that was stored then.
#[must_use]
pub fn expires_at(config: &StreamConfig, stored: Timestamp) -> Timestamp {
    /// By how much the clocks of two brokers may differ.
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
