//! The permits of a replica to start the jobs of one queue, and the room for jobs that wait for one.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::lease::Lease;
use crate::priority::Priority;

/// The number of lanes.
pub(super) const LANES: usize = Priority::ALL.len();

/// The time after the last sign of a backlog for which a lane counts as having one. Another replica may have taken the
/// rest.
const BACKLOG: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Permits {
    pub(super) lease: Lease,
    /// Whether a task asks for more.
    pub(super) is_asking: bool,
    /// The most jobs of all lanes that may wait here for a permit, or be on their way.
    room: usize,
    /// The part of this room that is reserved for each lane, if there are several.
    kept: Option<usize>,
    /// The most jobs of a lane that may be on their way.
    pub(super) on_their_way: [usize; LANES],
    /// The last time at which the broker had more jobs of a lane behind the one that arrived.
    had_more: [Option<Instant>; LANES],
}

impl Permits {
    pub(super) fn new(room: usize, has_lanes: bool) -> Self {
        let kept = has_lanes.then(|| (room / 10).max(1));
        let (on_their_way, had_more) = ([0; LANES], [None; LANES]);
        Self { lease: Lease::default(), is_asking: false, room, kept, on_their_way, had_more }
    }

    /// The number of jobs that could be started at this time.
    pub(super) fn left(&self, now: Timestamp) -> usize {
        usize::try_from(self.lease.left(now.as_second())).unwrap_or(usize::MAX)
    }

    /// Records whether the broker has more jobs of this lane.
    pub(super) fn note_backlog(&mut self, lane: usize, has_more: bool) {
        self.had_more[lane] = has_more.then(Instant::now);
    }

    /// The most jobs of all lanes that may wait here for a permit, or be on their way; and the most of this lane
    /// that may be on their way now, while this many of each lane are here.
    ///
    /// The most urgent lane with a backlog on the broker gets all of the room, except a small reserve for each other
    /// lane. A lane keeps the room that its jobs here use.
    pub(super) fn room_of(&mut self, lane: usize, here: [usize; LANES]) -> (usize, usize) {
        let has_backlog = |lane: usize| {
            self.had_more[lane].is_some_and(|at| here[lane] > 0 || at.elapsed() < BACKLOG)
        };
        let room = match self.kept {
            None => self.room,
            Some(kept) if has_backlog(lane) && !(0..lane).any(has_backlog) => {
                let others = (0..LANES).filter(|other| *other != lane);
                let taken = others.map(|other| kept.max(here[other] + self.on_their_way[other]));
                kept.max(self.room.saturating_sub(taken.sum()))
            }
            Some(kept) => kept,
        };
        self.on_their_way[lane] = room.saturating_sub(here[lane]);
        (self.room, self.on_their_way[lane])
    }
}
