//! How many jobs a thread takes at a time.

use std::time::Duration;

/// How many jobs a thread takes at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    size: usize,
    min: usize,
    max: usize,
}

impl Pace {
    /// A batch that takes longer than this could have been begun by others in part.
    const TARGET: Duration = Duration::from_millis(50);

    pub(crate) fn new(min: usize, max: usize) -> Self {
        Self { size: min, min, max }
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// A batch of so many jobs took this long.
    pub(crate) fn took(&mut self, jobs: usize, time: Duration) {
        let wished = if time > 2 * Self::TARGET {
            self.size / 2
        } else if time < Self::TARGET && jobs >= self.size {
            self.size.saturating_mul(2)
        } else if jobs < self.size / 2 {
            // There is less to do than one thread takes.
            self.size / 2
        } else {
            self.size
        };
        self.size = wished.clamp(self.min, self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_grow_while_they_are_full_and_fast() {
        let mut pace = Pace::new(1, 512);
        for _ in 0..20 {
            let size = pace.size();
            pace.took(size, Duration::from_millis(1));
        }
        assert_eq!(pace.size(), 512);
        pace.took(3, Duration::from_millis(1));
        assert_eq!(pace.size(), 256);
    }

    #[test]
    fn slow_jobs_are_taken_one_by_one() {
        let mut pace = Pace::new(1, 512);
        for _ in 0..20 {
            let size = pace.size();
            pace.took(size, size as u32 * Duration::from_millis(80));
        }
        assert!(pace.size() <= 2, "{pace:?}");
    }

    #[test]
    fn the_bounds_hold() {
        let mut pace = Pace::new(4, 6);
        pace.took(4, Duration::from_millis(1));
        assert_eq!(pace.size(), 6);
        pace.took(6, Duration::from_secs(9));
        assert_eq!(pace.size(), 4);
    }
}
