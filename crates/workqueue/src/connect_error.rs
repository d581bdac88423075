use std::fmt::Display;
use std::path::Path;

use crate::commands;
use crate::mask::{MASK, looks_secret};

/// Why there is no use in trying to connect again.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// A setting makes no sense.
    #[error("{setting} is '{value}': {reason}")]
    Setting {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: String,
        /// The error.
        reason: String,
    },
    /// No connection came about within the time that there was for it.
    #[error("cannot connect to the broker at {broker} (NATS_URL, --nats-url): {reason}")]
    Unreachable {
        /// The broker.
        broker: String,
        /// What went wrong last.
        reason: String,
    },
    /// The broker does not let this user in.
    #[error(
        "the broker at {broker} refuses {who}; check NATS_USER and NATS_PASSWORD, NATS_TOKEN, NATS_NKEY, \
         NATS_CREDS or NATS_URL"
    )]
    Refused {
        /// The broker.
        broker: String,
        /// As whom it was tried.
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
