//! The slots of a service for the jobs of all lanes of a queue: the most urgent job gets the next slot, and none
//! starves.
//!
//! If the queue has a rate limit, a job needs a permit as well, and gets slot and permit together. So the most
//! urgent job gets the next permit, and no job holds a permit that it cannot use. The jobs that wait here for a
//! permit are, in all lanes together, at most as many as a replica asks for at a time.

mod permits;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

use permits::{LANES, Permits};

use crate::clock::now;
use crate::lease;
use crate::priority::Priority;
use crate::rate_limit::RateLimit;

/// After this many slots, one goes to the job that has waited longest, whatever its priority.
const FAIR_TURN: u64 = 10;

/// The time for which a slot is kept for a more urgent job that is still on the broker. The job arrives sooner, unless
/// another replica has taken it.
const REFILL: Duration = Duration::from_millis(50);

/// The time for which jobs are gathered before a replica asks for permits, so that one request serves many jobs.
const GATHER: Duration = Duration::from_millis(2);

/// The slots of one queue with priorities, or with a rate limit.
#[derive(Clone, Debug)]
pub(crate) struct Slots(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    limit: Option<RateLimit>,
    /// Notified when there is room for more waiting jobs.
    room: watch::Sender<()>,
    /// The number of jobs that wait only for a permit.
    rate_limited: Gauge,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// The permits to start jobs, if there is a rate limit.
    permits: Option<Permits>,
    /// The number of slots given so far.
    given: u64,
    /// The number of jobs that have arrived.
    came: u64,
    /// The waiting jobs, by their sequence in the stream: the lowest has waited longest. The second number
    /// distinguishes two deliveries of one message.
    waiting: [BTreeMap<(u64, u64), oneshot::Sender<Slot>>; LANES],
    /// Whether the broker had more jobs of a lane behind the last one that arrived.
    has_more: [bool; LANES],
    /// The time until which the next job of a lane is expected, after one has left its slot.
    expected: [Option<Instant>; LANES],
    /// A task waits until one of these times.
    has_timer: bool,
}

/// The slot of a job that is being handled. Dropping it gives the slot to the next one.
#[derive(Debug)]
pub(crate) struct Slot {
    /// When it was given, with a permit of that second if there is a rate limit.
    pub(crate) given_at: Timestamp,
    of: Option<(Slots, Priority)>,
}

/// The next owner of a slot.
enum Turn {
    Job(Priority, oneshot::Sender<Slot>),
    /// A job that is expected until this time.
    Expected(Instant),
    None,
}

impl Slots {
    /// This number of slots, for a queue with one lane or several. With a rate limit each job needs a permit as
    /// well.
    pub(crate) fn new(
        slots: usize,
        has_lanes: bool,
        limit: Option<RateLimit>,
        rate_limited: Gauge,
    ) -> Self {
        let room = limit.as_ref().map(|limit| lease::size(limit.limit));
        let permits = room.map(|room| Permits::new(room, has_lanes));
        let state = Mutex::new(State {
            free: slots,
            permits,
            given: 0,
            came: 0,
            waiting: Default::default(),
            has_more: [false; LANES],
            expected: [None; LANES],
            has_timer: false,
        });
        Self(Arc::new(Shared { state, limit, room: watch::Sender::new(()), rate_limited }))
    }

    /// The most jobs that may wait here for a permit, or be on their way, and the most of this lane that may be on
    /// their way now. `None` without a rate limit.
    pub(crate) fn room(&self, priority: Priority) -> Option<(usize, usize)> {
        let mut state = self.state();
        let here = state.waiting.each_ref().map(BTreeMap::len);
        Some(state.permits.as_mut()?.room_of(priority as usize, here))
    }

    /// Records the most jobs of this lane that may be on their way.
    pub(crate) fn set_on_their_way(&self, priority: Priority, jobs: usize) {
        if let Some(permits) = &mut self.state().permits {
            permits.on_their_way[priority as usize] = jobs;
        }
    }

    /// Notifies when there is more room than before.
    pub(crate) fn watch_room(&self) -> watch::Receiver<()> {
        self.0.room.subscribe()
    }

    /// Waits for a slot, for the job with this priority and this sequence in the stream. `has_more`: whether the
    /// broker has more jobs of this priority.
    pub(crate) async fn take(&self, priority: Priority, sequence: u64, has_more: bool) -> Slot {
        let (grant, granted) = oneshot::channel();
        {
            let mut state = self.state();
            state.came += 1;
            let key = (sequence, state.came);
            let lane = priority as usize;
            state.waiting[lane].insert(key, grant);
            state.has_more[lane] = has_more;
            state.permits.iter_mut().for_each(|permits| permits.note_backlog(lane, has_more));
            state.expected[lane] = state.expected[lane].filter(|_| has_more);
        }
        self.give();
        granted.await.expect("it waits until its turn has come")
    }

    /// Gives the free slots to the next jobs.
    fn give(&self) {
        let given = self.give_permitted();
        let mut state = self.state();
        let waiting = state.waiting();
        let Some(permits) = &mut state.permits else { return };
        self.0.rate_limited.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        if waiting > 0 && !permits.is_asking && self.0.limit.is_some() {
            permits.is_asking = true;
            tokio::spawn(self.clone().ask());
        }
        if given {
            self.0.room.send_replace(());
        }
    }

    /// Asks for permits as long as jobs wait for them.
    async fn ask(self) {
        let Some(limit) = &self.0.limit else { return };
        loop {
            sleep(GATHER).await;
            let lease = limit.ask(|| self.state().wanted()).await;
            {
                let mut state = self.state();
                let waiting = state.waiting();
                let Some(permits) = &mut state.permits else { return };
                permits.lease.add(lease.unwrap_or_default());
                if lease.is_none() && (waiting == 0 || limit.is_abandoned()) {
                    permits.is_asking = false;
                    return;
                }
            }
            self.give();
        }
    }

    /// As [`Slots::give`], as far as there are permits. Returns whether a slot was given.
    fn give_permitted(&self) -> bool {
        let mut given = false;
        loop {
            let given_at = now();
            let (priority, grant) = {
                let mut state = self.state();
                let turn = if state.may_start(given_at) { state.next() } else { Turn::None };
                match turn {
                    Turn::Job(priority, grant) => {
                        state.free -= 1;
                        state.permits.iter_mut().for_each(|permits| permits.lease.spend());
                        (priority, grant)
                    }
                    Turn::Expected(until) => {
                        if !state.has_timer {
                            state.has_timer = true;
                            tokio::spawn(self.clone().give_at(until));
                        }
                        return given;
                    }
                    Turn::None => return given,
                }
            };
            given = true;
            let slot = Slot { given_at, of: Some((self.clone(), priority)) };
            if let Err(mut slot) = grant.send(slot) {
                // It waits no longer, so it is the next one's turn.
                slot.of = None;
                let mut state = self.state();
                state.free += 1;
                state.permits.iter_mut().for_each(|permits| permits.lease.take_back());
            }
        }
    }

    async fn give_at(self, at: Instant) {
        sleep_until(at).await;
        self.state().has_timer = false;
        self.give();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("nothing panics while it holds this lock")
    }
}

impl State {
    /// Whether a job could be started at this time.
    fn may_start(&self, now: Timestamp) -> bool {
        self.free > 0 && self.permits.as_ref().is_none_or(|permits| permits.left(now) > 0)
    }

    /// The number of jobs that wait only for a permit.
    fn waiting(&self) -> usize {
        self.waiting.iter().map(BTreeMap::len).sum::<usize>().min(self.free)
    }

    /// The number of further permits that can be used: one for each waiting job with a free slot. The jobs of a
    /// lane do not count while the broker has more jobs of a more urgent lane.
    fn wanted(&mut self) -> usize {
        let mut wanted = 0;
        for (waiting, has_more) in self.waiting.iter_mut().zip(self.has_more) {
            waiting.retain(|_, grant| !grant.is_closed());
            wanted += waiting.len();
            if has_more && !waiting.is_empty() {
                break;
            }
        }
        let left = self.permits.as_ref().map_or(0, |permits| permits.left(now()));
        wanted.min(self.free).saturating_sub(left)
    }

    /// The next owner of a free slot.
    fn next(&mut self) -> Turn {
        let fair = (self.given + 1).is_multiple_of(FAIR_TURN);
        let now = Instant::now();
        let mut lane = None;
        for priority in Priority::ALL {
            let index = priority as usize;
            let Some((&key, _)) = self.waiting[index].first_key_value() else {
                match self.expected[index].filter(|until| *until > now) {
                    Some(until) if lane.is_none() && !fair => return self.expect(until),
                    _ => continue,
                }
            };
            if lane.is_none_or(|(_, longest)| fair && key < longest) {
                lane = Some((priority, key));
            }
        }
        let Some((priority, key)) = lane else { return Turn::None };
        self.given += 1;
        match self.waiting[priority as usize].remove(&key) {
            Some(grant) => Turn::Job(priority, grant),
            None => Turn::None,
        }
    }

    /// An expected job is next, if another one waits for the slot.
    fn expect(&self, until: Instant) -> Turn {
        if self.waiting.iter().all(BTreeMap::is_empty) { Turn::None } else { Turn::Expected(until) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Some((slots, priority)) = self.of.take() else { return };
        {
            let mut state = slots.state();
            state.free += 1;
            let lane = priority as usize;
            state.expected[lane] = state.has_more[lane].then(|| Instant::now() + REFILL);
        }
        slots.give();
    }
}
