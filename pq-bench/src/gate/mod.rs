//! The regression gate: checks what a put and a take cost against committed thresholds.
//!
//! Times differ between machines and runs, so the gate mostly counts: statements, commits, WAL bytes,
//! instructions of the client, and rows and pages that a take reads. Each count is the difference of a long and a
//! short run, divided by the additional operations. Connecting, preparing and closing cancel out.

mod counts;
mod instructions;
mod ratios;
mod rows;
mod thresholds;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use diesel::PgConnection;
use diesel::connection::SimpleConnection;

pub use self::instructions::{CountedOperation, child};
pub use self::thresholds::{Check, CheckResult, Threshold, Thresholds};
use crate::bench::TRUNCATE_ALL;
use crate::{Bench, PAYLOAD};

/// A group of figures, as named by `--only`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Group {
    /// Statements sent and commits, exactly
    Counts,
    /// WAL bytes per job, without full-page images
    Wal,
    /// Rows and pages that a take reads
    Rows,
    /// Instructions of the client per put, per take and per drained job, by callgrind
    Instructions,
    /// Jobs per second relative to pgbench in the same run, with wide bounds
    Ratios,
}

impl Group {
    /// All groups, the fastest ones first.
    pub const ALL: [Self; 5] = [Self::Counts, Self::Wal, Self::Rows, Self::Instructions, Self::Ratios];

    /// Returns the section of the thresholds file.
    ///
    /// The client's own cost differs by a large factor between debug and release builds, so these groups have a
    /// section for each. CI checks the debug build, because it exists already and a release build takes longer
    /// than the gate. A redundant copy or an accidental full scan shows in both.
    #[must_use]
    pub fn section(self) -> &'static str {
        match (self, cfg!(debug_assertions)) {
            (Self::Counts, _) => "counts",
            (Self::Wal, _) => "wal",
            (Self::Rows, _) => "rows",
            (Self::Instructions, true) => "instructions-debug",
            (Self::Instructions, false) => "instructions-release",
            (Self::Ratios, true) => "ratios-debug",
            (Self::Ratios, false) => "ratios-release",
        }
    }

    /// Returns whether the threshold is a lower bound.
    ///
    /// Bounds of ratios are set by hand, far below the values reached. All other thresholds are measured values.
    #[must_use]
    pub fn is_lower_bound(self) -> bool {
        self == Self::Ratios
    }
}

/// A measured value.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The group of the figure.
    pub group: Group,
    /// The figure's name in the thresholds file.
    pub name: String,
    /// The value, or why it could not be measured.
    pub value: Result<f64, String>,
    /// Tolerance of a new threshold in per cent; for a ratio, the bound itself.
    pub margin: f64,
}

impl Measured {
    fn new(group: Group, name: impl Into<String>, value: f64, margin: f64) -> Self {
        Self { group, name: name.into(), value: Ok(value), margin }
    }
}

/// Measures these groups in the database of the bench.
///
/// Empties the tables and turns autovacuum off for them, because its WAL would be counted as well. `command` is
/// the path of the command `pq-bench`, which runs as a child process to count instructions.
///
/// # Errors
///
/// Database errors. A missing valgrind is not an error.
pub fn measure(bench: &Bench, groups: &[Group], command: &std::path::Path) -> Result<Vec<Measured>> {
    let mut conn = bench.connect()?;
    for table in ["queue", "queue_leases", "queue_settled", "queue_keys", "queue_unique"] {
        conn.batch_execute(&format!("ALTER TABLE pq.{table} SET (autovacuum_enabled = off)"))?;
    }
    drop(conn);
    let is_selected = |group| groups.contains(&group);
    let mut measured = Vec::new();
    if is_selected(Group::Counts) || is_selected(Group::Wal) {
        measured.extend(counts::measure(bench)?.into_iter().filter(|one| is_selected(one.group)));
    }
    if is_selected(Group::Rows) {
        measured.extend(rows::measure(bench)?);
    }
    if is_selected(Group::Instructions) {
        measured.extend(instructions::measure(bench, command)?);
    }
    if is_selected(Group::Ratios) {
        measured.extend(ratios::measure(bench)?);
    }
    Ok(measured)
}

const QUEUE: &str = "gate";

/// Empties the table and inserts `jobs` jobs by SQL, without a checkpoint.
///
/// The pages of a truncated table are new, so they cause no full-page images.
fn fill(bench: &Bench, jobs: usize) -> Result<PgConnection> {
    let mut conn = bench.connect()?;
    conn.batch_execute(&format!(
        "{TRUNCATE_ALL};
         INSERT INTO pq.queue (q_name, data) SELECT '{QUEUE}', '{PAYLOAD}' FROM generate_series(1, {jobs});
         ANALYZE pq.queue"
    ))?;
    Ok(conn)
}

/// Returns the median of at least one value.
fn median_of(figures: impl IntoIterator<Item = f64>) -> Result<f64> {
    let figures: Vec<f64> = figures.into_iter().collect();
    ensure!(!figures.is_empty(), "nothing was measured");
    Ok(crate::median(&figures))
}
