//! The streams that a process has seen, so that it notices when another stream replaces one.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use async_nats::jetstream::stream::Info;
use jiff::Timestamp;

use crate::topology::history::{created_at, expires_at};

/// The streams that existed when this process last looked, with the creation time and the last sequence of each.
///
/// When a store is lost, only the processes that used it remember it. The process that declares a stream again notes in
/// its metadata that there was an earlier one. The process that keeps the topology notes in a bucket that facts are
/// missing.
#[derive(Debug, Default)]
pub struct KnownStreams(Mutex<HashMap<String, Known>>);

/// The last known state of a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub(crate) created: Timestamp,
    last_sequence: u64,
    /// The time of its last message, if it had any.
    last_message: Option<Timestamp>,
}

impl KnownStreams {
    /// The last known state of the stream with this name.
    pub(crate) fn get(&self, stream: &str) -> Option<Known> {
        self.streams().get(stream).copied()
    }

    /// Records the stream that exists now.
    pub(crate) fn note(&self, stream: &Info) {
        self.streams().insert(stream.config.name.clone(), Known::of(stream));
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

impl Known {
    fn of(stream: &Info) -> Self {
        let state = &stream.state;
        let last = Timestamp::from_nanosecond(state.last_timestamp.unix_timestamp_nanos()).ok();
        Self {
            created: created_at(stream),
            last_sequence: state.last_sequence,
            last_message: last.filter(|_| state.messages > 0),
        }
    }

    /// The time of the last known fact in this bucket, if all known facts are gone, or the last of them, although none
    /// of them has expired.
    pub(crate) fn lost_facts(&self, bucket: &Info, now: Timestamp) -> Option<Timestamp> {
        let last = self.last_message.filter(|last| now < expires_at(&bucket.config, *last))?;
        let is_emptied = bucket.state.first_sequence > self.last_sequence;
        // The next leader of a cluster may lag for a moment.
        let is_set_back =
            bucket.config.num_replicas == 1 && bucket.state.last_sequence < self.last_sequence;
        (is_emptied || is_set_back).then_some(last)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use async_nats::jetstream::stream::Config;
    use jiff::SignedDuration;
    use serde_json::json;

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    /// A bucket that keeps facts for an hour, with those from the first number to the last, which was stored that
    /// long ago.
    fn bucket(first: u64, last: u64, age: Duration) -> Info {
        let stored = Timestamp::now() - SignedDuration::try_from(age).unwrap();
        let config = Config {
            name: "KV_requested".to_owned(),
            max_age: HOUR,
            num_replicas: 1,
            ..Config::default()
        };
        let info = json!({
            "config": config,
            "created": "2026-01-02T10:00:00Z",
            "state": {
                "messages": last + 1 - first,
                "bytes": 0,
                "first_seq": first,
                "first_ts": stored,
                "last_seq": last,
                "last_ts": stored,
                "consumer_count": 0,
            },
        });
        serde_json::from_value(info).unwrap()
    }

    #[test]
    fn bucket_that_goes_on_has_lost_nothing() {
        let known = Known::of(&bucket(1, 5, HOUR / 2));
        for (first, last) in [(1, 5), (1, 9), (3, 9)] {
            assert_eq!(
                known.lost_facts(&bucket(first, last, HOUR / 4), Timestamp::now()),
                None,
                "{first}..{last}"
            );
        }
    }

    #[test]
    fn bucket_that_is_set_back_or_emptied_has_lost_facts() {
        let before = bucket(1, 5, HOUR / 2);
        let known = Known::of(&before);
        for (first, last) in [(1, 4), (6, 5), (6, 9)] {
            let lost = known.lost_facts(&bucket(first, last, HOUR / 4), Timestamp::now());
            assert_eq!(lost, known.last_message, "{first}..{last}");
        }
        // The next leader of a cluster comes after it.
        let mut behind = bucket(1, 4, HOUR / 2);
        behind.config.num_replicas = 3;
        assert_eq!(known.lost_facts(&behind, Timestamp::now()), None);
    }

    #[test]
    fn facts_that_have_grown_too_old_are_not_lost() {
        let known = Known::of(&bucket(1, 5, HOUR));
        assert_eq!(known.lost_facts(&bucket(6, 9, HOUR / 4), Timestamp::now()), None);
        // It was empty when it was seen.
        let known = Known::of(&bucket(6, 5, HOUR / 2));
        assert_eq!(known.lost_facts(&bucket(6, 9, HOUR / 4), Timestamp::now()), None);
    }
}
