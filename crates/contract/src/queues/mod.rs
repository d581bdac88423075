//! The three queues, and the message that each of them holds.
//!
//! | queue | message | published by | consumed by |
//! | --- | --- | --- | --- |
//! | [`REQUESTS`] | [`Request`] | requestor | generator |
//! | [`RESPONSES`] | [`Response`] | generator | requestor |
//! | [`ACKNOWLEDGMENTS`] | [`Acknowledgment`] | requestor | generator |
//!
//! A queue is a stream that forgets a message once its consumer has acknowledged it.

mod acknowledgments;
mod requests;
mod responses;

pub use acknowledgments::{ACKNOWLEDGMENTS, Acknowledgment};
pub use requests::{REQUESTS, Request};
pub use responses::{RESPONSES, Response};

use workqueue::Queue;

/// All queues, in the order in which a request passes through them.
pub const ALL: [Queue; 3] = [REQUESTS, RESPONSES, ACKNOWLEDGMENTS];
