//! The output for the harness: lines of JSON.

use std::io::Write;

use anyhow::{Context, Result};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

/// The system and its relations, as the harness reads them from adapter.json. The descriptor must contain the
/// same values, or the harness rejects the run.
#[derive(Deserialize)]
pub(super) struct Manifest {
    system: String,
    event_tables: Vec<String>,
    event_indexes: Vec<String>,
    extensions: Vec<String>,
}

impl Manifest {
    pub(super) fn read() -> Result<Self> {
        serde_json::from_str(include_str!("../../../adapter.json")).context("adapter.json")
    }
}

#[derive(Serialize)]
struct Descriptor<'l> {
    kind: &'static str,
    system: &'l str,
    instance_id: u32,
    event_tables: &'l [String],
    event_indexes: &'l [String],
    extensions: &'l [String],
    version: &'l str,
    schema_version: &'l str,
    db_name: &'l str,
    started_at: String,
}

#[derive(Serialize)]
struct Sample<'l> {
    t: &'l str,
    system: &'l str,
    instance_id: u32,
    kind: &'static str,
    subject_kind: &'static str,
    subject: &'static str,
    metric: &'static str,
    value: f64,
    window_s: f64,
}

/// Name, value, and window in seconds; the window of a gauge is 0.
pub(super) type Metric = (&'static str, f64, f64);

pub(super) struct Lines<W> {
    pub(super) to: W,
    pub(super) manifest: Manifest,
    pub(super) instance: u32,
}

impl<W: Write> Lines<W> {
    pub(super) fn describe(&mut self, db_name: &str, schema_version: &str) -> Result<()> {
        let descriptor = Descriptor {
            kind: "descriptor",
            system: &self.manifest.system,
            instance_id: self.instance,
            event_tables: &self.manifest.event_tables,
            event_indexes: &self.manifest.event_indexes,
            extensions: &self.manifest.extensions,
            version: concat!("pq@", env!("CARGO_PKG_VERSION")),
            schema_version,
            db_name,
            started_at: timestamp(Utc::now()),
        };
        writeln!(self.to, "{}", serde_json::to_string(&descriptor)?)?;
        Ok(self.to.flush()?)
    }

    /// Writes all metrics of one sample.
    pub(super) fn sample(&mut self, at: DateTime<Utc>, metrics: &[Metric]) -> Result<()> {
        let t = timestamp(at);
        for &(metric, value, window_s) in metrics {
            let sample = Sample {
                t: &t,
                system: &self.manifest.system,
                instance_id: self.instance,
                kind: "adapter",
                subject_kind: "adapter",
                subject: "",
                metric,
                value,
                window_s,
            };
            writeln!(self.to, "{}", serde_json::to_string(&sample)?)?;
        }
        Ok(self.to.flush()?)
    }
}

fn timestamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}
