use std::time::Duration;

/// Waiting times before another try: exponential with full jitter.
///
/// Each time is drawn evenly below a ceiling that doubles from one try to the next, so that
/// clients that failed at the same moment do not come back at the same moment.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    limit: Duration,
    tries: u32,
}

impl Backoff {
    /// Starts with a ceiling of `first`, which doubles up to `limit`.
    #[must_use]
    pub fn new(first: Duration, limit: Duration) -> Self {
        Self { first, limit, tries: 0 }
    }

    /// The time to wait before the next try. Never zero.
    pub fn delay(&mut self) -> Duration {
        let delay = jittered(ceiling(self.first, self.limit, self.tries));
        self.tries = self.tries.saturating_add(1);
        delay
    }

    /// Waits before the next try.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.delay()).await;
    }
}

/// The ceiling after this many doublings.
pub(crate) fn ceiling(first: Duration, limit: Duration, doublings: u32) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(doublings)).min(limit)
}

/// A time below this ceiling, drawn evenly, in whole milliseconds from one on.
pub(crate) fn jittered(ceiling: Duration) -> Duration {
    drawn(Duration::ZERO, ceiling)
}

/// A time between these two, drawn evenly, in whole milliseconds from one on.
pub(crate) fn drawn(least: Duration, most: Duration) -> Duration {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    let (least, most) = (millis(least), millis(most));
    Duration::from_millis(rand::random_range(least..=most.max(least)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceiling_doubles_up_to_its_limit() {
        let ceilings = [0, 1, 2, 3, 4, 63, u32::MAX]
            .map(|doublings| ceiling(Duration::from_millis(100), Duration::from_secs(1), doublings))
            .map(|ceiling| ceiling.as_millis());
        assert_eq!(ceilings, [100, 200, 400, 800, 1000, 1000, 1000]);
    }

    #[test]
    fn delay_is_never_zero_and_never_above_its_ceiling() {
        let mut backoff = Backoff::new(Duration::from_millis(2), Duration::from_millis(5));
        for _ in 0..1000 {
            let delay = backoff.delay();
            assert!((1..=5).contains(&delay.as_millis()), "{delay:?}");
        }
        assert_eq!(jittered(Duration::ZERO), Duration::from_millis(1));
    }

    #[test]
    fn delays_grow_from_one_try_to_the_next_until_the_limit() {
        let mut longest = [0; 8];
        // Of a thousand draws the longest is near its ceiling, whatever the dice say.
        for _ in 0..1000 {
            let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
            for longest in &mut longest {
                *longest = backoff.delay().as_millis().max(*longest);
            }
        }
        for (longest, ceiling) in longest.iter().zip([100, 200, 400, 800, 1600, 3200, 5000, 5000]) {
            assert!((ceiling * 9 / 10..=ceiling).contains(longest), "{longest} below {ceiling}");
        }
    }

    #[test]
    fn delays_are_drawn_evenly_from_all_below_the_ceiling() {
        let mut tenths = [0; 10];
        for _ in 0..10_000 {
            let delay = jittered(Duration::from_secs(1)).as_millis();
            tenths[usize::try_from((delay - 1) / 100).unwrap()] += 1;
        }
        // A thousand in each, and never as far off as this.
        assert!(tenths.iter().all(|count| (800..1200).contains(count)), "{tenths:?}");
    }
}
