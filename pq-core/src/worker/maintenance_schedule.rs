//! When a worker runs maintenance.
//!
//! To look for leases that are over a store may have to pass by all that have ended and whose remains it cannot
//! remove yet: as long as any transaction can still see them, PostgreSQL keeps their rows. Where a look is dear and
//! finds nothing, which is how nearly all are, the next one waits; periodic jobs fire as often as before.

use std::time::{Duration, Instant};

use super::shared::Shared;
use crate::{Store, StoreError};

/// Looks that find nothing take no more than one part in so many of the time.
const MAX_SCAN_SHARE: u32 = 40;

/// But none waits for longer, for one that took long may only have been held up.
const MAX_SCAN_PAUSE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct MaintenanceSchedule {
    every: Duration,
    /// When the last one ended; `None` before the first.
    last: Option<Instant>,
    /// Before then no lease is looked for.
    scan_at: Option<Instant>,
}

impl MaintenanceSchedule {
    pub(super) fn new(every: Duration, now: Instant) -> Self {
        // One that is never to maintenance is as good as one that has just swept.
        Self { every, last: (every == Duration::MAX).then_some(now), scan_at: None }
    }

    /// How long it is until the next one.
    pub(super) fn due_in(&self, now: Instant) -> Duration {
        self.last.map_or(Duration::ZERO, |at| self.every.saturating_sub(now.saturating_duration_since(at)))
    }

    fn is_scan_due(&self, now: Instant) -> bool {
        self.scan_at.is_none_or(|at| at <= now)
    }

    /// A look took so long. Where it found anything there may be more.
    fn record_scan(&mut self, took: Duration, found: bool, now: Instant) {
        self.scan_at = (!found).then(|| now + took.saturating_mul(MAX_SCAN_SHARE).min(MAX_SCAN_PAUSE));
    }

    /// A maintenance has ended. Where there may be more leases that are over, the next one is due at once.
    fn record_run(&mut self, more: bool, now: Instant) {
        self.last = (!more).then_some(now);
    }

    /// Puts the periodic jobs that are due, and does the rest of what [`crate::Pq::maintain`] does if its time has come.
    pub(super) fn run<S: Store>(&mut self, shared: &Shared<S>) {
        let store = shared.pq.store();
        let swept: Result<_, S::Error> = store.with_connection(|conn| {
            crate::cron::fire_due_crons(store, conn)?;
            let begun = Instant::now();
            if !self.is_scan_due(begun) {
                return Ok(None);
            }
            let swept = store.maintain(conn, &shared.settings.retention)?;
            let found = swept.is_some_and(|swept| swept != crate::MaintenanceReport::default());
            let now = Instant::now();
            self.record_scan(now.saturating_duration_since(begun), found, now);
            Ok(swept)
        });
        self.record_run(matches!(swept, Ok(Some(swept)) if swept.more), Instant::now());
        match swept {
            Ok(Some(swept)) if swept.returned > 0 => {
                tracing::warn!(jobs = swept.returned, "leases were over; their jobs were requeued");
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
        let mut schedule = MaintenanceSchedule::new(EVERY, now);
        assert_eq!(schedule.due_in(now), Duration::ZERO);
        schedule.record_run(false, now);
        assert_eq!(schedule.due_in(now + EVERY / 4), EVERY * 3 / 4);
        assert_eq!(schedule.due_in(now + EVERY * 2), Duration::ZERO);
    }

    #[test]
    fn a_sweep_that_may_have_left_something_is_followed_by_another() {
        let now = Instant::now();
        let mut schedule = MaintenanceSchedule::new(EVERY, now);
        schedule.record_run(true, now);
        assert_eq!(schedule.due_in(now), Duration::ZERO);
    }

    #[test]
    fn who_is_never_to_sweep_does_not() {
        let now = Instant::now();
        assert!(MaintenanceSchedule::new(Duration::MAX, now).due_in(now + EVERY) > EVERY * 1_000_000);
    }

    #[test]
    fn a_dear_look_that_finds_nothing_is_not_made_again_soon() {
        let now = Instant::now();
        let mut schedule = MaintenanceSchedule::new(EVERY, now);
        assert!(schedule.is_scan_due(now));
        schedule.record_scan(Duration::from_millis(200), false, now);
        assert!(!schedule.is_scan_due(now + Duration::from_secs(7)));
        assert!(schedule.is_scan_due(now + Duration::from_secs(8)));
        schedule.record_scan(Duration::from_secs(60), false, now);
        assert!(schedule.is_scan_due(now + MAX_SCAN_PAUSE));
        schedule.record_scan(Duration::from_secs(1), true, now);
        assert!(schedule.is_scan_due(now));
    }
}
