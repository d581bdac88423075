//! The permissions of a replica to start the jobs of one queue, and the room for those that wait for one.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::lease::Lease;
use crate::priority::Priority;

/// The number of lanes.
pub(super) const LANES: usize = Priority::ALL.len();

/// How long a lane is taken to have a backlog after the last sign of one. Another replica may have taken the rest.
const BACKLOG: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Permits {
    pub(super) lease: Lease,
    /// A task asks for more.
    pub(super) is_asking: bool,
    /// How many jobs of all lanes may be here without a permission, or on their way.
    room: usize,
    /// How many of a lane are kept free for it, where there are several.
    kept: Option<usize>,
    /// How many jobs of a lane may be on their way.
    pub(super) on_their_way: [usize; LANES],
    /// When the broker had more of a lane behind the job that came last.
    had_more: [Option<Instant>; LANES],
}

impl Permits {
    pub(super) fn new(room: usize, has_lanes: bool) -> Self {
        let kept = has_lanes.then(|| (room / 10).max(1));
        let (on_their_way, had_more) = ([0; LANES], [None; LANES]);
        Self { lease: Lease::default(), is_asking: false, room, kept, on_their_way, had_more }
    }

    /// How many jobs could be started at this time.
    pub(super) fn left(&self, now: Timestamp) -> usize {
        usize::try_from(self.lease.left(now.as_second())).unwrap_or(usize::MAX)
    }

    /// Notes whether the broker has more of this lane.
    pub(super) fn note_backlog(&mut self, lane: usize, has_more: bool) {
        self.had_more[lane] = has_more.then(Instant::now);
    }

    /// How many jobs of all lanes may be here without a permission, or on their way; and how many of this lane may now
    /// be on their way, while so many of each lane are here.
    ///
    /// All of the room is for the most urgent lane of which the broker has more, but for a little that is kept for each
    /// of the others. What another lane has taken before it has until it is used.
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
