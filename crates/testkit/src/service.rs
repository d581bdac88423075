//! The two services of the system.

use std::fmt;

/// One of the two services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// Asks for strings, and stores them.
    Requestor,
    /// Makes strings, and marks them as received.
    Generator,
}

impl Service {
    /// Both services.
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

impl fmt::Display for Service {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
