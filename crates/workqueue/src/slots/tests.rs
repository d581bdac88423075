use std::num::NonZeroU32;

use futures_util::FutureExt;

use super::*;
use crate::clock::now;
use crate::lease::Lease;

/// So many slots, without a rate limit.
fn slots(slots: usize) -> Slots {
    Slots::new(slots, true, None, Gauge::default())
}

/// So many slots, with room for so many jobs that wait for a permit.
fn limited(number: usize, has_lanes: bool, room: usize) -> Slots {
    let slots = slots(number);
    slots.state().permits = Some(Permits::new(room, has_lanes));
    slots
}

/// Grants so many permits for this second.
fn grant(slots: &Slots, permits: u64) {
    let most = NonZeroU32::new(1000).unwrap();
    let lease = Lease::granted(now().as_second(), permits, permits, most);
    slots.state().permits.as_mut().unwrap().lease = lease;
    slots.give();
}

/// Has jobs wait for the only slot, and gives the order in which they get it.
async fn order(jobs: &[(Priority, u64)]) -> Vec<u64> {
    let slots = slots(1);
    let mut slot = slots.take(Priority::Low, 0, false).await;
    let mut waiting: Vec<_> = jobs
        .iter()
        .map(|&(priority, sequence)| (sequence, Box::pin(slots.take(priority, sequence, false))))
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
    let slots = slots(1);
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
    let slots = slots(1);
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
    let slots = slots(1);
    let slot = slots.take(Priority::High, 1, true).await;
    let began = Instant::now();
    let waits = slots.take(Priority::Low, 2, false);
    let (_slot, ()) = tokio::join!(waits, async { drop(slot) });
    assert_eq!(began.elapsed(), REFILL);
}

#[tokio::test]
async fn most_urgent_job_has_the_next_permit() {
    let slots = limited(10, true, 25);
    let mut low = Box::pin(slots.take(Priority::Low, 1, false));
    let mut high = Box::pin(slots.take(Priority::High, 2, false));
    assert!(low.as_mut().now_or_never().is_none() && high.as_mut().now_or_never().is_none());
    assert_eq!(slots.state().wanted(), 2);
    // The second may end in between, and with it the permit.
    while high.as_mut().now_or_never().is_none() {
        grant(&slots, 1);
    }
    assert!(low.as_mut().now_or_never().is_none());
    assert_eq!(slots.state().wanted(), 1);
}

#[tokio::test]
async fn no_permit_is_wanted_without_a_free_slot() {
    let slots = limited(1, false, 25);
    let mut job = Box::pin(slots.take(Priority::Normal, 1, true));
    let mut next = Box::pin(slots.take(Priority::Normal, 2, true));
    assert!(job.as_mut().now_or_never().is_none() && next.as_mut().now_or_never().is_none());
    assert_eq!(slots.state().wanted(), 1);
    let mut slot = None;
    while slot.is_none() {
        grant(&slots, 1);
        slot = job.as_mut().now_or_never();
    }
    // Such as one that waits for room in a full queue: it has had its permit.
    assert_eq!(slots.state().wanted(), 0);
    drop(slot);
    assert!(next.as_mut().now_or_never().is_none(), "one permit, two jobs");
    assert_eq!(slots.state().wanted(), 1);
}

#[tokio::test]
async fn permit_of_a_dropped_job_goes_to_the_next() {
    let slots = limited(10, false, 25);
    let mut gone = Box::pin(slots.take(Priority::Normal, 1, false));
    let mut next = Box::pin(slots.take(Priority::Normal, 2, false));
    assert!(gone.as_mut().now_or_never().is_none() && next.as_mut().now_or_never().is_none());
    drop(gone);
    assert_eq!(slots.state().wanted(), 1);
    while next.as_mut().now_or_never().is_none() {
        grant(&slots, 1);
    }
}

#[tokio::test]
async fn lanes_share_the_room_of_one_lease() {
    let slots = limited(100, true, 25);
    let of = |priority| {
        let (_, on_their_way) = slots.room(priority).unwrap();
        on_their_way
    };
    assert_eq!(Priority::ALL.map(of), [2, 2, 2], "no lane has a backlog yet");
    let mut waiting = Vec::new();
    let mut wait = |priority, jobs: usize| {
        for _ in 0..jobs {
            let mut job = Box::pin(slots.take(priority, waiting.len() as u64, true));
            assert!(job.as_mut().now_or_never().is_none());
            waiting.push(job);
        }
    };
    wait(Priority::Low, 2);
    assert_eq!(of(Priority::Low), 25 - 2 * 2 - 2);
    wait(Priority::Low, 19);
    assert_eq!(Priority::ALL.map(of), [2, 2, 0]);
    wait(Priority::High, 2);
    assert_eq!(Priority::ALL.map(of), [0, 2, 0], "what is low has the room until it is done");
    assert_eq!(slots.state().wanted(), 2, "what is urgent goes first");
    slots.state().waiting[Priority::Low as usize].clear();
    assert_eq!(Priority::ALL.map(of), [19, 2, 2]);
}
