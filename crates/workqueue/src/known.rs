//! Which streams a process has seen, so that it notices one that takes the place of another.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use jiff::Timestamp;

/// The streams that were there when this process last looked, and when each was created.
///
/// A store that is lost takes all that it knew along. What is left is the memory of the processes that used
/// it: the one that declares a stream anew writes into it that there was another before.
#[derive(Debug, Default)]
pub struct KnownStreams(Mutex<HashMap<String, Timestamp>>);

impl KnownStreams {
    /// When the stream of this name was created that was there.
    pub(crate) fn created(&self, stream: &str) -> Option<Timestamp> {
        self.streams().get(stream).copied()
    }

    /// Notes that the stream of this name which is there was created then.
    pub(crate) fn note(&self, stream: &str, created: Timestamp) {
        self.streams().insert(stream.to_owned(), created);
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<String, Timestamp>> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}
