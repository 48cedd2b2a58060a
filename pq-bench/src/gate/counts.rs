//! Counts statements, commits and WAL bytes.

use std::convert::Infallible;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Double, Integer, Text};
use pq_diesel::{Handler, Pq, Queue, Wait, Worker};
use serde_json::value::RawValue;

use super::{Group, Measured, QUEUE, fill, median_of};
use crate::scenarios::{create_bookings, stepping};
use crate::{Bench, PAYLOAD, count_statements, statements_sent};

/// An operation whose cost is counted.
struct Operation {
    name: &'static str,
    /// Number of runs in the short and in the long measurement.
    times: (usize, usize),
    /// Number of ready jobs that each run needs.
    ready_jobs: usize,
    /// Number of jobs that the WAL of one run is divided by; `None` if WAL is not checked.
    wal_jobs: Option<usize>,
    run: fn(&Environment<'_>, usize) -> Result<()>,
}

/// Jobs per run of the operations that put or take many.
const PUT_MANY: usize = 1_000;
const GET_MANY: usize = 500;
/// Jobs per batch of the drains.
pub(super) const BATCH: usize = 500;
/// Jobs per batch of the drain whose handlers send statements. A batch that takes longer than 200 ms ends early.
const SHARED_BATCH: usize = 100;

/// Jobs per batch of the drain whose handlers run steps. Outcomes of a batch that takes long are stored by the clock.
const STEPS_BATCH: usize = 4;

const OPERATIONS: [Operation; 12] = [
    Operation { name: "a put", times: (200, 1_200), ready_jobs: 0, wal_jobs: Some(1), run: put },
    Operation {
        name: "a put in the caller's transaction",
        times: (100, 600),
        ready_jobs: 0,
        wal_jobs: None,
        run: put_in_transaction,
    },
    Operation {
        name: "a put_many of 1,000",
        times: (2, 12),
        ready_jobs: 0,
        wal_jobs: Some(PUT_MANY),
        run: put_many,
    },
    Operation { name: "a get", times: (100, 600), ready_jobs: 1, wal_jobs: None, run: get },
    Operation {
        name: "a get_many of 500",
        times: (2, 12),
        ready_jobs: GET_MANY,
        wal_jobs: None,
        run: get_many,
    },
    Operation {
        name: "a transactional drain",
        times: (1_000, 6_000),
        ready_jobs: 1,
        wal_jobs: Some(1),
        run: drain_transactional,
    },
    Operation {
        name: "a leased drain",
        times: (1_000, 6_000),
        ready_jobs: 1,
        wal_jobs: Some(1),
        run: drain_leased,
    },
    Operation {
        name: "a leased drain in batches of 4, five steps each",
        times: (100, 600),
        ready_jobs: 1,
        wal_jobs: None,
        run: drain_steps,
    },
    Operation {
        name: "a leased drain one by one, five steps each",
        times: (100, 600),
        ready_jobs: 1,
        wal_jobs: None,
        run: drain_steps_one_by_one,
    },
    Operation {
        name: "a transactional drain, history kept",
        times: (1_000, 6_000),
        ready_jobs: 1,
        wal_jobs: Some(1),
        run: drain_kept,
    },
    Operation {
        name: "a transactional drain, one statement each",
        times: (500, 2_500),
        ready_jobs: 1,
        wal_jobs: None,
        run: drain_alone,
    },
    Operation {
        name: "a transactional drain, shared, one statement and a time limit each",
        times: (500, 2_500),
        ready_jobs: 1,
        wal_jobs: None,
        run: drain_limited,
    },
];

/// Number of repetitions of each measurement. Other work on the server, or sessions that report their commits
/// late, disturbs one of them but not the median.
const REPEATS: usize = 3;

/// Commits that autovacuum may add to a whole measurement, because it can disturb two of the repetitions.
const STRAY_COMMITS: f64 = 1.0;

/// Statements that a handle sends by the clock in a whole measurement: it looks for large payloads once a second.
const STRAY_STATEMENTS: f64 = 4.0;

/// Counts the cost of each operation. The WAL includes that of other users of the server.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Measured>> {
    count_statements()?;
    let mut reader = Reader::new(bench)?;
    // A checkpoint during a measurement would add full-page images to the WAL.
    bench.connect()?.batch_execute("CHECKPOINT")?;
    create_bookings(&mut bench.connect()?)?;
    let mut measured = Vec::new();
    for operation in &OPERATIONS {
        let mut costs = Vec::new();
        for _ in 0..REPEATS {
            let short = reader.cost_of(bench, operation, operation.times.0)?;
            let long = reader.cost_of(bench, operation, operation.times.1)?;
            costs.push(long.minus(&short));
        }
        let more = (operation.times.1 - operation.times.0) as f64;
        let per_run =
            |part: fn(&Counters) -> f64| Ok::<_, anyhow::Error>(median_of(costs.iter().map(part))? / more);
        let is_drain = operation.name.contains("drain");
        let a_job = if is_drain { ", a job" } else { "" };
        // In per cent, rounded up to a tenth.
        let tolerance =
            |stray: f64, value: f64| ((1_000.0 * stray / (value * more).max(1.0)).floor() + 1.0) / 10.0;
        let mut add = |group, what: &str, value, margin| {
            measured.push(Measured::new(group, format!("{}: {what}", operation.name), value, margin));
        };
        let (statements, commits) = (per_run(|cost| cost.statements)?, per_run(|cost| cost.commits)?);
        let by_the_clock =
            if operation.ready_jobs > 0 { tolerance(STRAY_STATEMENTS, statements) } else { 0.0 };
        add(Group::Counts, &format!("statements{a_job}"), statements, by_the_clock);
        add(Group::Counts, &format!("commits{a_job}"), commits, tolerance(STRAY_COMMITS, commits));
        if let Some(jobs) = operation.wal_jobs {
            add(Group::Wal, "bytes a job", per_run(|cost| cost.wal)? / jobs as f64, 3.0);
        }
    }
    Ok(measured)
}

#[derive(Clone, Copy)]
struct Counters {
    statements: f64,
    commits: f64,
    wal: f64,
}

impl Counters {
    fn minus(&self, other: &Self) -> Self {
        Self {
            statements: self.statements - other.statements,
            commits: self.commits - other.commits,
            wal: self.wal - other.wal,
        }
    }
}

/// Reads the server's counters from another database, so that its own commits are not counted.
struct Reader {
    conn: PgConnection,
    database: String,
    /// Sessions that existed before and stay idle.
    others: Vec<i32>,
    /// Before PostgreSQL 15, sessions report commits to a statistics process, which adds a delay.
    delayed_statistics: bool,
}

impl Reader {
    fn new(bench: &Bench) -> Result<Self> {
        let mut conn = bench.connect_to_server_database()?;
        let version = diesel::dsl::sql::<Integer>("SELECT current_setting('server_version_num')::int4")
            .get_result::<i32>(&mut conn)?;
        let database = bench.database_name().to_owned();
        let mut reader = Self { conn, database, others: Vec::new(), delayed_statistics: version < 150_000 };
        reader.others = reader.sessions()?;
        Ok(reader)
    }

    fn sessions(&mut self) -> Result<Vec<i32>> {
        let sessions = diesel::sql_query(
            "SELECT coalesce(array_agg(pid), '{}') AS pids FROM pg_stat_activity
             WHERE datname = $1 AND backend_type = 'client backend'",
        );
        Ok(sessions.bind::<Text, _>(&self.database).get_result::<Sessions>(&mut self.conn)?.pids)
    }

    /// Waits until the sessions of the operation have ended, because a session reports its commits at the latest
    /// then.
    fn settle(&mut self) -> Result<()> {
        const TIMEOUT: Duration = Duration::from_secs(300);
        let begun = Instant::now();
        while self.sessions()?.iter().any(|pid| !self.others.contains(pid)) {
            ensure!(
                begun.elapsed() < TIMEOUT,
                "cannot count commits: another client is connected to {}",
                self.database
            );
            thread::sleep(Duration::from_millis(2));
        }
        if self.delayed_statistics {
            thread::sleep(Duration::from_millis(1_100));
        }
        Ok(())
    }

    fn commits(&mut self) -> Result<f64> {
        let commits =
            diesel::sql_query("SELECT xact_commit AS commits FROM pg_stat_database WHERE datname = $1");
        Ok(commits.bind::<Text, _>(&self.database).get_result::<Commits>(&mut self.conn)?.commits as f64)
    }

    fn wal(&mut self) -> Result<f64> {
        let position = diesel::dsl::sql::<Double>("SELECT (pg_current_wal_insert_lsn() - '0/0')::float8");
        Ok(position.get_result(&mut self.conn)?)
    }

    fn cost_of(&mut self, bench: &Bench, operation: &Operation, times: usize) -> Result<Counters> {
        drop(fill(bench, times * operation.ready_jobs)?);
        self.settle()?;
        let (commits, wal) = (self.commits()?, self.wal()?);
        let statements = statements_sent();
        let payload = RawValue::from_string(PAYLOAD.to_owned())?;
        (operation.run)(&Environment { bench, payload: &payload }, times)?;
        let statements = statements_sent() - statements;
        let wal = self.wal()? - wal;
        self.settle()?;
        Ok(Counters { statements: statements as f64, commits: self.commits()? - commits, wal })
    }
}

#[derive(QueryableByName)]
struct Sessions {
    #[diesel(sql_type = Array<Integer>)]
    pids: Vec<i32>,
}

#[derive(QueryableByName)]
struct Commits {
    #[diesel(sql_type = BigInt)]
    commits: i64,
}

/// The server that an operation runs on, and the payload that it puts.
struct Environment<'p> {
    bench: &'p Bench,
    payload: &'p RawValue,
}

impl Environment<'_> {
    /// Returns a handle of its own, whose sessions end with it.
    fn queue(&self) -> Result<(Pq, Queue<Box<RawValue>>)> {
        // A listener commits by the clock.
        let pq = Pq::builder().url(self.bench.url()).pool_size(4).listen(false).connect()?;
        let queue = pq.queue(QUEUE)?;
        Ok((pq, queue))
    }

    fn payload(&self) -> Box<RawValue> {
        self.payload.to_owned()
    }
}

fn put(environment: &Environment<'_>, times: usize) -> Result<()> {
    let ((_pq, queue), payload) = (environment.queue()?, environment.payload());
    for _ in 0..times {
        queue.put(&payload)?;
    }
    Ok(())
}

fn put_in_transaction(environment: &Environment<'_>, times: usize) -> Result<()> {
    let ((_pq, queue), payload) = (environment.queue()?, environment.payload());
    environment.bench.connect()?.transaction(|conn| {
        for _ in 0..times {
            queue.on(conn).put(&payload)?;
        }
        Ok(())
    })
}

fn put_many(environment: &Environment<'_>, times: usize) -> Result<()> {
    let ((_pq, queue), payload) = (environment.queue()?, environment.payload());
    for _ in 0..times {
        queue.put_many(std::iter::repeat_n(&payload, PUT_MANY))?;
    }
    Ok(())
}

fn get(environment: &Environment<'_>, times: usize) -> Result<()> {
    let (_pq, queue) = environment.queue()?;
    for _ in 0..times {
        ensure!(queue.get(Wait::No)?.is_some(), "the queue is empty");
    }
    Ok(())
}

fn get_many(environment: &Environment<'_>, times: usize) -> Result<()> {
    let (_pq, queue) = environment.queue()?;
    for _ in 0..times {
        ensure!(queue.get_many(GET_MANY, Wait::No)?.len() == GET_MANY, "the queue holds too few jobs");
    }
    Ok(())
}

fn drain_transactional(environment: &Environment<'_>, jobs: usize) -> Result<()> {
    let (pq, queue) = environment.queue()?;
    drain(&pq, queue.transactional(|_, _| Ok::<_, Infallible>(())), BATCH, jobs)
}

fn drain_leased(environment: &Environment<'_>, jobs: usize) -> Result<()> {
    let (pq, queue) = environment.queue()?;
    drain(&pq, queue.leased(|_, _| Ok::<_, Infallible>(())), BATCH, jobs)
}

fn drain_steps(environment: &Environment<'_>, jobs: usize) -> Result<()> {
    let (pq, queue) = environment.queue()?;
    drain(&pq, stepping(&queue, environment.bench, 1)?, STEPS_BATCH, jobs)
}

fn drain_steps_one_by_one(environment: &Environment<'_>, jobs: usize) -> Result<()> {
    let (pq, queue) = environment.queue()?;
    drain(&pq, stepping(&queue, environment.bench, 1)?, 1, jobs)
}

fn drain_kept(environment: &Environment<'_>, jobs: usize) -> Result<()> {
    let (pq, queue) = environment.queue()?;
    drain(&pq, queue.transactional(|_, _| Ok::<_, Infallible>(())).keep_history(true), BATCH, jobs)
}

/// Each handler is alone in its transaction.
fn drain_alone(environment: &Environment<'_>, jobs: usize) -> Result<()> {
    let (pq, queue) = environment.queue()?;
    drain(&pq, queue.transactional(|conn, _| conn.batch_execute("SELECT 1")), BATCH, jobs)
}

fn drain_limited(environment: &Environment<'_>, jobs: usize) -> Result<()> {
    let (pq, queue) = environment.queue()?;
    let handler = queue.transactional(|conn, _| conn.batch_execute("SELECT 1"));
    let handler = handler.timeout(Duration::from_secs(60)).share_transaction(SHARED_BATCH);
    drain(&pq, handler, SHARED_BATCH, jobs)
}

/// Drains with batches of one size, and without maintenance and heartbeats, which depend on time.
pub(super) fn drain(pq: &Pq, handler: Handler, batch: usize, jobs: usize) -> Result<()> {
    let worker = Worker::new(pq).batch(batch, batch).maintain_every(Duration::MAX).heartbeat_every(None);
    let report = worker.serve(handler).run_jobs(jobs as u64)?;
    ensure!(report.done == jobs as u64, "{} of {jobs} jobs were done", report.done);
    Ok(())
}
