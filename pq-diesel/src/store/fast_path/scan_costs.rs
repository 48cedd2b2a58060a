//! What recent index scans cost, and how long expensive ones are skipped.

use std::time::{Duration, Instant};

/// The pause after an expensive scan is this many times as long as the scan took.
const PAUSE_FACTOR: u32 = 40;

/// Returns how long it is until the next scan of a kind is due, if the last one cost `micros` and ended at `ended`.
pub(super) fn due_in(micros: i64, ended: Instant, now: Instant) -> Duration {
    let pause = Duration::from_micros(micros.max(0).unsigned_abs()).saturating_mul(PAUSE_FACTOR);
    pause.saturating_sub(now.saturating_duration_since(ended))
}

/// The recent scans of one kind: what each cost beyond the jobs that it took, in microseconds.
#[derive(Debug)]
pub(super) struct ScanCosts {
    recent: [i64; ScanCosts::KEPT],
    count: usize,
    /// When the last one ended.
    pub(super) ended: Instant,
}

impl ScanCosts {
    /// A single scan can be expensive because it was planned or interrupted. Sixteen in a row are not.
    const KEPT: usize = 16;

    pub(super) fn new(now: Instant) -> Self {
        Self { recent: [0; Self::KEPT], count: 0, ended: now }
    }

    pub(super) fn add(&mut self, cost: i64, ended: Instant) {
        self.recent[self.count % Self::KEPT] = cost;
        self.count += 1;
        self.ended = ended;
    }

    /// Returns the least recent cost, or `None` if there were too few scans.
    pub(super) fn least(&self) -> Option<i64> {
        self.recent.iter().min().copied().filter(|_| self.count >= Self::KEPT)
    }

    /// Forgets the recent costs, so that the next scan sets the least cost.
    pub(super) fn forget(&mut self) {
        self.recent = [i64::MAX; Self::KEPT];
    }

    /// Raises all recent costs to `cost`, if another kind of scan shows that a scan of this kind would cost as much.
    pub(super) fn raise(&mut self, cost: i64) {
        self.recent.iter_mut().for_each(|recent| *recent = cost.max(*recent));
    }

    /// Returns the lesser of the last two costs. The least of all is too old if scans have just become expensive.
    pub(super) fn latest(&self) -> i64 {
        let back = |steps: usize| self.recent[(self.count + Self::KEPT - steps) % Self::KEPT];
        back(1).min(back(2))
    }
}
