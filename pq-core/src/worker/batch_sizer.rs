//! How many jobs a thread takes at a time.

use std::time::Duration;

/// How many jobs a thread takes at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchSizer {
    size: usize,
    min: usize,
    max: usize,
}

impl BatchSizer {
    /// A batch that takes longer than this could have been begun by others in part.
    const TARGET: Duration = Duration::from_millis(50);
    /// About as many bytes of payload as a thread holds at a time.
    const BYTES: usize = 8 << 20;

    /// The most jobs where some have keys, each of which may be a lock in the store until the batch ends. PostgreSQL
    /// has 6,400 for all its sessions, unless told otherwise (`max_locks_per_transaction`).
    const KEYS: usize = 512;

    pub(crate) fn new(min: usize, max: usize) -> Self {
        Self { size: min, min, max }
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// A batch had jobs with serialization keys: the next one is not to be very large.
    pub(crate) fn limit_for_keys(&mut self) {
        self.size = self.size.min(Self::KEYS).max(self.min);
    }

    /// A batch could not be taken or ended. Smaller ones ask less of the store, and show whose fault it is: that of
    /// one job alone is its failure.
    pub(crate) fn shrink_after_error(&mut self) {
        self.size = (self.size / 8).max(1);
    }

    /// A batch of so many jobs, with so many bytes of payload, took this long.
    pub(crate) fn record(&mut self, jobs: usize, bytes: usize, time: Duration) {
        let wished = if time > 2 * Self::TARGET {
            self.size / 2
        } else if time < Self::TARGET && jobs >= self.size {
            // By powers of two, for each size is a statement of its own, and steeply where there is room.
            let factor = [8, 4, 2].into_iter().find(|factor| time * *factor < Self::TARGET).unwrap_or(2);
            self.size.saturating_mul(factor as usize)
        } else if jobs < self.size / 2 {
            // There is less to do than one thread takes.
            self.size / 2
        } else {
            self.size
        };
        let mut wished = wished.min(self.max);
        while wished > 1 && wished.saturating_mul(bytes) > Self::BYTES.saturating_mul(jobs) {
            wished /= 2;
        }
        self.size = wished.clamp(self.min, self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After many full batches of jobs of so many bytes, which took so long.
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
    fn batches_that_fail_shrink_to_one_job_whatever_the_least() {
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
        let mut least = BatchSizer::new(1_000, 4_096);
        least.limit_for_keys();
        assert_eq!(least.size(), 1_000);
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
