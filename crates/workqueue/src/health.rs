use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::info;

use crate::queue::Lane;

/// The state behind `/readyz`. It never depends on another service, because that would couple the services again.
#[derive(Debug, Default)]
pub(crate) struct Health {
    connected: AtomicBool,
    stopping: AtomicBool,
    /// Whether all lanes that this service consumes are known.
    started: AtomicBool,
    announced: AtomicBool,
    /// The error of this machine's clock, for people.
    clock: Mutex<Option<String>>,
    unbound: Mutex<HashSet<Lane>>,
}

impl Health {
    pub(crate) fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Relaxed);
    }

    pub(crate) fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    pub(crate) fn set_started(&self) {
        self.started.store(true, Ordering::Relaxed);
        self.announce();
    }

    /// Records the error of this machine's clock, if there is one.
    pub(crate) fn set_clock(&self, wrong: Option<String>) {
        *self.clock.lock().expect("nothing panics while it holds this lock") = wrong;
        self.announce();
    }

    /// Records whether this lane can be consumed.
    pub(crate) fn set_bound(&self, lane: Lane, bound: bool) {
        let mut unbound = self.unbound.lock().expect("nothing panics while it holds this lock");
        if bound {
            unbound.remove(&lane);
        } else {
            unbound.insert(lane);
        }
        drop(unbound);
        self.announce();
    }

    /// Logs once that the service is ready.
    fn announce(&self) {
        if self.not_ready().is_none() && !self.announced.swap(true, Ordering::Relaxed) {
            info!("ready");
        }
    }

    /// The state of this service, in a word: starting, ready or stopping.
    pub(crate) fn state(&self) -> &'static str {
        if self.stopping.load(Ordering::Relaxed) {
            "stopping"
        } else if self.not_ready().is_some() {
            "starting"
        } else {
            "ready"
        }
    }

    /// Why this service is not ready, if it is not.
    pub(crate) fn not_ready(&self) -> Option<String> {
        if self.stopping.load(Ordering::Relaxed) {
            return Some("stopping".to_owned());
        }
        if !self.connected.load(Ordering::Relaxed) {
            return Some("not connected to the broker".to_owned());
        }
        if !self.started.load(Ordering::Relaxed) {
            return Some("starting".to_owned());
        }
        let clock = self.clock.lock().expect("nothing panics while it holds this lock");
        if clock.is_some() {
            return clock.clone();
        }
        let unbound = self.unbound.lock().expect("nothing panics while it holds this lock");
        unbound.iter().next().map(|lane| format!("{} is not bound", lane.described()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::priority::Priority;
    use crate::queue::Queue;

    const REQUESTS: Lane =
        Queue::new("REQUESTS", "requests").consumer("generator").lane(Priority::Normal);

    #[test]
    fn service_is_ready_when_connected_and_bound() {
        let health = Health::default();
        let why = || health.not_ready().unwrap_or_default();
        assert_eq!(why(), "not connected to the broker");
        health.set_connected(true);
        assert_eq!(why(), "starting");
        health.set_started();
        assert_eq!(why(), "");
        health.set_bound(REQUESTS, false);
        assert_eq!(why(), "consumer generator of stream REQUESTS is not bound");
        health.set_bound(REQUESTS, true);
        assert_eq!(why(), "");
        health.set_clock(Some("it is late".to_owned()));
        assert_eq!(why(), "it is late");
        health.set_clock(None);
        health.set_connected(false);
        assert_eq!(why(), "not connected to the broker");
        health.set_connected(true);
        health.set_stopping();
        assert_eq!(why(), "stopping");
    }
}
