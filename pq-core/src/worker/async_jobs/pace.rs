//! How many handlers end in a short time, which decides how many jobs are taken ahead.

use std::time::{Duration, Instant};

/// The time for which jobs are taken ahead.
const PERIOD: Duration = Duration::from_millis(50);

/// Counts handlers that end.
#[derive(Debug)]
pub(super) struct Pace {
    since: Instant,
    current: usize,
    last: usize,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, current: 0, last: 0 }
    }

    /// Records handlers that have ended.
    pub(super) fn record(&mut self, ended: usize, now: Instant) {
        self.roll(now);
        self.current += ended;
    }

    /// Returns how many handlers end in 50 ms: the more of the current period and of the last one.
    pub(super) fn of_period(&mut self, now: Instant) -> usize {
        self.roll(now);
        self.current.max(self.last)
    }

    fn roll(&mut self, now: Instant) {
        let passed = now - self.since;
        if passed >= PERIOD {
            self.last = if passed < 2 * PERIOD { self.current } else { 0 };
            (self.since, self.current) = (now, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_that_of_the_last_period() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut pace = Pace::new(start);
        pace.record(100, at(10));
        assert_eq!(pace.of_period(at(20)), 100, "a quick start counts at once");
        assert_eq!(pace.of_period(at(60)), 100, "the last period counts until the current one has more");
        pace.record(150, at(70));
        assert_eq!(pace.of_period(at(80)), 150);
        assert_eq!(pace.of_period(at(300)), 0, "nothing has ended for a while");
    }
}
