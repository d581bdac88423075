//! The two sides of the system.

use std::fmt;

/// One of the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Asks and stores.
    Requestor,
    /// Answers and marks.
    Generator,
}

impl Side {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Requestor, Self::Generator];

    /// The name of its program.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Requestor => "requestor",
            Self::Generator => "generator",
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
