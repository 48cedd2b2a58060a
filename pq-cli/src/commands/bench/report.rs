//! Formats the measurements of the bench as a table or as JSON.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::output::escape;

/// Latencies in nanoseconds.
pub(super) type Latencies = Histogram<u64>;

/// The measurements of one phase.
pub(super) struct Phase {
    /// Name in the JSON.
    pub(super) key: &'static str,
    /// Name in the table.
    pub(super) name: &'static str,
    pub(super) jobs: u64,
    /// `None` if the phase pauses between its jobs.
    pub(super) time: Option<Duration>,
    /// Bytes of WAL, or `None` without the privilege to read it.
    pub(super) wal: Option<u64>,
    pub(super) latencies: Option<Latencies>,
}

impl Phase {
    fn rate(&self) -> Option<f64> {
        self.time.map(|time| self.jobs as f64 / time.as_secs_f64().max(1e-9))
    }

    fn wal_per_job(&self) -> Option<f64> {
        self.wal.map(|wal| wal as f64 / self.jobs.max(1) as f64)
    }

    /// Returns p50, p90, p99 and the maximum, in milliseconds.
    fn percentiles(&self) -> Option<[(&'static str, f64); 4]> {
        let latencies = self.latencies.as_ref()?;
        let at = |percent| latencies.value_at_quantile(percent) as f64 / 1e6;
        Some([("p50", at(0.5)), ("p90", at(0.9)), ("p99", at(0.99)), ("max", at(1.0))])
    }
}

pub(super) struct Report {
    pub(super) server: String,
    pub(super) queue: String,
    pub(super) jobs: u64,
    pub(super) threads: u32,
    pub(super) payload: u32,
    pub(super) phases: Vec<Phase>,
}

impl Report {
    pub(super) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header(["", "jobs", "jobs/s", "WAL/job", "p50 ms", "p90 ms", "p99 ms", "max ms"]);
        for phase in &self.phases {
            let whole =
                |figure: Option<f64>| figure.map_or_else(String::new, |figure| format!("{figure:.0}"));
            let mut row = vec![
                phase.name.to_owned(),
                phase.jobs.to_string(),
                whole(phase.rate()),
                whole(phase.wal_per_job()),
            ];
            row.extend(phase.percentiles().into_iter().flatten().map(|(_, time)| format!("{time:.3}")));
            row.resize(8, String::new());
            table.add_row(row);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!(
            "{table}\nPostgreSQL {}, queue {}: {} jobs of {} bytes, {} threads.\n\
             WAL/job is in bytes and includes the WAL of other sessions.",
            escape(&self.server),
            escape(&self.queue),
            self.jobs,
            self.payload,
            self.threads,
        )
    }

    pub(super) fn json(&self) -> String {
        let phases: Vec<Value> = self
            .phases
            .iter()
            .map(|phase| {
                let mut shown = json!({ "phase": phase.key, "jobs": phase.jobs });
                if let Some((time, rate)) = phase.time.zip(phase.rate()) {
                    (shown["seconds"], shown["jobs_per_second"]) = (json!(time.as_secs_f64()), json!(rate));
                }
                if let Some(wal) = phase.wal_per_job() {
                    shown["wal_bytes_per_job"] = json!(wal);
                }
                for (percentile, time) in phase.percentiles().into_iter().flatten() {
                    shown["latency_ms"][percentile] = json!(time);
                }
                shown
            })
            .collect();
        json!({
            "server_version": self.server,
            "queue": self.queue,
            "jobs": self.jobs,
            "threads": self.threads,
            "payload_bytes": self.payload,
            "wal_includes_other_sessions": true,
            "phases": phases,
        })
        .to_string()
    }
}
