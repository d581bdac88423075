//! The slots of a service, in which the jobs of all lanes of a queue are handled: the most urgent one first,
//! and none starves.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::priority::Priority;

/// Each time that this many jobs have been given a slot, the one goes to the job that waits longest, whatever
/// its priority.
const FAIR_TURN: u64 = 10;

/// How long a slot is kept for a more urgent job that the broker has and that is not here yet. It is here sooner,
/// unless another replica has taken it.
const REFILL: Duration = Duration::from_millis(50);

/// The number of lanes.
const LANES: usize = Priority::ALL.len();

/// The slots of one queue with priorities.
#[derive(Clone, Debug)]
pub(crate) struct Slots(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    /// How many jobs have been given a slot.
    given: u64,
    /// How many jobs have come.
    came: u64,
    /// The jobs that wait, by their sequence in the stream: the lower, the longer has the job waited. The
    /// second number tells two deliveries of one message apart.
    waiting: [BTreeMap<(u64, u64), oneshot::Sender<Slot>>; LANES],
    /// Whether the broker had more of a lane behind the job that came last.
    has_more: [bool; LANES],
    /// Until when the next job of a lane is expected, since one has left its slot.
    expected: [Option<Instant>; LANES],
    /// A task waits until one of these times.
    has_timer: bool,
}

/// The slot of a job that is being handled. Dropping it gives the slot to the next one.
#[derive(Debug)]
pub(crate) struct Slot(Option<(Slots, Priority)>);

/// Whose turn it is.
enum Turn {
    Job(Priority, oneshot::Sender<Slot>),
    /// A job's that is expected until then.
    Expected(Instant),
    Nobody,
}

impl Slots {
    pub(crate) fn new(slots: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            free: slots,
            given: 0,
            came: 0,
            waiting: Default::default(),
            has_more: [false; LANES],
            expected: [None; LANES],
            has_timer: false,
        })))
    }

    /// Waits for a slot, for the job of this priority that has this sequence in the stream. The broker has
    /// more of this priority, or has not.
    pub(crate) async fn take(&self, priority: Priority, sequence: u64, has_more: bool) -> Slot {
        let (grant, granted) = oneshot::channel();
        {
            let mut state = self.state();
            state.came += 1;
            let key = (sequence, state.came);
            let lane = priority as usize;
            state.waiting[lane].insert(key, grant);
            state.has_more[lane] = has_more;
            state.expected[lane] = state.expected[lane].filter(|_| has_more);
        }
        self.give();
        granted.await.expect("it waits until its turn has come")
    }

    /// Gives the free slots to the jobs whose turn it is.
    fn give(&self) {
        loop {
            let (priority, grant) = {
                let mut state = self.state();
                let turn = if state.free == 0 { Turn::Nobody } else { state.next() };
                match turn {
                    Turn::Job(priority, grant) => {
                        state.free -= 1;
                        (priority, grant)
                    }
                    Turn::Expected(until) => {
                        if !state.has_timer {
                            state.has_timer = true;
                            tokio::spawn(self.clone().give_at(until));
                        }
                        return;
                    }
                    Turn::Nobody => return,
                }
            };
            if let Err(mut slot) = grant.send(Slot(Some((self.clone(), priority)))) {
                // It waits no longer, so it is the next one's turn.
                slot.0 = None;
                self.state().free += 1;
            }
        }
    }

    async fn give_at(self, at: Instant) {
        sleep_until(at).await;
        self.state().has_timer = false;
        self.give();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

impl State {
    /// Whose turn it is to be given a free slot.
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
        let Some((priority, key)) = lane else { return Turn::Nobody };
        self.given += 1;
        match self.waiting[priority as usize].remove(&key) {
            Some(grant) => Turn::Job(priority, grant),
            None => Turn::Nobody,
        }
    }

    /// It is the turn of a job that is expected, if another one waits for the slot.
    fn expect(&self, until: Instant) -> Turn {
        if self.waiting.iter().all(BTreeMap::is_empty) {
            Turn::Nobody
        } else {
            Turn::Expected(until)
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Some((slots, priority)) = self.0.take() else { return };
        {
            let mut state = slots.state();
            state.free += 1;
            let lane = priority as usize;
            state.expected[lane] = state.has_more[lane].then(|| Instant::now() + REFILL);
        }
        slots.give();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Has jobs wait for the only slot, and gives the order in which they get it.
    async fn order(jobs: &[(Priority, u64)]) -> Vec<u64> {
        let slots = Slots::new(1);
        let mut slot = slots.take(Priority::Low, 0, false).await;
        let mut waiting: Vec<_> = jobs
            .iter()
            .map(|&(priority, sequence)| {
                (sequence, Box::pin(slots.take(priority, sequence, false)))
            })
            .collect();
        for (_, waits) in &mut waiting {
            assert!(waits.now_or_never().is_none(), "the only slot is taken");
        }
        let mut order = Vec::new();
        for _ in jobs {
            drop(slot);
            let mut next = None;
            waiting.retain_mut(|(sequence, waits)| match waits.now_or_never() {
                Some(granted) => {
                    assert!(next.replace((*sequence, granted)).is_none(), "one slot, two jobs");
                    false
                }
                None => true,
            });
            let (sequence, granted) = next.expect("the slot went to nobody");
            order.push(sequence);
            slot = granted;
        }
        order
    }

    #[tokio::test]
    async fn most_urgent_job_is_next() {
        use Priority::{High, Low, Normal};
        let jobs = [(Low, 1), (Normal, 2), (High, 3), (Normal, 4), (High, 5), (Low, 6)];
        assert_eq!(order(&jobs).await, [3, 5, 2, 4, 1, 6]);
    }

    #[tokio::test]
    async fn each_tenth_slot_goes_to_the_one_that_waits_longest() {
        let mut jobs: Vec<_> = (10..40).map(|sequence| (Priority::High, sequence)).collect();
        jobs.extend([(Priority::Low, 1), (Priority::Normal, 2), (Priority::Low, 3)]);
        let order = order(&jobs).await;
        // The first slot was that of the job which they wait for.
        assert_eq!([order[8], order[18], order[28]], [1, 2, 3], "{order:?}");
    }

    #[tokio::test]
    async fn slot_of_a_job_that_waits_no_longer_goes_to_the_next() {
        let slots = Slots::new(1);
        let slot = slots.take(Priority::Normal, 1, false).await;
        let mut gone = Box::pin(slots.take(Priority::High, 2, false));
        let mut next = Box::pin(slots.take(Priority::Low, 3, false));
        assert!(gone.as_mut().now_or_never().is_none() && next.as_mut().now_or_never().is_none());
        drop(gone);
        drop(slot);
        // Given, and never looked at.
        drop(next);
        assert!(slots.take(Priority::Low, 4, false).now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn slot_is_kept_for_an_urgent_job_that_is_on_its_way() {
        let slots = Slots::new(1);
        let slot = slots.take(Priority::High, 1, true).await;
        let mut low = Box::pin(slots.take(Priority::Low, 2, false));
        assert!(low.as_mut().now_or_never().is_none());
        drop(slot);
        assert!(low.as_mut().now_or_never().is_none(), "the broker has another urgent one");
        let slot = slots.take(Priority::High, 3, false).now_or_never().expect("it is kept");
        drop(slot);
        assert!(low.now_or_never().is_some(), "the broker has no more urgent ones");
    }

    #[tokio::test(start_paused = true)]
    async fn slot_is_not_kept_for_an_urgent_job_that_does_not_come() {
        let slots = Slots::new(1);
        let slot = slots.take(Priority::High, 1, true).await;
        let began = Instant::now();
        let waits = slots.take(Priority::Low, 2, false);
        let (_slot, ()) = tokio::join!(waits, async { drop(slot) });
        assert_eq!(began.elapsed(), REFILL);
    }
}
