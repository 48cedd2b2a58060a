//! Durable steps of leased jobs, beside bare transactions with the same writes.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Result, ensure};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer};
use pq_diesel::{Context, Handler, Queue, Worker};
use serde_json::value::RawValue;

use super::working::figure;
use super::{Plan, Scenario};
use crate::{Bench, Figure, Target};

/// Jobs of five steps.
pub(super) const SCENARIO: Scenario =
    Scenario { name: "steps", about: "durable steps of leased jobs, beside bare transactions", run };

const QUEUE: &str = "steps";
/// The steps of a job.
pub(crate) const STEPS: i32 = 5;

fn run(bench: &Bench, plan: &Plan) -> Result<Vec<Figure>> {
    let jobs = plan.jobs(4_000);
    create_bookings(&mut bench.connect()?)?;
    let mut figures = Vec::new();
    for threads in [1, 4] {
        let mut steps = Figure {
            beside: Some("transactions with the same writes, on as many connections".to_owned()),
            target: Some(Target::RatioAtLeast(0.5)),
            ..figure(
                SCENARIO.name,
                "leased jobs of five steps, each with an insert",
                "steps/s",
                [("jobs", jobs.to_string()), ("threads", threads.to_string())],
            )
        };
        for _ in 0..plan.rounds {
            steps.ours.push(of_jobs(bench, jobs, threads)?);
            steps.baseline.push(bare(bench, jobs, threads)?);
        }
        figures.push(steps);
    }
    Ok(figures)
}

/// Creates an empty table for what the steps write.
pub(crate) fn create_bookings(conn: &mut PgConnection) -> Result<()> {
    conn.batch_execute("DROP TABLE IF EXISTS bookings; CREATE TABLE bookings (job int8, step int4)")?;
    Ok(())
}

fn book(conn: &mut PgConnection, job: i64, step: i32) -> QueryResult<()> {
    let insert = diesel::sql_query("INSERT INTO bookings (job, step) VALUES ($1, $2)");
    insert.bind::<BigInt, _>(job).bind::<Integer, _>(step).execute(conn).map(drop)
}

/// Returns a handler that books five times, each in a step, on connections of its own.
pub(crate) fn handler(queue: &Queue<Box<RawValue>>, bench: &Bench, threads: usize) -> Result<Handler> {
    let conns = (0..threads).map(|_| bench.connect()).collect::<Result<Vec<_>>>()?;
    let conns = Mutex::new(conns);
    Ok(queue.leased(move |context: &Context, _| {
        let free = conns.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut conn = free.ok_or("a thread has no connection")?;
        for step in 0..STEPS {
            let booked = context.step_with(&mut conn, "book", |conn| {
                Ok::<_, pq_diesel::Error>(book(conn, context.job().id.0, step)?)
            });
            booked.map_err(|error| error.to_string())?;
        }
        conns.lock().unwrap_or_else(PoisonError::into_inner).push(conn);
        Ok::<_, String>(())
    }))
}

/// Returns the steps of each second of jobs that were put before.
fn of_jobs(bench: &Bench, jobs: usize, threads: usize) -> Result<f64> {
    let queue = bench.queue(QUEUE)?;
    bench.refill(&queue, jobs)?;
    let worker = Worker::new(&bench.pq).serve(handler(&queue, bench, threads)?).threads(threads);
    let begun = Instant::now();
    let done = worker.run_jobs(jobs as u64)?.done;
    ensure!(done == jobs as u64, "{done} jobs of {jobs} were done");
    Ok(per_second(jobs, begun))
}

/// Returns the transactions of each second.
fn bare(bench: &Bench, jobs: usize, threads: usize) -> Result<f64> {
    let conns = (0..threads).map(|_| bench.connect()).collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        for (thread, mut conn) in conns.into_iter().enumerate() {
            running.push(scope.spawn(move || {
                for job in (thread..jobs).step_by(threads) {
                    for step in 0..STEPS {
                        conn.transaction(|conn| book(conn, job as i64, step))?;
                    }
                }
                QueryResult::Ok(())
            }));
        }
        running
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
    })?;
    Ok(per_second(jobs, begun))
}

fn per_second(jobs: usize, begun: Instant) -> f64 {
    (jobs * STEPS as usize) as f64 / begun.elapsed().as_secs_f64()
}
