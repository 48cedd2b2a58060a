//! What a run found, as it is kept in a file and read by reports.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{Bench, Cost, median};

/// A run: where it ran, and its figures.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Results {
    /// When it began, as RFC 3339.
    pub began_at: String,
    /// The revision of the sources, where git knows it.
    pub revision: String,
    /// Which server it was: the words of [`crate::Bench::origin`].
    pub server: String,
    /// The server's settings that matter, by name, as the server itself told them.
    pub settings: BTreeMap<String, String>,
    /// Processor, cores and memory.
    pub machine: String,
    /// What was found, in the order in which it was measured.
    pub figures: Vec<Figure>,
}

/// One thing that was measured, over and over, beside what the server does without us.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Figure {
    /// The scenario that measured it, by which `pq-bench run` knows it: `put`, `drain`.
    pub scenario: String,
    /// What it is: `put on the caller's connection`.
    pub name: String,
    /// What it was measured with: `threads` = `4`.
    pub parameters: BTreeMap<String, String>,
    /// Of what the numbers are: `jobs/s`, `ms`, `bytes/job`.
    pub unit: String,
    /// Ours, one a round.
    pub ours: Vec<f64>,
    /// What it is compared with: `pgbench, the same INSERT, prepared`.
    pub beside: Option<String>,
    /// The other side of each round.
    #[serde(alias = "bare")]
    pub baseline: Vec<f64>,
    /// What is asked of the median, if anything.
    pub target: Option<Target>,
    /// What ours cost besides time, as the median of the rounds.
    pub cost: Option<Cost>,
    /// What the other side cost.
    #[serde(alias = "bare_cost")]
    pub baseline_cost: Option<Cost>,
    /// Percentiles of single times, in ascending order: 50.0, 90.0, 99.0 and so on.
    pub percentiles: Vec<(f64, f64)>,
    /// How it went over time.
    pub tracks: Vec<Track>,
}

/// What is asked of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub enum Target {
    /// The median of ours : baseline is at least this.
    RatioAtLeast(f64),
    /// The median of ours : baseline is at most this.
    RatioAtMost(f64),
    /// The median of ours is at most this, in the figure's unit.
    AtMost(f64),
}

/// A line of a plot over time.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Track {
    /// Whose it is.
    pub name: String,
    /// Seconds since the beginning, and the figure's unit.
    pub points: Vec<(f64, f64)>,
}

impl Results {
    /// A run that is about to begin on this server.
    ///
    /// # Errors
    ///
    /// The database's.
    pub fn about(bench: &Bench) -> Result<Self> {
        let revision = std::process::Command::new("git").args(["describe", "--always", "--dirty"]).output();
        let revision = revision.map(|said| String::from_utf8_lossy(&said.stdout).trim().to_owned());
        Ok(Self {
            began_at: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            revision: revision.unwrap_or_default(),
            server: bench.origin(),
            settings: bench.settings()?,
            machine: machine(),
            figures: Vec::new(),
        })
    }

    /// Reads a run from its file.
    ///
    /// # Errors
    ///
    /// Where it cannot be read, or is no run.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} holds no run of pq-bench", path.display()))
    }

    /// Writes a run to a file.
    ///
    /// # Errors
    ///
    /// Where it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
    }
}

/// Processor, cores and memory, as Linux tells them.
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
    /// The figure in a line, for whoever watches.
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
            Some(true) => line += ", as asked",
            Some(false) => line += ", short of what is asked",
            None => {}
        }
        line
    }

    /// The median of the ratios of the rounds, ours to the other side's; `None` where nothing stands beside it.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        let ratios: Vec<f64> =
            self.ours.iter().zip(&self.baseline).map(|(ours, baseline)| ours / baseline).collect();
        (!ratios.is_empty()).then(|| median(&ratios))
    }

    /// Whether what is asked of it is reached; `None` where nothing is asked.
    #[must_use]
    pub fn reached(&self) -> Option<bool> {
        Some(match self.target? {
            Target::RatioAtLeast(least) => self.ratio()? >= least,
            Target::RatioAtMost(most) => self.ratio()? <= most,
            Target::AtMost(most) => median(&self.ours) <= most,
        })
    }
}
