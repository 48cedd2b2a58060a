//! The control files with which the harness changes the load of a running adapter.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::settings::Settings;
use super::work::{Fail, Work};

/// Interval at which a control file is read.
pub(super) const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Returns the current rate. A rate file that is missing or incomplete is ignored.
pub(super) fn rate(settings: &Settings) -> f64 {
    let text = settings.rate_file.as_deref().and_then(|path| std::fs::read_to_string(path).ok());
    let rate = text.and_then(|text| text.trim().parse::<f64>().ok()).filter(|rate| rate.is_finite());
    rate.unwrap_or(settings.rate).max(0.0)
}

/// Returns whether the gate file allows takes.
pub(super) fn is_open(gate: &Path) -> bool {
    std::fs::read_to_string(gate).is_ok_and(|text| text.trim() == "open")
}

/// The percentages of jobs that fail.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct FailurePlan {
    transient_pct: f64,
    poison_pct: f64,
    transient_failures: Option<u32>,
}

impl FailurePlan {
    /// Marks the job if it is to fail.
    ///
    /// All processes, and all systems of the harness, mark the same sequence numbers, evenly distributed.
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

/// Jobs that are put now and scheduled for later.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct LoadGroup {
    pub(super) id: String,
    pub(super) count: u64,
    pub(super) run_at_ms: i64,
    #[serde(default)]
    pub(super) spread_ms: i64,
}

impl LoadGroup {
    /// Returns the size and the schedule time of each batch.
    pub(super) fn batches(&self) -> impl Iterator<Item = (u64, i64)> + use<> {
        const MOST: u64 = 500;
        /// A batch has one schedule time, and covers at most this much of the spread.
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

/// A JSON file that is read once a second. It has no content if it is missing or invalid.
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
    fn percentages_of_jobs_are_marked_to_fail() -> anyhow::Result<()> {
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
    fn batches_of_a_load_group_cover_its_spread() {
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
