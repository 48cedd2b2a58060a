//! When a worker runs maintenance.
//!
//! A run puts the periodic jobs that are due, and searches for expired leases and for jobs whose end others wait for.
//!
//! A search for expired leases may have to read the dead tuples of all leases that have ended. While a long-running
//! snapshot can see them, PostgreSQL cannot remove them, and each search becomes slower. So after a slow search that
//! found nothing, which is nearly every one, the next search waits.
//!
//! A follow-up shall start soon after the last job that it waits for. So while jobs wait for others, a run is due soon
//! after jobs of this worker have ended: at once if no other one ends for a while, because it may be the last one, and
//! after a pause while others go on ending.

use std::time::{Duration, Instant};

use crate::MaintenanceReport;

/// A search that finds nothing is followed by a pause of this many times its duration.
const SEARCH_PAUSE_FACTOR: u32 = 40;

/// The interval at which the next ticks of all periodic jobs are compared with the store's clock.
#[cfg(feature = "cron")]
const CHECK_TICKS_EVERY: Duration = Duration::from_secs(60);

/// The longest pause after a search. A single slow search may only have been held up.
const MAX_SEARCH_PAUSE: Duration = Duration::from_secs(10);

/// While jobs wait for others: the interval of runs as long as jobs of this worker go on ending.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// While jobs wait for others: a run is due if no other job of this worker has ended for this time. The job that ended
/// last may be the last one of its batch.
const QUIET: Duration = Duration::from_millis(5);

/// If no job of this worker has ended for this time, the number of ended jobs is checked every [`LOOK_EVERY`] and not
/// every [`QUIET`].
const ASK_QUICKLY_FOR: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct MaintenanceSchedule {
    every: Duration,
    /// When the last run ended; `None` before the first.
    last: Option<Instant>,
    /// The earliest time of the next search for expired leases.
    search_at: Option<Instant>,
    /// The earliest time of the next run while jobs go on ending, and while none ends. `None` if no job waits for
    /// others.
    look_at: Option<(Instant, Instant)>,
    /// How many jobs of this worker have ended, and when the number last grew.
    ended: u64,
    ended_at: Option<Instant>,
    /// How many had ended before the last runs that together looked at all jobs that wait for others.
    looked_at: u64,
    /// How many had ended before the first of such runs, if they have not looked at all yet.
    looking_since: Option<u64>,
    /// When the next ticks of the periodic jobs were last compared with the clock.
    #[cfg(feature = "cron")]
    ticks_checked_at: Option<Instant>,
}

impl MaintenanceSchedule {
    /// An interval of [`Duration::MAX`] means never.
    pub(super) fn new(every: Duration, now: Instant) -> Self {
        Self {
            every,
            last: (every == Duration::MAX).then_some(now),
            search_at: None,
            look_at: None,
            ended: 0,
            ended_at: None,
            looked_at: 0,
            looking_since: None,
            #[cfg(feature = "cron")]
            ticks_checked_at: None,
        }
    }

    /// Returns the time until the next run, or until [`Self::look_for_follow_ups`] must be called again.
    pub(super) fn due_in(&self, now: Instant) -> Duration {
        let run = self
            .last
            .map_or(Duration::ZERO, |at| self.every.saturating_sub(now.saturating_duration_since(at)));
        match self.look_at {
            Some(_) if self.has_ended_within(ASK_QUICKLY_FOR, now) => run.min(QUIET),
            Some(_) => run.min(LOOK_EVERY),
            None => run,
        }
    }

    fn has_ended_within(&self, time: Duration, now: Instant) -> bool {
        self.ended_at.is_some_and(|at| now.saturating_duration_since(at) < time)
    }

    /// Makes the next run due if jobs of this worker have ended for which others may wait. `ended` is how many jobs of
    /// this worker have ended.
    pub(super) fn look_for_follow_ups(&mut self, ended: u64, now: Instant) {
        if self.ended != ended {
            (self.ended, self.ended_at) = (ended, Some(now));
        }
        let is_busy = self.has_ended_within(QUIET, now);
        let look_at = self.look_at.map(|(busy, quiet)| if is_busy { busy } else { quiet });
        if look_at.is_some_and(|at| at <= now) && self.looked_at != ended {
            (self.last, self.search_at) = (None, None);
        }
    }

    /// Records whether jobs wait for others, after a run that took this long. The pause after it is at least as long.
    pub(super) fn record_waits(&mut self, report: &MaintenanceReport, took: Duration, now: Instant) {
        let since = self.looking_since.unwrap_or(self.ended);
        self.looking_since = report.waits_left.then_some(since);
        if !report.waits_left {
            self.looked_at = since;
        }
        self.look_at = report.waits.then(|| (now + took.max(LOOK_EVERY), now + took));
    }

    /// Returns whether the next run shall search for expired leases.
    pub(super) fn is_search_due(&self, now: Instant) -> bool {
        self.search_at.is_none_or(|at| at <= now)
    }

    /// Returns whether the next run shall compare the next ticks of all periodic jobs with the store's clock.
    #[cfg(feature = "cron")]
    pub(super) fn is_tick_check_due(&self, now: Instant) -> bool {
        self.ticks_checked_at.is_none_or(|at| now.saturating_duration_since(at) >= CHECK_TICKS_EVERY)
    }

    /// Records that the next ticks were compared.
    #[cfg(feature = "cron")]
    pub(super) fn record_tick_check(&mut self, now: Instant) {
        self.ticks_checked_at = Some(now);
    }

    /// Records how long a search took. After one that found something there may be more to find at once.
    pub(super) fn record_search(&mut self, took: Duration, found: bool, now: Instant) {
        self.search_at =
            (!found).then(|| now + took.saturating_mul(SEARCH_PAUSE_FACTOR).min(MAX_SEARCH_PAUSE));
    }

    /// Records the end of a run. If there may be more expired leases, the next run is due at once.
    pub(super) fn record_run(&mut self, more: bool, now: Instant) {
        self.last = (!more).then_some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(1);
    const WAITS: MaintenanceReport = MaintenanceReport {
        waits: true,
        waits_left: false,
        returned: 0,
        pruned: 0,
        more: false,
        workflows: false,
    };

    #[test]
    fn the_first_run_is_due_at_once_and_each_later_one_an_interval_after_the_last() {
        let now = Instant::now();
        let mut schedule = MaintenanceSchedule::new(EVERY, now);
        assert_eq!(schedule.due_in(now), Duration::ZERO);
        schedule.record_run(false, now);
        assert_eq!(schedule.due_in(now + EVERY / 4), EVERY * 3 / 4);
        assert_eq!(schedule.due_in(now + EVERY * 2), Duration::ZERO);
    }

    #[test]
    fn a_run_that_may_have_left_expired_leases_is_followed_by_another() {
        let now = Instant::now();
        let mut schedule = MaintenanceSchedule::new(EVERY, now);
        schedule.record_run(true, now);
        assert_eq!(schedule.due_in(now), Duration::ZERO);
    }

    #[test]
    fn a_run_is_due_when_jobs_have_ended_while_others_wait() {
        let now = Instant::now();
        let mut schedule = MaintenanceSchedule::new(EVERY, now);
        schedule.record_run(false, now);
        schedule.look_for_follow_ups(1, now + LOOK_EVERY);
        assert!(!schedule.due_in(now + LOOK_EVERY).is_zero(), "nothing waits");
        schedule.record_waits(&WAITS, LOOK_EVERY * 2, now);
        schedule.look_for_follow_ups(2, now + LOOK_EVERY);
        assert_eq!(schedule.due_in(now + LOOK_EVERY), QUIET, "the last run took long");
        schedule.look_for_follow_ups(2, now + LOOK_EVERY * 10);
        assert!(schedule.due_in(now + LOOK_EVERY * 10).is_zero());
        schedule.record_run(false, now + LOOK_EVERY * 10);
        schedule.look_for_follow_ups(2, now + LOOK_EVERY * 10);
        assert!(schedule.due_in(now + LOOK_EVERY * 10).is_zero(), "another worker ran maintenance");
        schedule.record_waits(&WAITS, Duration::ZERO, now + LOOK_EVERY * 10);
        schedule.record_run(false, now + LOOK_EVERY * 10);
        schedule.look_for_follow_ups(2, now + LOOK_EVERY * 11);
        assert!(!schedule.due_in(now + LOOK_EVERY * 11).is_zero(), "no other job has ended");
    }

    #[test]
    fn the_last_of_many_ended_jobs_is_not_waited_for_as_long_as_the_others() {
        let now = Instant::now();
        let mut schedule = MaintenanceSchedule::new(EVERY, now);
        schedule.record_run(false, now);
        schedule.record_waits(&WAITS, QUIET * 3, now);
        schedule.look_for_follow_ups(1, now + QUIET);
        assert_eq!(schedule.due_in(now + QUIET), QUIET);
        schedule.look_for_follow_ups(2, now + QUIET * 3);
        assert!(!schedule.due_in(now + QUIET * 3).is_zero(), "jobs go on ending");
        schedule.look_for_follow_ups(2, now + QUIET * 4);
        assert!(schedule.due_in(now + QUIET * 4).is_zero());
        schedule.record_waits(&WAITS, Duration::ZERO, now + QUIET * 4);
        schedule.record_run(false, now + QUIET * 4);
        assert_eq!(schedule.due_in(now + QUIET * 5), QUIET);
        assert_eq!(schedule.due_in(now + ASK_QUICKLY_FOR * 2), Duration::ZERO, "a run is due");
    }

    #[test]
    fn all_jobs_that_wait_are_looked_at_after_one_has_ended() {
        let now = Instant::now();
        let mut schedule = MaintenanceSchedule::new(EVERY, now);
        let part = MaintenanceReport { waits_left: true, ..WAITS };
        schedule.look_for_follow_ups(1, now);
        for round in 0..5 {
            let at = now + LOOK_EVERY * 10 * round;
            schedule.record_waits(&part, LOOK_EVERY, at);
            schedule.record_run(false, at);
            let next = at + LOOK_EVERY * 10;
            schedule.look_for_follow_ups(1, next);
            assert!(schedule.due_in(next).is_zero(), "others were not looked at");
        }
        let at = now + LOOK_EVERY * 50;
        schedule.record_waits(&WAITS, LOOK_EVERY, at);
        schedule.record_run(false, at);
        schedule.look_for_follow_ups(1, at + LOOK_EVERY * 10);
        assert!(!schedule.due_in(at + LOOK_EVERY * 10).is_zero());
    }

    #[test]
    fn an_interval_of_max_means_never() {
        let now = Instant::now();
        assert!(MaintenanceSchedule::new(Duration::MAX, now).due_in(now + EVERY) > EVERY * 1_000_000);
    }

    #[test]
    fn a_slow_search_that_finds_nothing_is_not_repeated_soon() {
        let now = Instant::now();
        let mut schedule = MaintenanceSchedule::new(EVERY, now);
        assert!(schedule.is_search_due(now));
        schedule.record_search(Duration::from_millis(200), false, now);
        assert!(!schedule.is_search_due(now + Duration::from_secs(7)));
        assert!(schedule.is_search_due(now + Duration::from_secs(8)));
        schedule.record_search(Duration::from_secs(60), false, now);
        assert!(schedule.is_search_due(now + MAX_SEARCH_PAUSE));
        schedule.record_search(Duration::from_secs(1), true, now);
        assert!(schedule.is_search_due(now));
    }
}
