//! The parameters of the dead letters' API.

use contract::queues;
use serde::{Deserialize, Deserializer};
use workqueue::Queue;
use workqueue::dead_letters::Reason;

use crate::input::{limit_within_bounds, named_if, whole_number};
use crate::problem::{Problem, ProblemKind};

/// The parameters of a list.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ListQuery {
    #[serde(deserialize_with = "named_if")]
    pub(super) reason: Option<Reason>,
    #[serde(deserialize_with = "queue_if")]
    pub(super) queue: Option<Queue>,
    #[serde(deserialize_with = "sequence")]
    pub(super) from: u64,
    #[serde(deserialize_with = "limit_within_bounds")]
    pub(super) limit: usize,
}

impl Default for ListQuery {
    fn default() -> Self {
        Self { reason: None, queue: None, from: 0, limit: 50 }
    }
}

/// The dead letters to discard: those with one reason, or with any.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiscardQuery {
    pub(super) reason: Option<String>,
    #[serde(default, deserialize_with = "queue_if")]
    pub(super) queue: Option<Queue>,
    #[serde(default, deserialize_with = "sequence")]
    pub(super) from: u64,
    #[serde(default, deserialize_with = "sequence_if")]
    pub(super) until: Option<u64>,
}

impl DiscardQuery {
    /// A client has to name a reason, so that it does not discard all dead letters by forgetting it.
    pub(super) fn range(self) -> Result<RangeQuery, Problem> {
        let Self { reason, queue, from, until } = self;
        let reason = match reason.as_deref() {
            Some("any") => None,
            Some(word) => Some(word.parse().map_err(|error| ProblemKind::Invalid.because(error))?),
            None => {
                let detail = "name a reason, such as ?reason=malformed, or ?reason=any";
                return Err(ProblemKind::Invalid.because(detail));
            }
        };
        Ok(RangeQuery { reason, queue, from, until })
    }
}

/// The parameters of an action on several dead letters.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RangeQuery {
    #[serde(deserialize_with = "named_if")]
    pub(super) reason: Option<Reason>,
    #[serde(deserialize_with = "queue_if")]
    pub(super) queue: Option<Queue>,
    #[serde(deserialize_with = "sequence")]
    pub(super) from: u64,
    #[serde(deserialize_with = "sequence_if")]
    pub(super) until: Option<u64>,
}

/// The greatest signed integer of 64 bits: some clients have no greater ones.
const MOST: u64 = i64::MAX as u64;

fn sequence<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let sequence = whole_number(&String::deserialize(deserializer)?);
    let help = || serde::de::Error::custom(format_args!("write a whole number from 0 to {MOST}"));
    sequence.filter(|sequence| *sequence <= MOST).ok_or_else(help)
}

fn sequence_if<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    sequence(deserializer).map(Some)
}

fn queue_if<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Queue>, D::Error> {
    let name = String::deserialize(deserializer)?;
    queues::named(&name).map(Some).map_err(serde::de::Error::custom)
}
