//! What a run cost: counted by the server, by the connections, and by the system for this process.

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

/// What a run cost, for each of its jobs.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Cost {
    /// Jobs a second.
    pub rate: f64,
    /// Statements sent a job.
    pub trips: f64,
    /// Transactions that wrote something a job, by the numbers that PostgreSQL gives them: one that only reads has
    /// nothing to commit.
    pub commits: f64,
    /// Bytes of WAL a job.
    pub wal: f64,
    /// Dead rows left a job, in all tables of the database.
    pub dead_rows: f64,
    /// Microseconds of processor time a job, of this process and its threads.
    pub client_cpu: f64,
    /// The most memory that this process has had at once, in megabytes, since the meter was started.
    pub peak_memory: f64,
}

impl Cost {
    /// The median of each part; `None` where there is nothing.
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

/// The counters at the beginning of a run.
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

/// Statements that connections of this process have sent.
static SENT: AtomicU64 = AtomicU64::new(0);

/// Counts statements from now on. Before the first connection, for each one takes its counter when it is made;
/// the handle's own connections count for it as well.
///
/// # Errors
///
/// Where diesel has no instrumentation.
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

/// How many statements this process has sent, since [`count_statements`].
#[must_use]
pub fn statements_sent() -> u64 {
    SENT.load(Ordering::Relaxed)
}

impl<'a> Meter<'a> {
    /// Reads the counters; the clock runs from the return. Dead rows are those of sessions that end before
    /// the meter is stopped.
    ///
    /// # Errors
    ///
    /// The database's.
    pub fn start(conn: &mut PgConnection) -> Result<Self> {
        Self::begin(conn, None)
    }

    /// As [`Meter::start`], for what is done through the handle of the bench, whose sessions live on. Nobody may use
    /// the handle while the meter is started and stopped.
    ///
    /// # Errors
    ///
    /// The database's.
    pub fn of(bench: &'a Bench, conn: &mut PgConnection) -> Result<Self> {
        Self::begin(conn, Some(bench))
    }

    fn begin(conn: &mut PgConnection, bench: Option<&'a Bench>) -> Result<Self> {
        let counters = settled(conn, bench)?;
        // Where Linux does not let us forget the peak of before, what is told is that of the process.
        drop(std::fs::write("/proc/self/clear_refs", "5"));
        let cpu = ProcessTime::now().as_duration();
        Ok(Self { began: Instant::now(), counters, cpu, sent: statements_sent(), bench })
    }

    /// How long the clock has run.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// What so many jobs have cost since.
    ///
    /// # Errors
    ///
    /// The database's.
    pub fn stop(self, conn: &mut PgConnection, jobs: usize) -> Result<Cost> {
        let time = self.began.elapsed();
        self.stop_after(conn, jobs, time)
    }

    /// What so many jobs have cost since, of which this long was spent on them.
    ///
    /// # Errors
    ///
    /// The database's.
    pub fn stop_after(self, conn: &mut PgConnection, jobs: usize, time: Duration) -> Result<Cost> {
        let cpu = ProcessTime::now().as_duration().saturating_sub(self.cpu);
        let sent = statements_sent() - self.sent;
        // The WAL at once, before anything else writes to it.
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

/// The counters with all that was done before.
///
/// A session reports the rows that it has left dead when it ends, and else with its next statement once a second has
/// gone by since its last report. Without a statement it would sit on it for ten seconds.
fn settled(conn: &mut PgConnection, bench: Option<&Bench>) -> Result<Counters> {
    std::thread::sleep(Duration::from_millis(1_100));
    if let Some(bench) = bench {
        bench.query_each_session()?;
    }
    Counters::read(conn)
}

/// How many transactions have been given a number. (The statistics would know of those that only read, but a second
/// or ten too late.)
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

/// Takes all jobs by a script of pgbench that takes `size` of them each time it is run, with so many clients.
///
/// # Errors
///
/// Where there is no pgbench, or it fails.
pub fn pgbench_drain(bench: &Bench, script: &str, clients: usize, jobs: usize, size: usize) -> Result<Cost> {
    Script::raw(script).cost_of_jobs(bench, clients, jobs, size)
}

/// The most memory that this process has had at once, in megabytes, as Linux counts it; since a [`Meter`] was last
/// started, if one was.
///
/// # Errors
///
/// Where there is no `/proc`.
pub fn peak_memory() -> Result<f64> {
    memory("VmHWM:")
}

/// The memory that this process has now, in megabytes, as Linux counts it.
///
/// # Errors
///
/// Where there is no `/proc`.
pub fn memory_now() -> Result<f64> {
    memory("VmRSS:")
}

fn memory(of: &str) -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status").context("no /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(of)).context("no such line in it")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes / 1_024.0)
}
