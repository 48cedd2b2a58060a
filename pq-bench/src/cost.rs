//! What a run cost the server, counted by the server.

use std::time::Duration;

use anyhow::{Context, Result};
use diesel::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Double};

use crate::Bench;
use crate::bare::pgbench_transactions;

/// What a run cost, for each of its jobs.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Jobs a second.
    pub rate: f64,
    /// Bytes of WAL a job.
    pub wal: f64,
    /// Commits a job.
    pub commits: f64,
    /// Statements sent a job.
    pub trips: f64,
}

/// The server's counters at the beginning of a run.
#[derive(Clone, Copy, Debug)]
pub struct Meter {
    wal: f64,
    commits: i64,
}

impl Cost {
    /// Reads the counters.
    ///
    /// # Errors
    ///
    /// The database's.
    pub fn meter(conn: &mut PgConnection) -> Result<Meter> {
        // Sessions report what they have committed when they are idle for a second.
        std::thread::sleep(Duration::from_millis(1_100));
        let wal = diesel::dsl::sql::<Double>("SELECT (pg_current_wal_insert_lsn() - '0/0')::float8");
        let commits = diesel::dsl::sql::<BigInt>(
            "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()",
        );
        Ok(Meter { wal: wal.get_result(conn)?, commits: commits.get_result(conn)? })
    }
}

impl Meter {
    /// What has been spent since.
    ///
    /// # Errors
    ///
    /// The database's.
    pub fn read(self, conn: &mut PgConnection, jobs: usize, time: Duration, sent: u64) -> Result<Cost> {
        // The WAL at once, before anything else writes to it.
        let wal: f64 = diesel::dsl::sql::<Double>("SELECT (pg_current_wal_insert_lsn() - '0/0')::float8")
            .get_result(conn)?;
        let after = Cost::meter(conn)?;
        let jobs = jobs as f64;
        Ok(Cost {
            rate: jobs / time.as_secs_f64(),
            wal: (wal - self.wal) / jobs,
            commits: (after.commits - self.commits) as f64 / jobs,
            trips: sent as f64 / jobs,
        })
    }
}

/// Takes all jobs by bare SQL that takes 500 a time, through pgbench with so many clients.
///
/// # Errors
///
/// Where there is no pgbench, or it fails.
pub fn pgbench_drain(bench: &Bench, sql: &str, clients: usize, jobs: usize) -> Result<Cost> {
    let mut conn = bench.connect()?;
    let meter = Cost::meter(&mut conn)?;
    let each = jobs.div_ceil(500).div_ceil(clients);
    let time = pgbench_transactions(bench.url(), sql, clients, each)?;
    meter.read(&mut conn, jobs, time, 0)
}

/// The most memory that this process has had at once, in megabytes, as Linux counts it.
///
/// # Errors
///
/// Where there is no `/proc`.
pub fn peak_memory() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status").context("no /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes / 1_024.0)
}
