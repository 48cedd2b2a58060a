//! One take per commit.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use pq_diesel::Wait;

use super::comparison::{Comparison, delete, ensure_jobs_left, figure};
use super::{Plan, Scenario};
use crate::baseline::plain_take;
use crate::{Bench, Cost, Figure, Script, Target, pool};

/// One get per commit, by one thread and by many threads through one handle.
pub(super) const SCENARIO: Scenario =
    Scenario { name: "get", about: "one get per commit, by one thread and by sixteen, beside pgbench", run };

const QUEUE: &str = "get";

fn run(bench: &Bench, plan: &Plan) -> Result<Vec<Figure>> {
    let same = Script::new(&delete(bench, QUEUE));
    let plain = Script::new(&plain_take(QUEUE, 1));
    let (mut callers, mut one, mut many) =
        (Comparison::default(), Comparison::default(), Comparison::default());
    for _ in 0..plan.rounds {
        let baseline = pgbench_gets(bench, plan, 1, &same)?;
        callers.baseline.push(baseline);
        callers.ours.push(callers_gets(bench, plan)?);
        one.baseline.push(baseline);
        one.ours.push(gets(bench, plan, 1)?);
        many.baseline.push(pgbench_gets(bench, plan, 16, &plain)?);
        many.ours.push(gets(bench, plan, 16)?);
    }
    let same = "pgbench, the same DELETE, prepared";
    let callers = callers.rates(Figure {
        parameters: [("connections".to_owned(), "1".to_owned())].into(),
        target: Some(Target::RatioAtLeast(0.95)),
        ..figure(SCENARIO.name, "get on the caller's connection", same)
    });
    let one = one.rates(Figure {
        parameters: [("threads".to_owned(), "1".to_owned())].into(),
        ..figure(SCENARIO.name, "get through one handle", same)
    });
    let many = many.rates(Figure {
        parameters: [("threads".to_owned(), "16".to_owned())].into(),
        target: Some(Target::RatioAtLeast(3.0)),
        ..figure(
            SCENARIO.name,
            "get through one handle",
            "pgbench, 16 clients of a plain DELETE with SKIP LOCKED LIMIT 1, prepared",
        )
    });
    Ok(vec![callers, one, many])
}

/// Fills the queue for 60,000 gets per second, and for the second that pgbench runs at least.
fn fill(bench: &Bench, plan: &Plan) -> Result<()> {
    bench.fill_by_sql(QUEUE, plan.jobs(200_000).max(30_000))
}

fn callers_gets(bench: &Bench, plan: &Plan) -> Result<Cost> {
    let queue = bench.queue(QUEUE)?;
    fill(bench, plan)?;
    let conn = Mutex::new(bench.connect()?);
    pool::cost_of(bench, 1, plan.time(2.0), |_| {
        let mut conn = conn.lock().unwrap_or_else(PoisonError::into_inner);
        queue.on(&mut conn).get()?.context("the queue ran empty: the machine is faster than planned for")?;
        Ok(())
    })
}

fn gets(bench: &Bench, plan: &Plan, threads: usize) -> Result<Cost> {
    let queue = bench.queue(QUEUE)?;
    fill(bench, plan)?;
    pool::cost_of(bench, threads, plan.time(2.0), |_| {
        queue.get(Wait::No)?.context("the queue ran empty: the machine is faster than planned for")?;
        Ok(())
    })
}

fn pgbench_gets(bench: &Bench, plan: &Plan, clients: usize, script: &Script) -> Result<Cost> {
    fill(bench, plan)?;
    let cost = script.cost_of(bench, clients, plan.time(2.0))?;
    ensure_jobs_left(bench, &bench.queue(QUEUE)?, "pgbench")?;
    Ok(cost)
}
