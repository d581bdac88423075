use std::fmt::Display;
use std::path::Path;

use crate::commands;
use crate::mask::{MASK, looks_secret};

/// Why another try to connect would not help.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// A setting is invalid.
    #[error("{setting} is '{value}': {reason}")]
    Setting {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: String,
        /// The error.
        reason: String,
    },
    /// No connection was established within the time limit.
    #[error("cannot connect to the broker at {broker} (NATS_URL, --nats-url): {reason}")]
    Unreachable {
        /// The broker.
        broker: String,
        /// The last error.
        reason: String,
    },
    /// The broker refuses the credentials.
    #[error(
        "the broker at {broker} refuses {who}; check NATS_USER and NATS_PASSWORD, NATS_TOKEN, NATS_NKEY, \
         NATS_CREDS or NATS_URL"
    )]
    Refused {
        /// The broker.
        broker: String,
        /// The user that was tried.
        who: String,
    },
}

/// The client has panicked, and cannot be revived.
#[derive(Debug, thiserror::Error)]
#[error(
    "the NATS client has panicked, most likely over the headers of a message that was published by hand: \
     its message is on the standard error. Run {}, which moves such a message to the dead letters, and start \
     this again",
    commands::reconcile()
)]
pub struct ClientEnded;

/// The error of the file that a setting names. Where the setting has the content of a file instead, it is
/// not shown.
pub(crate) fn setting(setting: &'static str, file: &Path, reason: impl Display) -> ConnectError {
    let value = file.display().to_string();
    if looks_secret(&value) {
        let reason = "it has to name a file, and looks like the content of one".to_owned();
        return ConnectError::Setting { setting, value: MASK.to_owned(), reason };
    }
    ConnectError::Setting { setting, value, reason: reason.to_string() }
}
