//! Sort keys that takes have passed, and the ranges between them.

use std::time::{Duration, Instant};

use super::scan_costs;
use super::sort_key::SortKey;

/// The part of the queue behind one sort key, up to and including another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct KeyRange {
    pub(super) after: SortKey,
    pub(super) upto: SortKey,
}

/// Sort keys that takes have passed, at roughly equal numbers of jobs. The range between two of them is scanned at a
/// time.
#[derive(Debug)]
pub(super) struct ScanCheckpoints {
    keys: Vec<SortKey>,
    /// After how many jobs the next checkpoint follows.
    distance: usize,
    /// The number of jobs that were taken since the last checkpoint.
    taken: usize,
    /// The checkpoint at the end of the range that is scanned next.
    next: usize,
    /// The cost of the last scan of a range, in microseconds.
    last_cost: i64,
    last_scan: Instant,
    /// The cost of the ranges beyond a resumed scan since the first one was last scanned, in microseconds.
    round_cost: i64,
}

impl ScanCheckpoints {
    /// So many dead tuples are passed in a few milliseconds.
    const DISTANCE: usize = 16_384;
    /// At this many checkpoints every other one is dropped.
    const MAX: usize = 512;

    pub(super) fn new(now: Instant) -> Self {
        Self {
            keys: Vec::new(),
            distance: Self::DISTANCE,
            taken: 0,
            next: 0,
            last_cost: 0,
            last_scan: now,
            round_cost: 0,
        }
    }

    /// Notes that a take of `jobs` jobs ended at this key.
    pub(super) fn advance(&mut self, key: SortKey, jobs: usize) {
        self.taken += jobs;
        if self.taken < self.distance || self.keys.last().is_some_and(|last| *last >= key) {
            return;
        }
        self.keys.push(key);
        self.taken = 0;
        if self.keys.len() == Self::MAX {
            self.keys = self.keys.iter().skip(1).step_by(2).copied().collect();
            self.distance *= 2;
            self.next /= 2;
        }
    }

    /// Returns how many ranges there are.
    pub(super) fn count(&self) -> i64 {
        i64::try_from(self.keys.len()).unwrap_or(i64::MAX)
    }

    /// Returns the range that is scanned next.
    pub(super) fn next_range(&self) -> Option<KeyRange> {
        let upto = *self.keys.get(self.next)?;
        let after = self.next.checked_sub(1).map_or(SortKey::FIRST, |before| self.keys[before]);
        Some(KeyRange { after, upto })
    }

    /// Returns how long it is until that scan is due.
    pub(super) fn due_in(&self, now: Instant) -> Duration {
        scan_costs::due_in(self.last_cost, self.last_scan, now)
    }

    /// Notes a scan of a range that cost `micros`, and `beyond_resume` more than a resumed scan. It has not reached the
    /// end of the range if it found as many jobs as it wanted. If the range is the last one, returns what ranges cost
    /// beyond a resumed scan on average.
    pub(super) fn note_scan(
        &mut self,
        range: KeyRange,
        micros: i64,
        beyond_resume: i64,
        has_reached_end: bool,
        now: Instant,
    ) -> Option<i64> {
        (self.last_cost, self.last_scan) = (micros, now);
        self.round_cost += beyond_resume;
        // Another thread may have scanned the same range meanwhile.
        if !has_reached_end || self.next_range() != Some(range) {
            return None;
        }
        self.next += 1;
        if self.next < self.keys.len() {
            return None;
        }
        self.next = 0;
        Some(std::mem::take(&mut self.round_cost) / self.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: i64) -> SortKey {
        SortKey { neg_priority: 0, expected_at: i64::MAX, id }
    }

    /// Scans all ranges of a round, each for `cost`. Returns them and their mean cost.
    fn round(checkpoints: &mut ScanCheckpoints, cost: i64) -> (Vec<KeyRange>, i64) {
        let (now, mut scanned) = (Instant::now(), Vec::new());
        loop {
            let range = checkpoints.next_range().expect("a range");
            // A scan that found as many jobs as it wanted may have left some.
            assert_eq!(checkpoints.note_scan(range, 0, 0, false, now), None);
            assert_eq!(checkpoints.next_range(), Some(range));
            scanned.push(range);
            if let Some(mean) = checkpoints.note_scan(range, cost, cost, true, now) {
                return (scanned, mean);
            }
        }
    }

    #[test]
    fn ranges_cover_the_queue_up_to_the_last_checkpoint() {
        let mut checkpoints = ScanCheckpoints::new(Instant::now());
        assert_eq!(checkpoints.next_range(), None);
        // Takes go back once, and on again.
        for id in [9_000, 18_000, 27_000, 10, 36_000, 45_000, 54_000] {
            checkpoints.advance(key(id), 9_000);
        }
        let range = |after, upto| KeyRange { after, upto: key(upto) };
        let expected =
            vec![range(SortKey::FIRST, 18_000), range(key(18_000), 36_000), range(key(36_000), 54_000)];
        for _ in 0..2 {
            assert_eq!(round(&mut checkpoints, 300), (expected.clone(), 300));
        }
    }

    #[test]
    fn a_range_that_another_thread_has_scanned_is_not_counted_twice() {
        let now = Instant::now();
        let mut checkpoints = ScanCheckpoints::new(now);
        checkpoints.advance(key(20_000), 20_000);
        checkpoints.advance(key(40_000), 20_000);
        let range = checkpoints.next_range().expect("a range");
        checkpoints.note_scan(range, 1, 1, true, now);
        let next = checkpoints.next_range();
        assert_ne!(next, Some(range));
        checkpoints.note_scan(range, 1, 1, true, now);
        assert_eq!(checkpoints.next_range(), next);
    }

    #[test]
    fn a_range_is_due_forty_times_its_cost_after_the_last_one() {
        let now = Instant::now();
        let mut checkpoints = ScanCheckpoints::new(now);
        checkpoints.advance(key(20_000), 20_000);
        assert_eq!(checkpoints.due_in(now), Duration::ZERO);
        checkpoints.note_scan(checkpoints.next_range().expect("a range"), 5_000, 0, true, now);
        assert_eq!(checkpoints.due_in(now), Duration::from_millis(200));
        assert_eq!(checkpoints.due_in(now + Duration::from_millis(200)), Duration::ZERO);
    }

    #[test]
    fn many_jobs_make_longer_ranges_without_a_gap() {
        let mut checkpoints = ScanCheckpoints::new(Instant::now());
        for id in 1..=3_000 {
            checkpoints.advance(key(id * 20_000), 20_000);
        }
        let (ranges, _) = round(&mut checkpoints, 1);
        assert!((256..512).contains(&ranges.len()), "{}", ranges.len());
        let mut end = SortKey::FIRST;
        for range in &ranges {
            assert_eq!(range.after, end);
            end = range.upto;
        }
        assert!(end.id >= 2_980 * 20_000, "{end:?}");
    }
}
