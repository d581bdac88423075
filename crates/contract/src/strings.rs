use serde::{Deserialize, Serialize, Serializer};

/// The most strings that one request may ask for.
pub const MAX_COUNT: u32 = 1000;

/// The most characters that one string may have.
pub const MAX_LENGTH: u32 = 1024;

/// The most characters that all strings of one request may have together.
pub const MAX_CHARACTERS: u32 = 65_536;

/// The number of the requested strings, and the length of each. It is always within the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    count: u32,
    length: u32,
}

impl Amount {
    /// `count` strings of `length` characters each.
    ///
    /// # Errors
    ///
    /// If one of them is 0, `count` above [`MAX_COUNT`], `length` above [`MAX_LENGTH`], or their product above
    /// [`MAX_CHARACTERS`].
    pub fn new(count: u32, length: u32) -> Result<Self, InvalidStrings> {
        if !(1..=MAX_COUNT).contains(&count) {
            return Err(InvalidStrings::Count(count.into()));
        }
        if !(1..=MAX_LENGTH).contains(&length) {
            return Err(InvalidStrings::Length(length.into()));
        }
        if count * length > MAX_CHARACTERS {
            return Err(InvalidStrings::Characters { count, length });
        }
        Ok(Self { count, length })
    }

    /// The number of strings.
    #[must_use]
    pub fn count(self) -> u32 {
        self.count
    }

    /// The number of characters in each.
    #[must_use]
    pub fn length(self) -> u32 {
        self.length
    }
}

/// The strings that answer a request: at least one, all of the same length, made of `A-Z a-z 0-9`,
/// and within the limits of an [`Amount`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct Strings(Vec<String>);

impl Strings {
    /// The strings themselves.
    #[must_use]
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }
}

impl TryFrom<Vec<String>> for Strings {
    type Error = InvalidStrings;

    fn try_from(values: Vec<String>) -> Result<Self, InvalidStrings> {
        let length = values.first().map_or(1, String::len);
        let as_u32 = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Amount::new(as_u32(values.len()), as_u32(length))?;
        for (index, value) in values.iter().enumerate() {
            if !value.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                return Err(InvalidStrings::Alphabet { index });
            }
            if value.len() != length {
                return Err(InvalidStrings::Uneven { index });
            }
        }
        Ok(Self(values))
    }
}

impl Serialize for Strings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// The reason for which an amount or strings are invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidStrings {
    /// Too many strings, or none.
    #[error("{0} strings: 1 to {MAX_COUNT} are allowed")]
    Count(u64),
    /// A string that is too long, or empty.
    #[error("{0} characters in a string: 1 to {MAX_LENGTH} are allowed")]
    Length(u64),
    /// Too many characters in all strings together.
    #[error(
        "{count} strings of {length} characters: {MAX_CHARACTERS} characters in all are allowed"
    )]
    Characters {
        /// The number of strings.
        count: u32,
        /// The number of characters in each.
        length: u32,
    },
    /// A character outside the alphabet.
    #[error("the string at {index} has characters other than A-Z, a-z and 0-9")]
    Alphabet {
        /// The place of the first such string, from 0.
        index: usize,
    },
    /// A string of another length than the first.
    #[error("the string at {index} is not as long as the first")]
    Uneven {
        /// The place of the first such string, from 0.
        index: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_an_amount_are_inclusive() {
        for (count, length) in [(1, 1), (1, 1024), (64, 1024), (1000, 65)] {
            assert!(Amount::new(count, length).is_ok(), "{count} × {length}");
        }
        for (count, length) in [(0, 1), (1, 0), (1001, 1), (1, 1025), (65, 1024), (1000, 66)] {
            assert!(Amount::new(count, length).is_err(), "{count} × {length}");
        }
    }

    #[test]
    fn only_generated_strings_are_an_answer() {
        let strings = |values: &[&str]| {
            Strings::try_from(values.iter().copied().map(str::to_owned).collect::<Vec<_>>())
        };
        assert!(strings(&["aZ9", "000"]).is_ok());
        assert_eq!(strings(&[]), Err(InvalidStrings::Count(0)));
        assert_eq!(strings(&["a", ""]), Err(InvalidStrings::Uneven { index: 1 }));
        assert_eq!(strings(&[""]), Err(InvalidStrings::Length(0)));
        assert_eq!(strings(&["ab", "a-"]), Err(InvalidStrings::Alphabet { index: 1 }));
        assert_eq!(strings(&["ä"]), Err(InvalidStrings::Alphabet { index: 0 }));
    }
}
