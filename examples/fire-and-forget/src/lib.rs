//! Two services with plain publish and subscribe: `forgetful-requestor` publishes requests, and `forgetful-generator`
//! subscribes to them and publishes responses. Neither waits for the other. But a message without a subscriber at that
//! moment is lost, and two generators both answer each request.
//!
//! ```console
//! $ nats-server
//! $ cargo run --bin forgetful-generator
//! $ cargo run --bin forgetful-requestor -- --rate 10 --total 100
//! ```
//!
//! `cargo lab compare` runs them beside the system with queues, and breaks both.

use serde::{Deserialize, Serialize};

/// The subjects of the messages.
pub const REQUESTS: &str = "forgetful.requests";
/// See [`REQUESTS`].
pub const RESPONSES: &str = "forgetful.responses";
/// See [`REQUESTS`].
pub const ACKNOWLEDGMENTS: &str = "forgetful.acknowledgments";

/// A request for a random string.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Its id.
    pub id: String,
    /// The length of the string in characters.
    pub length: u32,
}

/// The answer to a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Response {
    /// The id of the request.
    pub id: String,
    /// The string, of characters from A-Z, a-z and 0-9.
    pub value: String,
}

/// A response has been stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Acknowledgment {
    /// The id of the request.
    pub id: String,
}
