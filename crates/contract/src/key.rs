use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The most characters that an [`IdempotencyKey`] may have.
pub const MAX_KEY: usize = 255;

/// The name that a client of the HTTP API gives to a request, so that a repetition makes no second request: any text of
/// 1 to [`MAX_KEY`] characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// The key of its fact: the SHA-256 of the key in UTF-8, as 64 hexadecimal digits in lower case. The key itself may
    /// be any text, and so cannot be part of a subject.
    #[must_use]
    pub fn token(&self) -> String {
        format!("{:x}", Sha256::digest(self.0.as_bytes()))
    }
}

/// The text is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key of {0} characters: 1 to {MAX_KEY} are allowed")]
pub struct InvalidKey(usize);

impl TryFrom<String> for IdempotencyKey {
    type Error = InvalidKey;

    fn try_from(text: String) -> Result<Self, InvalidKey> {
        match text.chars().count() {
            1..=MAX_KEY => Ok(Self(text)),
            other => Err(InvalidKey(other)),
        }
    }
}

impl FromStr for IdempotencyKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        text.to_owned().try_into()
    }
}

impl From<IdempotencyKey> for String {
    fn from(key: IdempotencyKey) -> Self {
        key.0
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_has_1_to_255_characters_of_any_length_in_bytes() {
        for (text, is_key) in [
            (String::new(), false),
            ("a".to_owned(), true),
            ("ä".repeat(255), true),
            ("ä".repeat(256), false),
        ] {
            assert_eq!(text.parse::<IdempotencyKey>().is_ok(), is_key, "{text}");
        }
    }

    #[test]
    fn key_token_is_the_sha_256_of_the_key() {
        let token = "abc".parse::<IdempotencyKey>().unwrap().token();
        assert_eq!(token, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
