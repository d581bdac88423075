use std::fmt;
use std::panic::AssertUnwindSafe;
use std::str::FromStr;
use std::sync::Mutex;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::{Builder, ContextV7, Uuid, Variant};

use crate::clock::now;

/// The id of a job, and of everything that follows from it: a UUID of version 7.
///
/// An id is part of subjects and keys, where only equal texts are the same id. So only the usual spelling is accepted:
/// 36 characters, lower case, with hyphens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "Uuid")]
pub struct JobId(Uuid);

/// Orders the ids that this process makes within a millisecond.
static ORDER: Mutex<AssertUnwindSafe<ContextV7>> = Mutex::new(AssertUnwindSafe(ContextV7::new()));

impl JobId {
    /// A new id. Later ids sort after earlier ones.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "each call gives another value")]
    pub fn new() -> Self {
        // By the clock for ages: this machine's own clock may be reset.
        let now = now();
        let seconds = u64::try_from(now.as_second()).unwrap_or_default();
        let nanos = u32::try_from(now.subsec_nanosecond()).unwrap_or_default();
        Self(Uuid::new_v7(uuid::Timestamp::from_unix(&ORDER, seconds, nanos)))
    }

    /// The id of a job that this job publishes: the `number`th one to this stream. Each attempt derives the same id,
    /// so a repeated attempt publishes nothing new while the broker remembers the first.
    pub(crate) fn derived(self, stream: &str, number: u64) -> Self {
        let parent = self.0.as_u128();
        let digest = Sha256::new()
            .chain_update(parent.to_be_bytes())
            .chain_update(number.to_be_bytes())
            .chain_update(stream);
        let mut random = [0; 10];
        random.copy_from_slice(&digest.finalize()[..10]);
        Self(Builder::from_unix_timestamp_millis(self.millis(), &random).into_uuid())
    }

    /// The id of the job of one firing of a recurring schedule, which the broker stored at this time. `firing`
    /// identifies the firing: it is the same at each delivery of its message.
    pub(crate) fn fired(stored: Timestamp, firing: [&str; 2]) -> Self {
        let [scheduler, next] = firing;
        let digest = Sha256::new().chain_update(scheduler).chain_update(" ").chain_update(next);
        let mut random = [0; 10];
        random.copy_from_slice(&digest.finalize()[..10]);
        let millis = u64::try_from(stored.as_millisecond()).unwrap_or_default();
        Self(Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }

    /// The time at which the original job was made, by the clock of its producer. The job of a recurring schedule is
    /// made when it is due, by the clock of the broker.
    #[must_use]
    pub fn made_at(self) -> Timestamp {
        let millis = i64::try_from(self.millis()).ok();
        // The largest value is beyond the last date.
        millis.and_then(|millis| Timestamp::from_millisecond(millis).ok()).unwrap_or(Timestamp::MAX)
    }

    /// The first 48 bits of a UUID of version 7 are its time.
    fn millis(self) -> u64 {
        u64::try_from(self.0.as_u128() >> 80).expect("it has 48 bits")
    }

    /// Calls this function with the text, which is not allocated.
    pub(crate) fn with_text<T>(self, what: impl FnOnce(&str) -> T) -> T {
        what(self.0.hyphenated().encode_lower(&mut Uuid::encode_buffer()))
    }
}

/// The text is not the id of a job.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a UUID of version 7 in lower case with hyphens")]
pub struct InvalidId(String);

impl FromStr for JobId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId(text.chars().take(64).collect());
        let uuid = Uuid::try_parse(text).map_err(|_| invalid())?;
        let id = Self(uuid);
        let canonical = id.with_text(|spelling| spelling == text);
        if canonical && uuid.get_variant() == Variant::RFC4122 && uuid.get_version_num() == 7 {
            Ok(id)
        } else {
            Err(invalid())
        }
    }
}

impl TryFrom<String> for JobId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<JobId> for Uuid {
    fn from(id: JobId) -> Self {
        id.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_is_parsed_from_its_text() {
        let id = JobId::new();
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn derived_id_is_the_same_for_each_attempt_and_for_no_other_job() {
        let id = JobId::new();
        let derived = id.derived("GREETINGS", 1);
        assert_eq!(derived, id.derived("GREETINGS", 1));
        assert_eq!(derived.to_string().parse(), Ok(derived));
        let others = [id, JobId::new().derived("GREETINGS", 1), id.derived("OTHERS", 1)];
        assert!(!others.contains(&derived) && derived != id.derived("GREETINGS", 2));
    }

    #[test]
    fn id_and_those_derived_from_it_say_when_it_was_made() {
        let id: JobId = "01a1fcf7-7718-72cc-b56f-181b955ebc9c".parse().unwrap();
        assert_eq!(id.made_at().to_string(), "2026-11-21T07:17:18.744Z");
        assert_eq!(id.derived("GREETINGS", 1).made_at(), id.made_at());
        let last: JobId = "ffffffff-ffff-7fff-bfff-ffffffffffff".parse().unwrap();
        assert!(last.made_at() > id.made_at());
    }

    #[test]
    fn only_one_spelling_of_an_id_is_read() {
        let id = JobId::new();
        for other in [
            id.to_string().to_uppercase(),
            Uuid::from(id).simple().to_string(),
            Uuid::from(id).braced().to_string(),
            format!("{id} "),
            String::new(),
        ] {
            assert_eq!(other.parse::<JobId>(), Err(InvalidId(other.clone())));
        }
    }

    #[test]
    fn uuid_of_another_version_is_no_id() {
        let version_4 = "b5bb9d80-14a0-4f9b-9c61-2f1d1d5b5c5a";
        assert!(version_4.parse::<JobId>().is_err());
    }
}
