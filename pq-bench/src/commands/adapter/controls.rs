//! The files by which the harness changes the load while it runs.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::settings::Settings;
use super::work::{Fail, Work};

/// How often a file of the scenarios is polled at.
pub(super) const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The rate that holds now. A file that is not there, or being written, says nothing.
pub(super) fn rate(settings: &Settings) -> f64 {
    let text = settings.rate_file.as_deref().and_then(|path| std::fs::read_to_string(path).ok());
    let rate = text.and_then(|text| text.trim().parse::<f64>().ok()).filter(|rate| rate.is_finite());
    rate.unwrap_or(settings.rate).max(0.0)
}

/// Whether jobs may be taken.
pub(super) fn is_open(gate: &Path) -> bool {
    std::fs::read_to_string(gate).is_ok_and(|text| text.trim() == "open")
}

/// Which parts of the jobs are to fail.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct FailurePlan {
    transient_pct: f64,
    poison_pct: f64,
    transient_failures: Option<u32>,
}

impl FailurePlan {
    /// Marks the job, if it is of the part that is to fail. All processes and all systems of the harness mark the
    /// same numbers, evenly among the others.
    pub(super) fn mark(&self, work: &mut Work) {
        let bucket = (work.seq % 10_000 * 7_919 % 10_000) as f64;
        let poison = (self.poison_pct * 100.0).round();
        if bucket < poison {
            work.fail = Some(Fail::Poison);
        } else if bucket < poison + (self.transient_pct * 100.0).round() {
            work.fail = Some(Fail::Transient);
            work.fail_attempts = Some(self.transient_failures.unwrap_or(1));
        }
    }
}

/// Many jobs that are to be put now and to run later.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct LoadGroup {
    pub(super) id: String,
    pub(super) count: u64,
    pub(super) run_at_ms: i64,
    #[serde(default)]
    pub(super) spread_ms: i64,
}

impl LoadGroup {
    /// How many jobs are put at a time, and when each such batch is to run.
    pub(super) fn batches(&self) -> impl Iterator<Item = (u64, i64)> + use<> {
        const MOST: u64 = 500;
        /// A batch has one time, and covers this much of the spread at most.
        const COVERED_MS: u64 = 100;
        let (count, begin) = (self.count, self.run_at_ms);
        let spread = self.spread_ms.max(0).unsigned_abs();
        let size = match spread {
            0 => MOST,
            spread => (count.saturating_mul(COVERED_MS) / spread).clamp(1, MOST),
        };
        (0..count.div_ceil(size)).map(move |batch| {
            let done = batch * size;
            let after = i128::from(spread) * i128::from(done) / i128::from(count.max(1));
            (size.min(count - done), begin.saturating_add(i64::try_from(after).unwrap_or(i64::MAX)))
        })
    }
}

/// A file that is polled at once a second. It says nothing where it is not there, or is no such JSON.
pub(super) struct Watched<'s, C> {
    path: Option<&'s Path>,
    polled: Option<Instant>,
    found: Option<C>,
}

impl<'s, C: DeserializeOwned + Clone> Watched<'s, C> {
    pub(super) fn new(path: Option<&'s Path>) -> Self {
        Self { path, polled: None, found: None }
    }

    pub(super) fn now(&mut self) -> Option<C> {
        let path = self.path?;
        if self.polled.is_none_or(|polled| polled.elapsed() >= POLL_INTERVAL) {
            self.polled = Some(Instant::now());
            let text = std::fs::read_to_string(path).ok();
            self.found = text.and_then(|text| serde_json::from_str(&text).ok());
        }
        self.found.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_of_a_hundred_fail() -> anyhow::Result<()> {
        let plan: FailurePlan = serde_json::from_str(r#"{"transient_pct": 30, "poison_pct": 1}"#)?;
        let (mut poison, mut transient) = (0, 0);
        for seq in 20_000..30_000 {
            let mut work = Work { seq, ..Work::of(0, false)? };
            plan.mark(&mut work);
            poison += i32::from(work.fail == Some(Fail::Poison));
            transient += i32::from(work.fail == Some(Fail::Transient) && work.fail_attempts == Some(1));
        }
        assert_eq!((poison, transient), (100, 3_000));
        let mut work = Work { seq: 0, ..Work::of(0, false)? };
        serde_json::from_str::<FailurePlan>("{}")?.mark(&mut work);
        assert!(!work.is_special());
        Ok(())
    }

    #[test]
    fn a_herd_is_put_in_batches_that_cover_its_spread() {
        let load_group =
            |count, spread_ms| LoadGroup { id: "h".to_owned(), count, run_at_ms: 1_000, spread_ms };
        assert_eq!(
            load_group(1_100, 0).batches().collect::<Vec<_>>(),
            [(500, 1_000), (500, 1_000), (100, 1_000)]
        );
        let spread: Vec<_> = load_group(1_000, 1_000).batches().collect();
        assert_eq!((spread.len(), spread[0], spread[9]), (10, (100, 1_000), (100, 1_900)));
        assert_eq!(
            load_group(3, 60_000).batches().collect::<Vec<_>>(),
            [(1, 1_000), (1, 21_000), (1, 41_000)]
        );
        assert_eq!(load_group(0, 10).batches().count(), 0);
    }
}
