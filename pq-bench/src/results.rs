//! The results of a run, as stored in a file and read by reports.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{Bench, Cost, median};

/// A run: its environment and its figures.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Results {
    /// Start time, as RFC 3339.
    pub began_at: String,
    /// Source revision, or empty if git does not know it.
    pub revision: String,
    /// Description of the server: [`crate::Bench::origin`].
    pub server: String,
    /// Relevant settings of the server, by name.
    pub settings: BTreeMap<String, String>,
    /// Processor, cores and memory.
    pub machine: String,
    /// Figures in the order in which they were measured.
    pub figures: Vec<Figure>,
}

/// One measurement, repeated in rounds, beside its baseline.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Figure {
    /// Scenario that measured it, such as `put` or `drain`.
    pub scenario: String,
    /// Name, such as `put on the caller's connection`.
    pub name: String,
    /// Parameters, such as `threads` = `4`.
    pub parameters: BTreeMap<String, String>,
    /// Unit of the values: `jobs/s`, `ms`, `bytes/job`.
    pub unit: String,
    /// Values of `pq`, one per round.
    pub ours: Vec<f64>,
    /// Description of the baseline, such as `pgbench, the same INSERT, prepared`.
    pub beside: Option<String>,
    /// Values of the baseline, one per round.
    #[serde(alias = "bare")]
    pub baseline: Vec<f64>,
    /// Target of the median, if there is one.
    pub target: Option<Target>,
    /// Cost of `pq` besides time: the median of the rounds.
    pub cost: Option<Cost>,
    /// Cost of the baseline: the median of the rounds.
    #[serde(alias = "bare_cost")]
    pub baseline_cost: Option<Cost>,
    /// Percentiles of single times in ascending order, such as 50.0, 90.0, 99.0.
    pub percentiles: Vec<(f64, f64)>,
    /// Values over time.
    pub tracks: Vec<Track>,
}

/// The target of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub enum Target {
    /// The median ratio of `pq` to the baseline is at least this.
    RatioAtLeast(f64),
    /// The median ratio of `pq` to the baseline is at most this.
    RatioAtMost(f64),
    /// The median of `pq` is at most this, in the figure's unit.
    AtMost(f64),
}

/// A series of values over time.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Track {
    /// Name of the series.
    pub name: String,
    /// Seconds since the start, and the value in the figure's unit.
    pub points: Vec<(f64, f64)>,
}

impl Results {
    /// Creates the results of a run that starts now on this server.
    ///
    /// # Errors
    ///
    /// Database errors.
    pub fn about(bench: &Bench) -> Result<Self> {
        let revision = std::process::Command::new("git").args(["describe", "--always", "--dirty"]).output();
        let revision = revision.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        Ok(Self {
            began_at: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            revision: revision.unwrap_or_default(),
            server: bench.origin(),
            settings: bench.settings()?,
            machine: machine(),
            figures: Vec::new(),
        })
    }

    /// Reads a run from a file.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or is not a run.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not a run of pq-bench", path.display()))
    }

    /// Writes a run to a file.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Returns processor, cores and memory as Linux reports them.
fn machine() -> String {
    let first = |file: &str, key: &str| -> Option<String> {
        let text = std::fs::read_to_string(file).ok()?;
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let model = first("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".to_owned());
    let memory = first("/proc/meminfo", "MemTotal").unwrap_or_else(|| "unknown".to_owned());
    format!("{cores} cores ({model}), memory {memory}")
}

impl Figure {
    /// Formats the figure as one line.
    #[must_use]
    pub fn line(&self) -> String {
        let with: Vec<String> =
            self.parameters.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let mut line =
            format!("{} ({}): {:.1} {}", self.name, with.join(", "), median(&self.ours), self.unit);
        if let Some(ratio) = self.ratio() {
            line += &format!(", {ratio:.2} of {:.1}", median(&self.baseline));
        }
        match self.reached() {
            Some(true) => line += ", target reached",
            Some(false) => line += ", target missed",
            None => {}
        }
        line
    }

    /// Returns the median of the rounds' ratios of `pq` to the baseline; `None` without a baseline.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        let ratios: Vec<f64> =
            self.ours.iter().zip(&self.baseline).map(|(ours, baseline)| ours / baseline).collect();
        (!ratios.is_empty()).then(|| median(&ratios))
    }

    /// Returns whether the target is reached; `None` without a target.
    #[must_use]
    pub fn reached(&self) -> Option<bool> {
        Some(match self.target? {
            Target::RatioAtLeast(least) => self.ratio()? >= least,
            Target::RatioAtMost(most) => self.ratio()? <= most,
            Target::AtMost(most) => median(&self.ours) <= most,
        })
    }
}
