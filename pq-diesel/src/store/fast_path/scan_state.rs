//! The recent index scans of one queue.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pq_core::Claim;

use super::scan_checkpoints::ScanCheckpoints;
use super::scan_costs::{self, ScanCosts};
use super::scan_planner::Plan;
use super::sort_key::SortKey;

/// The recent index scans of one queue, and the plan that follows from them.
#[derive(Debug)]
pub(super) struct ScanState {
    last_result: LastResult,
    /// The position at which the last take ended, unless the next one must begin at the start.
    pub(super) position: Option<SortKey>,
    /// The positions at which takes ended about a second ago, and a second before that.
    earlier: [Option<SortKey>; 2],
    earlier_noted: Instant,
    /// The positions of takes since the first one.
    checkpoints: ScanCheckpoints,
    from_start: ScanCosts,
    resume_earlier: ScanCosts,
    resume: ScanCosts,
    last_take: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum LastResult {
    AsManyAsWanted,
    Fewer,
    Nothing,
}

impl ScanState {
    /// The state of a queue that is not used for this long is forgotten.
    const KEPT: Duration = Duration::from_secs(60);
    /// A scan from the start that costs more than this, in microseconds, is expensive while the cost of resuming is
    /// not known.
    const EXPENSIVE: i64 = 2_000;
    /// A scan from the start that costs this much more than resuming, in microseconds, is expensive.
    const EXPENSIVE_BEYOND_RESUME: i64 = 250;
    /// About what a job of a take costs, in microseconds.
    const COST_OF_JOB: i64 = 5;
    /// Within this time of a take that found fewer jobs than it wanted there are probably no more.
    const JUST_NOW: Duration = Duration::from_millis(1);
    /// The time between the earlier positions.
    const EARLIER: Duration = Duration::from_secs(1);

    pub(super) fn new(now: Instant) -> Self {
        Self {
            last_result: LastResult::AsManyAsWanted,
            position: None,
            earlier: [None; 2],
            earlier_noted: now,
            checkpoints: ScanCheckpoints::new(now),
            from_start: ScanCosts::new(now),
            resume_earlier: ScanCosts::new(now),
            resume: ScanCosts::new(now),
            last_take: now,
        }
    }

    pub(super) fn is_stale(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_take) >= Self::KEPT
    }

    /// Returns `true` if scans from the start are expensive, and most of them are skipped.
    fn is_expensive(&self) -> bool {
        self.from_start.least().is_some_and(|from_start| match self.resume.least() {
            Some(resume) => from_start.saturating_sub(resume) > Self::EXPENSIVE_BEYOND_RESUME,
            None => from_start > Self::EXPENSIVE,
        })
    }

    /// Returns how long it is until an expensive scan of this kind is due.
    fn scan_due_in(&self, costs: &ScanCosts, now: Instant) -> Duration {
        let beyond_resume = costs.latest().saturating_sub(self.resume.least().unwrap_or_default());
        scan_costs::due_in(beyond_resume, costs.ended, now)
    }

    /// Returns how long it is until the queue is scanned before the position, whole or by the next range.
    pub(super) fn before_position_due_in(&self, now: Instant) -> Duration {
        match self.checkpoints.next_range() {
            _ if !self.is_expensive() => Duration::ZERO,
            Some(_) => self.checkpoints.due_in(now),
            None => self.scan_due_in(&self.from_start, now),
        }
    }

    /// Returns how long it is until a scan is due that does not resume at the position.
    pub(super) fn due_in(&self, now: Instant) -> Duration {
        let before = self.before_position_due_in(now);
        self.earlier().map_or(before, |_| before.min(self.scan_due_in(&self.resume_earlier, now)))
    }

    /// Returns where takes were one to two seconds ago, if that is before the position.
    fn earlier(&self) -> Option<SortKey> {
        self.earlier[1].filter(|earlier| self.position.is_some_and(|position| *earlier < position))
    }

    pub(super) fn plan(&self, now: Instant) -> Plan {
        if self.is_expensive()
            && let Some(position) = self.position
        {
            let is_due = self.before_position_due_in(now).is_zero();
            match (self.checkpoints.next_range(), self.earlier()) {
                (Some(range), _) if is_due => return Plan::Backfill(range),
                (None, _) if is_due => {}
                (_, Some(earlier)) if self.scan_due_in(&self.resume_earlier, now).is_zero() => {
                    return Plan::ResumeEarlier(earlier);
                }
                _ => return Plan::Resume(position),
            }
        }
        match self.last_result {
            LastResult::AsManyAsWanted => Plan::FromStart,
            // A take that comes later was probably notified of a job, which an index scan finds.
            _ if now.saturating_duration_since(self.last_take) > Self::JUST_NOW => Plan::FromStart,
            LastResult::Fewer | LastResult::Nothing => Plan::Full,
        }
    }

    /// Notes a take that began at `begun`, wanted `wanted` jobs and took `jobs`.
    pub(super) fn note(
        &mut self,
        plan: Plan,
        jobs: &[Arc<Claim>],
        wanted: usize,
        begun: Instant,
        now: Instant,
    ) {
        self.last_take = now;
        let micros = i64::try_from(now.saturating_duration_since(begun).as_micros()).unwrap_or(i64::MAX);
        let cost = micros - Self::COST_OF_JOB * i64::try_from(jobs.len()).unwrap_or(i64::MAX);
        match plan {
            Plan::Backfill(range) => {
                let beyond_resume = micros.saturating_sub(self.resume.least().unwrap_or_default());
                let has_reached_end = jobs.len() < wanted;
                let mean = self.checkpoints.note_scan(range, micros, beyond_resume, has_reached_end, now);
                self.from_start.raise(beyond_resume.saturating_mul(self.checkpoints.count()));
                // If ranges cost little more than any scan, vacuum may have removed the dead tuples.
                if mean.is_some_and(|mean| mean <= Self::EXPENSIVE) {
                    self.from_start.forget();
                    self.position = None;
                }
                return;
            }
            Plan::Resume(_) => self.resume.add(cost, now),
            Plan::ResumeEarlier(_) => self.resume_earlier.add(cost, now),
            // A full scan begins at the start as well, but if it finds nothing most of its cost is not the index
            // scan's.
            Plan::Full if jobs.is_empty() => self.from_start.ended = now,
            Plan::FromStart | Plan::Full => self.from_start.add(cost, now),
        }
        self.last_result = match jobs.len() {
            0 => LastResult::Nothing,
            taken if taken < wanted => LastResult::Fewer,
            _ => LastResult::AsManyAsWanted,
        };
        // A scan that began earlier may have found jobs before the position, and there may be more of them.
        self.position = jobs.last().and_then(|job| SortKey::of(job)).or(self.position);
        if let Some(position) = self.position {
            self.checkpoints.advance(position, jobs.len());
        }
        if now.saturating_duration_since(self.earlier_noted) >= Self::EARLIER {
            self.earlier = [self.position, self.earlier[0]];
            self.earlier_noted = now;
        }
    }
}

#[cfg(test)]
#[path = "scan_state_tests.rs"]
mod tests;
