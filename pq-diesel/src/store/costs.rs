//! What walks along the line have cost, and how far apart dear ones are.

use std::time::{Duration, Instant};

/// Dear walks are so many times their cost apart.
const APART: u32 = 40;

/// How long it is until the next walk of a kind is due, the last of which cost so many microseconds and ended then.
pub(super) fn due_in(cost: i64, ended: Instant, now: Instant) -> Duration {
    let apart = Duration::from_micros(cost.max(0).unsigned_abs()).saturating_mul(APART);
    apart.saturating_sub(now.saturating_duration_since(ended))
}

/// The last walks of a kind: what each cost beyond what its jobs account for, in microseconds.
#[derive(Debug)]
pub(super) struct Costs {
    last: [i64; Costs::MANY],
    many: usize,
    /// When the last one ended.
    pub(super) at: Instant,
}

impl Costs {
    /// Single walks are dear because they are planned, or interrupted: the least of so many is not.
    const MANY: usize = 16;

    pub(super) fn new(at: Instant) -> Self {
        Self { last: [0; Self::MANY], many: 0, at }
    }

    pub(super) fn add(&mut self, cost: i64, at: Instant) {
        self.last[self.many % Self::MANY] = cost;
        self.many += 1;
        self.at = at;
    }

    /// The least that one has cost of late, once there were enough to tell.
    pub(super) fn least(&self) -> Option<i64> {
        self.last.iter().min().copied().filter(|_| self.many >= Self::MANY)
    }

    /// Takes nothing for granted: the next one tells.
    pub(super) fn forget(&mut self) {
        self.last = [i64::MAX; Self::MANY];
    }

    /// It is known otherwise that one would cost as much.
    pub(super) fn raise(&mut self, cost: i64) {
        self.last.iter_mut().for_each(|last| *last = cost.max(*last));
    }

    /// What one costs now, for it may be much more than it was sixteen walks ago.
    pub(super) fn now(&self) -> i64 {
        let last = |back: usize| self.last[(self.many + Self::MANY - back) % Self::MANY];
        last(1).min(last(2))
    }
}
