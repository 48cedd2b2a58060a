//! Pairs of `pq` and its baseline, and helpers of several scenarios.

use anyhow::{Result, ensure};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use pq_diesel::Queue;
use serde_json::value::RawValue;

use super::working;
use crate::baseline::{Script, plain_take};
use crate::{Bench, Cost, Figure, PAYLOAD};

/// The costs of each round.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub(super) ours: Vec<Cost>,
    pub(super) baseline: Vec<Cost>,
}

impl Comparison {
    /// Returns the figure with the rates of the rounds.
    pub(super) fn rates(&self, figure: Figure) -> Figure {
        self.parts(figure, |cost| cost.rate)
    }

    /// Returns the figure with one part of the rounds' costs.
    pub(super) fn parts(&self, figure: Figure, part: fn(&Cost) -> f64) -> Figure {
        Figure {
            ours: self.ours.iter().map(part).collect(),
            baseline: self.baseline.iter().map(part).collect(),
            cost: Cost::median(&self.ours),
            baseline_cost: Cost::median(&self.baseline),
            ..figure
        }
    }
}

/// Returns a figure of jobs per second without values.
pub(super) fn figure(scenario: &str, name: &str, beside: &str) -> Figure {
    Figure { beside: Some(beside.to_owned()), ..working::figure(scenario, name, "jobs/s", []) }
}

/// Returns the INSERT of a put, with its values bound.
pub(super) fn insert(bench: &Bench, queue: &str) -> Script {
    let [(_, sql), ..] = bench.pq.store().hot_statements();
    let sql = sql.replace("$1", ":queue").replace("$2", ":payload::text");
    Script::new(&sql).bind("queue", queue).bind("payload", PAYLOAD)
}

/// Returns the DELETE of a take of one job.
///
/// The queue's name is written into the statement. It occurs several times, and pgbench would make a parameter of
/// each.
pub(super) fn delete(bench: &Bench, queue: &str) -> String {
    let [_, (_, sql), ..] = bench.pq.store().hot_statements();
    sql.replace("$1", &format!("'{queue}'")).replace("$2", "1")
}

/// Fails if the queue is empty, because takes from an empty queue are faster than those to be measured.
pub(super) fn ensure_jobs_left(bench: &Bench, queue: &Queue<Box<RawValue>>, whose: &str) -> Result<()> {
    let left = diesel::sql_query("SELECT 1 FROM pq.queue WHERE q_name = $1 LIMIT 1");
    let left = left.bind::<Text, _>(queue.name().as_str()).execute(&mut bench.connect()?)?;
    ensure!(
        left > 0,
        "the queue ran dry while {whose} took from it: the machine is faster than the plan thought"
    );
    Ok(())
}

/// Number of jobs per take of a baseline drain.
pub(super) const BASELINE_BATCH: usize = 500;

/// Takes all jobs with a plain DELETE of 500 per commit, through pgbench.
pub(super) fn baseline_drain(bench: &Bench, queue: &str, clients: usize, jobs: usize) -> Result<Cost> {
    let script = Script::new(&plain_take(queue, BASELINE_BATCH));
    let cost = script.cost_of_jobs(bench, clients, jobs, BASELINE_BATCH)?;
    let left = diesel::dsl::sql::<BigInt>("SELECT count(*) FROM pq.queue");
    let left: i64 = left.get_result(&mut bench.connect()?)?;
    ensure!(left <= i64::try_from(jobs / 100)?, "pgbench left {left} of {jobs} jobs");
    Ok(cost)
}
