//! The contract between the two services.
//!
//! Two services exchange messages over queues, and record what has happened as facts:
//!
//! ```text
//! gateway   --due request-->    [SCHEDULES]       --> requestor    submits it once it is due
//! requestor --request-->        [REQUESTS]        --> generator    makes random strings
//! requestor <--response--       [RESPONSES]       <-- generator
//!     stores the strings
//! requestor --acknowledgment--> [ACKNOWLEDGMENTS] --> generator    marks them as received
//! ```
//!
//! A *queue* holds jobs until they are done ([`queues`]). A *fact* records an event and never changes
//! ([`facts`]). The modules `strings` and `key` have the types of their fields; `state` derives the state of a
//! request from the facts. No other crate spells the name of a stream, a subject or a bucket of this system.
//! This crate does no I/O: it reads no environment and no clock.
//!
//! For a service in another language, `asyncapi.yaml` describes the same contract.

pub mod facts;
pub mod queues;

mod key;
mod state;
mod strings;

pub use facts::{check_age, check_expiry};
pub use key::{IdempotencyKey, InvalidKey, MAX_KEY};
pub use state::{Decision, InvalidStatus, RequestState, RequestStatus};
pub use strings::{Amount, InvalidStrings, MAX_CHARACTERS, MAX_COUNT, MAX_LENGTH, Strings};

use workqueue::Commands;
use workqueue::topology::Topology;

/// The commands of this system that declare its topology.
pub const COMMANDS: Commands =
    Commands { declare: "decoupled declare", reconcile: "decoupled declare --watch" };

/// All queues and buckets of this system.
#[must_use]
pub fn topology() -> Topology {
    Topology::new(&queues::ALL, &facts::ALL)
}

/// As [`topology`], with the counters of rate limits, which a service needs only if its settings ask for them.
#[must_use]
pub fn whole_topology() -> Topology {
    topology().with_rates()
}
