//! When a worker sweeps.
//!
//! To look for leases that are over a store may have to pass by all that have ended and whose remains it cannot
//! remove yet: as long as any transaction can still see them, PostgreSQL keeps their rows. Where a look is dear and
//! finds nothing, which is how nearly all are, the next one waits; periodic jobs fire as often as before.

use std::time::{Duration, Instant};

use super::shared::Shared;
use crate::{Store, StoreError};

/// Looks that find nothing take no more than one part in so many of the time.
const APART: u32 = 40;

/// But none waits for longer, for one that took long may only have been held up.
const MOST: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Sweeps {
    every: Duration,
    /// When the last one ended; `None` before the first.
    last: Option<Instant>,
    /// Before then no lease is looked for.
    look_at: Option<Instant>,
}

impl Sweeps {
    pub(super) fn new(every: Duration, now: Instant) -> Self {
        // One that is never to sweep is as good as one that has just swept.
        Self { every, last: (every == Duration::MAX).then_some(now), look_at: None }
    }

    /// How long it is until the next one.
    pub(super) fn due_in(&self, now: Instant) -> Duration {
        self.last.map_or(Duration::ZERO, |at| self.every.saturating_sub(now.saturating_duration_since(at)))
    }

    fn is_to_look(&self, now: Instant) -> bool {
        self.look_at.is_none_or(|at| at <= now)
    }

    /// A look took so long. Where it found anything there may be more.
    fn looked(&mut self, took: Duration, found: bool, now: Instant) {
        self.look_at = (!found).then(|| now + took.saturating_mul(APART).min(MOST));
    }

    /// A sweep has ended. Where there may be more leases that are over, the next one is due at once.
    fn ended(&mut self, more: bool, now: Instant) {
        self.last = (!more).then_some(now);
    }

    /// Puts the periodic jobs that are due, and does the rest of what [`crate::Pq::maintain`] does if its time has come.
    pub(super) fn sweep<S: Store>(&mut self, shared: &Shared<S>) {
        let store = shared.pq.store();
        let swept: Result<_, S::Error> = store.with_connection(|conn| {
            crate::cron::fire(store, conn)?;
            let begun = Instant::now();
            if !self.is_to_look(begun) {
                return Ok(None);
            }
            let swept = store.maintain(conn, &shared.settings.retention)?;
            let found = swept.is_some_and(|swept| swept != crate::MaintenanceReport::default());
            let now = Instant::now();
            self.looked(now.saturating_duration_since(begun), found, now);
            Ok(swept)
        });
        self.ended(matches!(swept, Ok(Some(swept)) if swept.more), Instant::now());
        match swept {
            Ok(Some(swept)) if swept.returned > 0 => {
                tracing::warn!(jobs = swept.returned, "leases were over; their jobs are in the line again");
            }
            Ok(_) => {}
            Err(error) if error.is_unavailable() => tracing::debug!(%error, "the store cannot be swept now"),
            Err(error) => tracing::error!(%error, "the store cannot be swept"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_sweep_is_due_at_once_and_each_other_an_interval_after_the_last() {
        let now = Instant::now();
        let mut sweeps = Sweeps::new(EVERY, now);
        assert_eq!(sweeps.due_in(now), Duration::ZERO);
        sweeps.ended(false, now);
        assert_eq!(sweeps.due_in(now + EVERY / 4), EVERY * 3 / 4);
        assert_eq!(sweeps.due_in(now + EVERY * 2), Duration::ZERO);
    }

    #[test]
    fn a_sweep_that_may_have_left_something_is_followed_by_another() {
        let now = Instant::now();
        let mut sweeps = Sweeps::new(EVERY, now);
        sweeps.ended(true, now);
        assert_eq!(sweeps.due_in(now), Duration::ZERO);
    }

    #[test]
    fn who_is_never_to_sweep_does_not() {
        let now = Instant::now();
        assert!(Sweeps::new(Duration::MAX, now).due_in(now + EVERY) > EVERY * 1_000_000);
    }

    #[test]
    fn a_dear_look_that_finds_nothing_is_not_made_again_soon() {
        let now = Instant::now();
        let mut sweeps = Sweeps::new(EVERY, now);
        assert!(sweeps.is_to_look(now));
        sweeps.looked(Duration::from_millis(200), false, now);
        assert!(!sweeps.is_to_look(now + Duration::from_secs(7)));
        assert!(sweeps.is_to_look(now + Duration::from_secs(8)));
        sweeps.looked(Duration::from_secs(60), false, now);
        assert!(sweeps.is_to_look(now + MOST));
        sweeps.looked(Duration::from_secs(1), true, now);
        assert!(sweeps.is_to_look(now));
    }
}
