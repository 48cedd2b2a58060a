//! Counts the cost of a run: by the server, by connections, and by the operating system.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cpu_time::ProcessTime;
use diesel::PgConnection;
use diesel::connection::{InstrumentationEvent, set_default_instrumentation};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Double};
use serde::{Deserialize, Serialize};

use crate::baseline::Script;
use crate::{Bench, median};

/// The cost of a run, per job.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Cost {
    /// Jobs per second.
    pub rate: f64,
    /// Statements sent per job.
    pub trips: f64,
    /// Writing transactions per job, by the transaction ids that PostgreSQL assigned. Transactions that only read
    /// have none.
    pub commits: f64,
    /// Bytes of WAL per job.
    pub wal: f64,
    /// Dead tuples left per job, in all tables of the database.
    pub dead_rows: f64,
    /// Microseconds of processor time per job, of all threads of this process.
    pub client_cpu: f64,
    /// Peak memory of this process in megabytes, since the meter was started.
    pub peak_memory: f64,
}

impl Cost {
    /// Returns the median of each part, or `None` if there are no costs.
    #[must_use]
    pub fn median(costs: &[Self]) -> Option<Self> {
        let of = |part: fn(&Self) -> f64| median(&costs.iter().map(part).collect::<Vec<_>>());
        (!costs.is_empty()).then(|| Self {
            rate: of(|cost| cost.rate),
            trips: of(|cost| cost.trips),
            commits: of(|cost| cost.commits),
            wal: of(|cost| cost.wal),
            dead_rows: of(|cost| cost.dead_rows),
            client_cpu: of(|cost| cost.client_cpu),
            peak_memory: of(|cost| cost.peak_memory),
        })
    }
}

/// The counters at the start of a run.
#[derive(Clone, Copy)]
pub struct Meter<'a> {
    began: Instant,
    counters: Counters,
    cpu: Duration,
    sent: u64,
    bench: Option<&'a Bench>,
}

#[derive(Clone, Copy, Debug)]
struct Counters {
    wal: f64,
    commits: i64,
    dead: i64,
}

/// Number of statements sent by connections of this process.
static SENT: AtomicU64 = AtomicU64::new(0);

/// Starts to count statements.
///
/// Call it before the first connection, because a connection gets its counter when it is opened. Connections of
/// the handle are counted as well.
///
/// # Errors
///
/// If diesel has no instrumentation.
pub fn count_statements() -> Result<()> {
    set_default_instrumentation(|| {
        Some(Box::new(|event: InstrumentationEvent<'_>| {
            if matches!(event, InstrumentationEvent::StartQuery { .. }) {
                SENT.fetch_add(1, Ordering::Relaxed);
            }
        }))
    })?;
    Ok(())
}

/// Returns the number of statements that this process has sent since [`count_statements`].
#[must_use]
pub fn statements_sent() -> u64 {
    SENT.load(Ordering::Relaxed)
}

impl<'a> Meter<'a> {
    /// Reads the counters and starts the clock.
    ///
    /// Dead tuples are counted for sessions that end before the meter is stopped.
    ///
    /// # Errors
    ///
    /// Database errors.
    pub fn start(conn: &mut PgConnection) -> Result<Self> {
        Self::begin(conn, None)
    }

    /// Starts a meter for work through the handle of the bench, whose sessions stay open.
    ///
    /// The handle must be idle while the meter is started and stopped.
    ///
    /// # Errors
    ///
    /// Database errors.
    pub fn of(bench: &'a Bench, conn: &mut PgConnection) -> Result<Self> {
        Self::begin(conn, Some(bench))
    }

    fn begin(conn: &mut PgConnection, bench: Option<&'a Bench>) -> Result<Self> {
        let counters = settled(conn, bench)?;
        // If Linux does not allow a reset, the peak is that of the whole process.
        drop(std::fs::write("/proc/self/clear_refs", "5"));
        let cpu = ProcessTime::now().as_duration();
        Ok(Self { began: Instant::now(), counters, cpu, sent: statements_sent(), bench })
    }

    /// Returns the time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Returns the cost of these jobs since the start.
    ///
    /// # Errors
    ///
    /// Database errors.
    pub fn stop(self, conn: &mut PgConnection, jobs: usize) -> Result<Cost> {
        let time = self.began.elapsed();
        self.stop_after(conn, jobs, time)
    }

    /// Returns the cost of these jobs since the start, of which `time` was spent on them.
    ///
    /// # Errors
    ///
    /// Database errors.
    pub fn stop_after(self, conn: &mut PgConnection, jobs: usize, time: Duration) -> Result<Cost> {
        let cpu = ProcessTime::now().as_duration().saturating_sub(self.cpu);
        let sent = statements_sent() - self.sent;
        // The WAL position is read first, before anything else writes to it.
        let (wal, commits) = (wal_position(conn)?, transactions(conn)?);
        let after = settled(conn, self.bench)?;
        let jobs = jobs as f64;
        Ok(Cost {
            rate: jobs / time.as_secs_f64(),
            trips: sent as f64 / jobs,
            commits: (commits - self.counters.commits) as f64 / jobs,
            wal: (wal - self.counters.wal) / jobs,
            dead_rows: (after.dead - self.counters.dead) as f64 / jobs,
            client_cpu: cpu.as_secs_f64() * 1e6 / jobs,
            peak_memory: peak_memory()?,
        })
    }
}

/// Reads the counters after all sessions have reported their statistics.
///
/// A session reports its dead tuples when it ends. Otherwise it reports with its next statement, at least one
/// second after its last report. An idle session reports only after ten seconds, so each one is sent a statement.
fn settled(conn: &mut PgConnection, bench: Option<&Bench>) -> Result<Counters> {
    std::thread::sleep(Duration::from_millis(1_100));
    if let Some(bench) = bench {
        bench.query_each_session()?;
    }
    Counters::read(conn)
}

/// Returns the number of transaction ids assigned. Statistics of commits would arrive one to ten seconds later.
fn transactions(conn: &mut PgConnection) -> Result<i64> {
    let next = diesel::dsl::sql::<BigInt>("SELECT txid_snapshot_xmax(txid_current_snapshot())");
    Ok(next.get_result(conn)?)
}

fn wal_position(conn: &mut PgConnection) -> Result<f64> {
    let position = diesel::dsl::sql::<Double>("SELECT (pg_current_wal_insert_lsn() - '0/0')::float8");
    Ok(position.get_result(conn)?)
}

impl Counters {
    fn read(conn: &mut PgConnection) -> Result<Self> {
        let dead = diesel::dsl::sql::<BigInt>(
            "SELECT coalesce(sum(n_dead_tup), 0)::bigint FROM pg_stat_user_tables",
        );
        Ok(Self { commits: transactions(conn)?, dead: dead.get_result(conn)?, wal: wal_position(conn)? })
    }
}

/// Takes all jobs with a pgbench script that takes `size` jobs per run.
///
/// # Errors
///
/// If pgbench is missing or fails.
pub fn pgbench_drain(bench: &Bench, script: &str, clients: usize, jobs: usize, size: usize) -> Result<Cost> {
    Script::raw(script).cost_of_jobs(bench, clients, jobs, size)
}

/// Returns the peak memory of this process in megabytes, since a [`Meter`] was last started.
///
/// # Errors
///
/// If `/proc` is not available.
pub fn peak_memory() -> Result<f64> {
    memory("VmHWM:")
}

/// Returns the current memory of this process in megabytes.
///
/// # Errors
///
/// If `/proc` is not available.
pub fn memory_now() -> Result<f64> {
    memory("VmRSS:")
}

fn memory(of: &str) -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(of))
        .context("/proc/self/status does not report the memory")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes / 1_024.0)
}
