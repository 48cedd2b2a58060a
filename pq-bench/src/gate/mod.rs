//! The regression gate: what a put and a take cost, held against thresholds that are committed.
//!
//! Time differs from machine to machine and from run to run, so nearly all that the gate looks at is counted and
//! not timed: statements, commits, WAL bytes, instructions of the client, rows and pages that a take reads. Each
//! count is the difference of a long run and a short one, divided by what the long one does more, so that
//! connecting, preparing and ending cancel.

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

/// What the gate looks at. The words are those of `--only`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Group {
    /// Statements sent and commits, exactly
    Counts,
    /// WAL bytes a job, full-page writes apart
    Wal,
    /// Rows and pages that a take reads
    Rows,
    /// Instructions of the client a put and a take, by callgrind
    Instructions,
    /// Jobs a second beside pgbench in the same run, within wide bounds
    Ratios,
}

impl Group {
    /// All of them, the cheap ones first.
    pub const ALL: [Self; 5] = [Self::Counts, Self::Wal, Self::Rows, Self::Instructions, Self::Ratios];

    /// The section of the thresholds' file. What our own code costs differs by many times between a build with
    /// optimisations and one without, so such groups have a section each. CI holds the build without against
    /// its own: it has that anyway, and one with optimisations would take it longer than all of the gate. A copy
    /// too many or a search that has become a scan shows in either.
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

    /// Whether more is better. A ratio has a bound that is set by hand, far below what is reached; of all else the
    /// file holds what was measured.
    #[must_use]
    pub fn is_lower_bound(self) -> bool {
        self == Self::Ratios
    }
}

/// Something that was measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// To what it belongs.
    pub group: Group,
    /// What it is, as the thresholds' file names it.
    pub name: String,
    /// How much it is, or why it could not be measured.
    pub value: Result<f64, String>,
    /// The tolerance in per cent that a new threshold gets; for a ratio, the bound itself.
    pub margin: f64,
}

impl Measured {
    fn new(group: Group, name: impl Into<String>, value: f64, margin: f64) -> Self {
        Self { group, name: name.into(), value: Ok(value), margin }
    }
}

/// Measures these groups in the database of the bench. It empties the tables, and takes them from autovacuum,
/// whose WAL would be counted as well. `command` is the path of the command `pq-bench`, which is run as a child to
/// count instructions.
///
/// # Errors
///
/// The database's. That there is no valgrind is none.
pub fn measure(bench: &Bench, groups: &[Group], command: &std::path::Path) -> Result<Vec<Measured>> {
    let mut conn = bench.connect()?;
    for table in ["queue", "queue_leases", "queue_settled", "queue_keys", "queue_unique"] {
        conn.batch_execute(&format!("ALTER TABLE pq.{table} SET (autovacuum_enabled = off)"))?;
    }
    drop(conn);
    let wanted = |group| groups.contains(&group);
    let mut measured = Vec::new();
    if wanted(Group::Counts) || wanted(Group::Wal) {
        measured.extend(counts::measure(bench)?.into_iter().filter(|one| wanted(one.group)));
    }
    if wanted(Group::Rows) {
        measured.extend(rows::measure(bench)?);
    }
    if wanted(Group::Instructions) {
        measured.extend(instructions::measure(bench, command)?);
    }
    if wanted(Group::Ratios) {
        measured.extend(ratios::measure(bench)?);
    }
    Ok(measured)
}

const QUEUE: &str = "gate";

/// Empties the table and fills the queue with so many jobs, by SQL and on a connection of its own, without a
/// checkpoint: the pages of a table that has just been emptied are new, and are not written to the WAL whole.
fn fill(bench: &Bench, jobs: usize) -> Result<PgConnection> {
    let mut conn = bench.connect()?;
    conn.batch_execute(&format!(
        "{TRUNCATE_ALL};
         INSERT INTO pq.queue (q_name, data) SELECT '{QUEUE}', '{PAYLOAD}' FROM generate_series(1, {jobs});
         ANALYZE pq.queue"
    ))?;
    Ok(conn)
}

/// The middle one of an odd number of figures, of which at least one is needed.
fn median_of(figures: impl IntoIterator<Item = f64>) -> Result<f64> {
    let figures: Vec<f64> = figures.into_iter().collect();
    ensure!(!figures.is_empty(), "nothing was measured");
    Ok(crate::median(&figures))
}
