//! The past of a stream, from its own information. Does no I/O.

use async_nats::jetstream::stream::Info;
use jiff::Timestamp;
use workqueue::topology;

/// The past of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) stream: String,
    /// When the stream was created; of a restored one, when the original was created.
    pub(super) created: Timestamp,
    /// When the earlier stream was created that this one replaces, if there was one.
    replaces: Option<Timestamp>,
    /// The time of the last fact that a process saw in it, and that was gone too early.
    lost_facts: Option<Timestamp>,
    /// For a bucket without its first facts, the time until which none of its facts can have expired.
    gone_until: Option<Timestamp>,
    /// The time of its oldest message; if it is empty, of its last one.
    pub(super) oldest: Option<Timestamp>,
    /// The number of messages that it has ever stored.
    pub(super) stored: u64,
}

impl Memory {
    pub(super) fn of(info: &Info, is_bucket: bool) -> Self {
        let state = &info.state;
        let created = topology::first_created(info);
        let is_empty = state.messages == 0;
        let oldest = if is_empty { state.last_timestamp } else { state.first_timestamp };
        // If a stream was empty when it was restored, the broker does not know the time of its last message.
        let oldest = Timestamp::from_nanosecond(oldest.unix_timestamp_nanos())
            .ok()
            .filter(|oldest| *oldest > Timestamp::UNIX_EPOCH);
        let gone = oldest.filter(|_| is_empty).unwrap_or(created);
        let lacks_facts = is_bucket && state.first_sequence > 1;
        Self {
            stream: info.config.name.clone(),
            created,
            replaces: topology::replaces(&info.config),
            lost_facts: topology::lost_facts(&info.config),
            gone_until: lacks_facts.then(|| topology::expires_at(&info.config, gone)),
            oldest,
            stored: state.last_sequence,
        }
    }

    /// The memory, if the stream replaces an earlier one.
    pub(super) fn if_replaced(self) -> Option<Self> {
        self.replaces.is_some().then_some(self)
    }

    /// A sign of an earlier store. `is_recent` says whether the guarantees hold for a time.
    pub(super) fn sign(
        &self,
        now: Timestamp,
        is_recent: impl Fn(Timestamp) -> bool,
    ) -> Option<String> {
        let Self { stream, created, .. } = self;
        if let Some(before) = self.replaces.filter(|_| is_recent(*created)) {
            return Some(format!(
                "a store was replaced at {created:.3}: there was another {stream}, created at {before:.3}"
            ));
        }
        if self.gone_until.is_some_and(|until| now < until) {
            return Some(format!("{stream} had facts that it should still have"));
        }
        let last = self.lost_facts.filter(|last| is_recent(*last))?;
        Some(format!("{stream} had facts of up to {last:.3} that are gone"))
    }
}

#[cfg(test)]
impl Memory {
    /// A stream that has lost nothing.
    pub(super) fn whole(stream: &str, created: Timestamp, oldest: Option<Timestamp>) -> Self {
        Self {
            stream: stream.to_owned(),
            created,
            replaces: None,
            lost_facts: None,
            gone_until: None,
            oldest,
            stored: u64::from(oldest.is_some()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use async_nats::jetstream::stream::Config;
    use serde_json::{Value, json};

    use super::*;

    const NEVER: &str = "0001-01-01T00:00:00Z";

    fn at(time: &str) -> Timestamp {
        format!("2026-01-02T{time}Z").parse().unwrap()
    }

    /// A bucket that was created at ten o'clock and keeps facts for two hours, with this metadata, and these sequences
    /// and times of its first and last message.
    fn bucket(metadata: &Value, [first, last]: [u64; 2], [oldest, newest]: [&str; 2]) -> Memory {
        let time = |time: &str| if time == NEVER { time.to_owned() } else { at(time).to_string() };
        let config = Config {
            name: "KV_requested".to_owned(),
            max_age: Duration::from_hours(2),
            metadata: serde_json::from_value(metadata.clone()).unwrap(),
            ..Config::default()
        };
        let info = json!({
            "config": config,
            "created": at("10:00:00"),
            "state": {
                "messages": last + 1 - first,
                "bytes": 0,
                "first_seq": first,
                "first_ts": time(oldest),
                "last_seq": last,
                "last_ts": time(newest),
                "consumer_count": 0,
            },
        });
        Memory::of(&serde_json::from_value(info).unwrap(), true)
    }

    /// Its sign at this time, if the guarantees hold for an hour.
    fn sign(memory: &Memory, now: &str) -> String {
        let is_recent = |time| at(now).duration_since(time).as_hours() < 1;
        memory.sign(at(now), is_recent).unwrap_or_default()
    }

    #[test]
    fn whole_bucket_shows_no_sign() {
        for (sequences, times) in [([1, 5], ["10:00:00", "10:05:00"]), ([1, 0], [NEVER, NEVER])] {
            assert_eq!(sign(&bucket(&json!({}), sequences, times), "10:30:00"), "");
        }
    }

    #[test]
    fn bucket_without_its_first_facts_shows_a_sign() {
        let words = "KV_requested had facts that it should still have";
        let asked_again = bucket(&json!({}), [6, 9], ["11:30:00", "11:31:00"]);
        let empty = bucket(&json!({}), [6, 5], [NEVER, "11:30:00"]);
        for (memory, until, expired) in
            [(asked_again, "11:59:58", "12:00:00"), (empty, "13:29:58", "13:30:00")]
        {
            assert_eq!(sign(&memory, until), words);
            assert_eq!(sign(&memory, expired), "");
        }
    }

    #[test]
    fn stream_that_replaces_another_shows_a_sign() {
        let metadata = json!({ "replaces": "2026-01-02T09:00:00Z" });
        let memory = bucket(&metadata, [1, 0], [NEVER, NEVER]);
        let words = "a store was replaced at 2026-01-02T10:00:00.000Z: there was another KV_requested, \
                     created at 2026-01-02T09:00:00.000Z";
        assert_eq!(sign(&memory, "10:30:00"), words);
        // By now all requests of the earlier stream are too old.
        assert_eq!(sign(&memory, "11:00:00"), "");
    }

    #[test]
    fn loss_that_a_process_has_noticed_is_a_sign() {
        let metadata = json!({ "lost_facts": "2026-01-02T12:30:00Z" });
        let memory = bucket(&metadata, [1, 5], ["10:00:00", "10:05:00"]);
        let words = "KV_requested had facts of up to 2026-01-02T12:30:00.000Z that are gone";
        assert_eq!(sign(&memory, "13:00:00"), words);
        assert_eq!(sign(&memory, "13:30:00"), "");
    }

    #[test]
    fn restored_stream_is_as_old_as_the_one_that_was_backed_up() {
        let metadata = json!({ "first_created": "2026-01-02T08:00:00Z" });
        // The broker does not know when the empty stream had its last message.
        let memory = bucket(&metadata, [6, 5], [NEVER, NEVER]);
        assert_eq!((memory.created, memory.oldest, memory.stored), (at("08:00:00"), None, 5));
        assert_eq!(sign(&memory, "10:30:00"), "");
    }
}
