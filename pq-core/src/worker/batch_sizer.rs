//! How many jobs a thread takes at a time.

use std::time::Duration;

use crate::store::MAX_KEYED_TAKE;

/// Chooses how many jobs a thread takes at a time, by the time and the bytes that its last batches took.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchSizer {
    size: usize,
    min: usize,
    max: usize,
}

impl BatchSizer {
    /// The intended duration of a batch. During a longer one other workers could have begun some of its jobs.
    const TARGET: Duration = Duration::from_millis(50);

    /// The intended number of payload bytes that a thread holds.
    const BYTES: usize = 8 << 20;

    pub(super) fn new(min: usize, max: usize) -> Self {
        Self { size: min, min, max }
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Limits the next batch, because the last one had jobs with serialization keys.
    pub(super) fn limit_for_keys(&mut self) {
        self.size = self.size.min(MAX_KEYED_TAKE).max(self.min);
    }

    /// Limits the next batch, because the last one had jobs of lost leases.
    pub(super) fn limit_for_lost_lease(&mut self, limit: usize) {
        self.size = self.size.min(limit).max(1);
    }

    /// Shrinks the next batch, because one could not be taken or committed.
    ///
    /// A smaller batch needs less of the store. A batch of one job shows whether that job is the cause: then it fails.
    pub(super) fn shrink_after_error(&mut self) {
        self.size = (self.size / 8).max(1);
    }

    /// Sets the size of the next batch after one of `jobs` jobs and `bytes` payload bytes.
    pub(super) fn record(&mut self, jobs: usize, bytes: usize, time: Duration) {
        let wanted = if time > 2 * Self::TARGET {
            self.size / 2
        } else if time < Self::TARGET && jobs >= self.size {
            // Each size has a prepared statement of its own. Powers of two keep their number small.
            let factor = [8, 4, 2].into_iter().find(|factor| time * *factor < Self::TARGET).unwrap_or(2);
            self.size.saturating_mul(factor as usize)
        } else if jobs < self.size / 2 {
            // There are fewer jobs than a thread takes.
            self.size / 2
        } else {
            self.size
        };
        let mut wanted = wanted.min(self.max);
        while wanted > 1 && wanted.saturating_mul(bytes) > Self::BYTES.saturating_mul(jobs) {
            wanted /= 2;
        }
        self.size = wanted.clamp(self.min, self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the sizer after many full batches of jobs with `bytes` of payload each.
    fn after_many(mut sizer: BatchSizer, bytes: usize, time: impl Fn(u32) -> Duration) -> BatchSizer {
        for _ in 0..20 {
            let jobs = sizer.size();
            sizer.record(jobs, jobs * bytes, time(jobs as u32));
        }
        sizer
    }

    #[test]
    fn batches_grow_while_they_are_full_and_fast() {
        let mut sizer = after_many(BatchSizer::new(1, 512), 0, |_| Duration::from_millis(1));
        assert_eq!(sizer.size(), 512);
        sizer.record(3, 0, Duration::from_millis(1));
        assert_eq!(sizer.size(), 256);
    }

    #[test]
    fn slow_jobs_are_taken_one_by_one() {
        let sizer = after_many(BatchSizer::new(1, 512), 0, |jobs| jobs * Duration::from_millis(80));
        assert!(sizer.size() <= 2, "{sizer:?}");
    }

    #[test]
    fn large_jobs_are_taken_few_at_a_time() {
        let sizer = after_many(BatchSizer::new(1, 2_048), 1 << 20, |_| Duration::from_millis(1));
        assert_eq!(sizer.size(), 8);
    }

    #[test]
    fn batches_that_fail_shrink_to_one_job_even_below_the_minimum() {
        let mut sizer = BatchSizer::new(100, 512);
        for _ in 0..4 {
            sizer.shrink_after_error();
        }
        assert_eq!(sizer.size(), 1);
        sizer.record(1, 0, Duration::from_millis(1));
        assert_eq!(sizer.size(), 100);
    }

    #[test]
    fn batches_with_keys_are_smaller() {
        let mut sizer = after_many(BatchSizer::new(1, 4_096), 0, |_| Duration::from_millis(1));
        assert_eq!(sizer.size(), 4_096);
        sizer.limit_for_keys();
        assert_eq!(sizer.size(), 512);
        let mut minimum = BatchSizer::new(1_000, 4_096);
        minimum.limit_for_keys();
        assert_eq!(minimum.size(), 1_000);
    }

    #[test]
    fn batches_with_jobs_of_lost_leases_are_small_even_below_the_minimum() {
        let mut sizer = after_many(BatchSizer::new(16, 4_096), 0, |_| Duration::from_millis(1));
        sizer.limit_for_lost_lease(512);
        assert_eq!(sizer.size(), 512);
        sizer.limit_for_lost_lease(1);
        assert_eq!(sizer.size(), 1);
        sizer.record(1, 0, Duration::from_millis(1));
        assert_eq!(sizer.size(), 16);
    }

    #[test]
    fn the_bounds_hold() {
        let mut sizer = BatchSizer::new(4, 6);
        sizer.record(4, 0, Duration::from_millis(1));
        assert_eq!(sizer.size(), 6);
        sizer.record(6, 0, Duration::from_secs(9));
        assert_eq!(sizer.size(), 4);
    }
}
