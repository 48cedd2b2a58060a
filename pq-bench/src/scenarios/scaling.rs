//! Throughput by number of threads, beside pgbench with as many clients.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use pq_diesel::Wait;
use serde_json::value::RawValue;

use super::comparison::{
    BASELINE_BATCH, Comparison, baseline_drain, delete, ensure_jobs_left, figure, insert,
};
use super::working::Kind;
use super::{Plan, Scenario};
use crate::{Bench, Figure, PAYLOAD, Script, pool};

/// Puts, gets and drains by 1 to 16 threads.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "scaling",
    about: "puts, gets and drains by 1 to 16 threads, beside pgbench with as many clients",
    run,
};

const QUEUE: &str = "scaling";
const THREADS: [usize; 5] = [1, 2, 4, 8, 16];

/// The comparisons of one number of threads.
#[derive(Default)]
struct Step {
    puts: Comparison,
    gets: Comparison,
    transactional: Comparison,
    leased: Comparison,
}

fn run(bench: &Bench, plan: &Plan) -> Result<Vec<Figure>> {
    let mut steps: [Step; THREADS.len()] = Default::default();
    for _ in 0..plan.rounds {
        for (threads, step) in THREADS.into_iter().zip(&mut steps) {
            puts(bench, plan, threads, &mut step.puts)?;
            gets(bench, plan, threads, &mut step.gets)?;
            drains(bench, plan, threads, step)?;
        }
    }
    let (insert, delete) = ("pgbench, the same INSERT, prepared", "pgbench, the same DELETE, prepared");
    let batch = "pgbench, a plain DELETE of 500 a commit, prepared";
    let of = |name: &str, beside: &str, comparison: fn(&Step) -> &Comparison| -> Vec<Figure> {
        let with = |threads: usize| BTreeMap::from([("threads".to_owned(), threads.to_string())]);
        let figure = |threads| Figure { parameters: with(threads), ..figure(SCENARIO.name, name, beside) };
        THREADS
            .into_iter()
            .zip(&steps)
            .map(|(threads, step)| comparison(step).rates(figure(threads)))
            .collect()
    };
    Ok([
        of("put through one handle", insert, |step| &step.puts),
        of("get through one handle", delete, |step| &step.gets),
        of("transactional drain", batch, |step| &step.transactional),
        of("leased drain", batch, |step| &step.leased),
    ]
    .concat())
}

fn puts(bench: &Bench, plan: &Plan, threads: usize, comparison: &mut Comparison) -> Result<()> {
    let queue = bench.queue(QUEUE)?;
    let payload = RawValue::from_string(PAYLOAD.to_owned())?;
    bench.refill(&queue, 0)?;
    comparison.baseline.push(insert(bench, QUEUE).cost_of(bench, threads, plan.time(1.0))?);
    bench.refill(&queue, 0)?;
    comparison.ours.push(pool::cost_of(bench, threads, plan.time(1.0), |_| {
        queue.put(&payload)?;
        Ok(())
    })?);
    Ok(())
}

fn gets(bench: &Bench, plan: &Plan, threads: usize, comparison: &mut Comparison) -> Result<()> {
    let queue = bench.queue(QUEUE)?;
    // Enough for 60,000 gets per second, and for the second that pgbench runs at least.
    let jobs = plan.jobs(100_000).max(30_000);
    bench.fill_by_sql(QUEUE, jobs)?;
    let baseline = Script::new(&delete(bench, QUEUE)).cost_of(bench, threads, plan.time(1.0))?;
    ensure_jobs_left(bench, &queue, "pgbench")?;
    comparison.baseline.push(baseline);
    bench.fill_by_sql(QUEUE, jobs)?;
    comparison.ours.push(pool::cost_of(bench, threads, plan.time(1.0), |_| {
        queue.get(Wait::No)?.context("the queue ran empty: the machine is faster than planned for")?;
        Ok(())
    })?);
    Ok(())
}

fn drains(bench: &Bench, plan: &Plan, threads: usize, step: &mut Step) -> Result<()> {
    let jobs = plan.batches(480_000, BASELINE_BATCH);
    bench.fill_by_sql(QUEUE, jobs)?;
    let baseline = baseline_drain(bench, QUEUE, threads, jobs)?;
    for (kind, comparison) in
        [(Kind::Transactional, &mut step.transactional), (Kind::Leased, &mut step.leased)]
    {
        bench.fill_by_sql(QUEUE, jobs)?;
        comparison.ours.push(kind.drain(bench, QUEUE, threads, jobs)?);
        comparison.baseline.push(baseline);
    }
    Ok(())
}
