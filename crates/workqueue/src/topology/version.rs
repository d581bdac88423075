//! Whether the broker is recent enough to keep the guarantees.

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::Info as StreamInfo;
use serde::Deserialize;
use serde_json::json;

use super::error::DeclareError;
use crate::api::call;

/// The oldest broker that supports all settings that the guarantees need.
const OLDEST_BROKER: [u64; 3] = [2, 12, 0];

/// The name for the version of a broker that does not report it.
const SAYS_NO_VERSION: &str = "2.10 or older";

/// Refuses the broker that keeps this stream, if it ignores settings that the guarantees need.
pub(super) fn check_version(stream: &StreamInfo) -> Result<(), DeclareError> {
    let version = stream.config.metadata.get("_nats.ver").map_or(SAYS_NO_VERSION, String::as_str);
    if is_recent(version) { Ok(()) } else { Err(DeclareError::BrokerTooOld(version.to_owned())) }
}

/// The same for the broker that would create a stream. In a cluster, or behind a leaf node, that is most likely not the
/// broker that the client is connected to.
pub(super) async fn check_creator(context: &Context) -> Result<(), DeclareError> {
    #[derive(Deserialize)]
    struct Account {
        api: Api,
    }
    #[derive(Deserialize)]
    struct Api {
        #[serde(default)]
        level: u64,
    }

    // Else the creator is recent as well, or its version is checked once it has created the stream.
    if is_recent(&context.client().server_info().version) {
        return Ok(());
    }
    // A user without the permission to ask may have the one to create.
    let account: Result<Account, _> = call(context, "INFO".to_owned(), &json!({})).await;
    match account.map(|account| account.api.level) {
        Ok(0) => Err(DeclareError::BrokerTooOld(SAYS_NO_VERSION.to_owned())),
        Ok(1) => Err(DeclareError::BrokerTooOld("2.11".to_owned())),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Whether a broker of this version supports all the settings. A text that is not a version may be a custom build.
fn is_recent(version: &str) -> bool {
    let numbers = version.split(['.', '-', '+']).map_while(|part| part.parse::<u64>().ok());
    let numbers: Vec<u64> = numbers.take(OLDEST_BROKER.len()).collect();
    numbers.is_empty() || numbers.as_slice() >= OLDEST_BROKER.as_slice()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_of_a_broker_is_compared_by_its_numbers() {
        for recent in ["2.12.0", "2.15.1", "2.12.0-RC.3", "3.0.0", "2.100.0", "dev"] {
            assert!(is_recent(recent), "{recent}");
        }
        for old in [SAYS_NO_VERSION, "2.11.99", "2.9.10", "1.4.1", "2.2.0-beta"] {
            assert!(!is_recent(old), "{old}");
        }
    }
}
