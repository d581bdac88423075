//! Who waits for strings to be stored.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex};

use contract::RequestId;
use tokio::sync::Notify;

/// Those who wait for a request here. Any replica may store its strings: only what this one stores is
/// said here, and who waits has to look for itself, too.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Mutex<HashMap<RequestId, Bell>>);

/// Rings for everybody who waits for the same request.
#[derive(Debug, Default)]
struct Bell {
    rings: Arc<Notify>,
    waiting: usize,
}

/// A place among those who wait, for as long as this is there.
#[derive(Debug)]
pub(super) struct Place<'a> {
    all: &'a Waiting,
    id: RequestId,
    pub(super) rings: Arc<Notify>,
}

impl Waiting {
    /// Says that the strings of this request are stored.
    pub(crate) fn stored(&self, id: RequestId) {
        self.with(|bells| {
            if let Some(bell) = bells.get(&id) {
                bell.rings.notify_waiters();
            }
        });
    }

    /// A place to wait for this request.
    pub(super) fn place(&self, id: RequestId) -> Place<'_> {
        let rings = self.with(|bells| {
            let bell = bells.entry(id).or_default();
            bell.waiting += 1;
            Arc::clone(&bell.rings)
        });
        Place { all: self, id, rings }
    }

    fn with<T>(&self, act: impl FnOnce(&mut HashMap<RequestId, Bell>) -> T) -> T {
        act(&mut self.0.lock().expect("nothing panics while it holds this lock"))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.all.with(|bells| {
            if let Entry::Occupied(mut bell) = bells.entry(self.id) {
                bell.get_mut().waiting -= 1;
                if bell.get().waiting == 0 {
                    bell.remove();
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everybody_who_waits_hears_of_it_and_nothing_is_left_behind() {
        let waiting = Waiting::default();
        let id = RequestId::new();
        let (first, second) = (waiting.place(id), waiting.place(id));
        let (hears, hears_too) = (first.rings.notified(), second.rings.notified());
        waiting.stored(RequestId::new());
        waiting.stored(id);
        hears.await;
        hears_too.await;
        drop(first);
        assert_eq!(waiting.with(|bells| bells.len()), 1);
        drop(second);
        assert_eq!(waiting.with(|bells| bells.len()), 0);
    }
}
