//! Two services without a queue. `coupled-requestor` asks `coupled-generator` for a random string over HTTP, and waits
//! for the answer. Time-outs, retries and a circuit breaker limit the damage of an outage. Still, while the generator
//! is away, each request fails.
//!
//! ```console
//! $ cargo run --bin coupled-generator -- --work-time 50ms
//! $ cargo run --bin coupled-requestor -- --rate 10 --total 100
//! ```
//!
//! `cargo lab compare` runs them beside the system with queues, and breaks both.

use serde::{Deserialize, Serialize};

/// A request for a random string: the body of `POST /strings`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ask {
    /// The id of the request, the same at each attempt.
    pub id: String,
    /// The length of the string in characters.
    pub length: u32,
}

/// The answer to it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The string, of characters from A-Z, a-z and 0-9.
    pub value: String,
}
