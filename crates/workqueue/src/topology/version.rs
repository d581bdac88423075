//! Whether the broker is recent enough to keep the guarantees.

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::Info as StreamInfo;

use super::error::DeclareError;

/// The oldest broker that knows all the settings that the guarantees rest on.
const OLDEST_BROKER: [u64; 3] = [2, 12, 0];

/// Refuses a broker that ignores settings which the guarantees rest on. Where the one that the client is
/// connected to keeps no streams, only that which keeps the stream counts.
pub(super) fn check_version(
    context: &Context,
    stream: Option<&StreamInfo>,
) -> Result<(), DeclareError> {
    let connected = context.client().server_info();
    let of_stream = stream.and_then(|stream| stream.config.metadata.get("_nats.ver").cloned());
    let version = of_stream.or_else(|| connected.jetstream.then_some(connected.version));
    match version {
        Some(version) if !is_recent(&version) => Err(DeclareError::BrokerTooOld(version)),
        _ => Ok(()),
    }
}

/// Whether a broker of this version knows all the settings. What is no version may be a build of one's own.
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
        for old in ["2.11.99", "2.9.10", "1.4.1", "2.2.0-beta"] {
            assert!(!is_recent(old), "{old}");
        }
    }
}
