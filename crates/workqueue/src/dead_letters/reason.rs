use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// The word that a reason begins with, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// It is not a job of its queue.
    Malformed,
    /// Its version is newer than the replicas support.
    Unsupported,
    /// It is past the time that its job may have, or older than the facts that prevent a second effect. It cannot be
    /// replayed.
    Expired,
    /// Its handler failed for good, or at the last attempt.
    Failed,
    /// It was delivered too often, and never settled.
    Exhausted,
    /// The reason begins with none of these words. Another program has written it.
    Other,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Malformed,
        Self::Unsupported,
        Self::Expired,
        Self::Failed,
        Self::Exhausted,
        Self::Other,
    ];

    /// The word itself.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unsupported => "unsupported",
            Self::Expired => "expired",
            Self::Failed => "failed",
            Self::Exhausted => "exhausted",
            Self::Other => "other",
        }
    }

    /// The word that this text begins with.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let word = text.split(|sign: char| !sign.is_ascii_alphanumeric()).next();
        word.and_then(|word| word.parse().ok()).unwrap_or(Self::Other)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The text is not a reason of a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a reason; the reasons are malformed, unsupported, expired, failed, exhausted and other"
)]
pub struct InvalidReason(String);

impl FromStr for Reason {
    type Err = InvalidReason;

    fn from_str(text: &str) -> Result<Self, InvalidReason> {
        let found = Self::ALL.into_iter().find(|reason| reason.as_str() == text);
        found.ok_or_else(|| InvalidReason(text.chars().take(64).collect()))
    }
}
