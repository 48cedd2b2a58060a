//! A put and a get in a loop.

use anyhow::{Result, ensure};
use pq_diesel::Wait;
use serde_json::value::RawValue;

use super::comparison::{Comparison, delete, figure, insert};
use super::{Plan, Scenario};
use crate::{Bench, Cost, Figure, PAYLOAD, Target, pool};

/// Pairs by 1 to 16 threads.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "pairs",
    about: "a put and a get in a loop, by 1 to 16 threads through one handle, beside pgbench",
    run,
};

const QUEUE: &str = "pairs";
const THREADS: [usize; 5] = [1, 2, 4, 8, 16];
/// Jobs that stay in the queue, so that no get finds it empty because other threads are faster.
const BACKLOG: usize = 1_000;

fn run(bench: &Bench, plan: &Plan) -> Result<Vec<Figure>> {
    let script = insert(bench, QUEUE).then(&delete(bench, QUEUE));
    let mut by_threads: [Comparison; THREADS.len()] = Default::default();
    for _ in 0..plan.rounds {
        for (threads, comparison) in THREADS.into_iter().zip(&mut by_threads) {
            bench.fill_by_sql(QUEUE, BACKLOG)?;
            comparison.baseline.push(script.cost_of(bench, threads, plan.time(2.0))?);
            comparison.ours.push(pairs(bench, plan, threads)?);
        }
    }
    let steps = steps(&by_threads);
    let mut figures: Vec<Figure> = THREADS
        .into_iter()
        .zip(by_threads)
        .map(|(threads, comparison)| {
            comparison.rates(Figure {
                parameters: [("threads".to_owned(), threads.to_string())].into(),
                unit: "pairs/s".to_owned(),
                ..figure(
                    SCENARIO.name,
                    "put and get through one handle",
                    "pgbench, the same INSERT and DELETE, prepared",
                )
            })
        })
        .collect();
    figures.extend(steps);
    Ok(figures)
}

fn pairs(bench: &Bench, plan: &Plan, threads: usize) -> Result<Cost> {
    let queue = bench.queue(QUEUE)?;
    let payload = RawValue::from_string(PAYLOAD.to_owned())?;
    bench.fill_by_sql(QUEUE, BACKLOG)?;
    pool::cost_of(bench, threads, plan.time(2.0), |_| {
        queue.put(&payload)?;
        ensure!(queue.get(Wait::No)?.is_some(), "the queue is empty despite its backlog");
        Ok(())
    })
}

/// Returns a figure for each step from one number of threads to the next.
fn steps(by_threads: &[Comparison]) -> Vec<Figure> {
    let rates = |comparison: &Comparison| comparison.ours.iter().map(|cost| cost.rate).collect();
    let steps = by_threads.windows(2).zip(THREADS.windows(2));
    steps
        .map(|(comparison, threads)| Figure {
            parameters: [("step".to_owned(), format!("{} to {} threads", threads[0], threads[1]))].into(),
            unit: "pairs/s".to_owned(),
            target: Some(Target::RatioAtLeast(0.97)),
            ours: rates(&comparison[1]),
            baseline: rates(&comparison[0]),
            ..figure(
                SCENARIO.name,
                "put and get, as threads are added",
                "the same with the threads before the step",
            )
        })
        .collect()
}
