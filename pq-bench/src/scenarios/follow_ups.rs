//! Batches of jobs with a follow-up.

use std::convert::Infallible;
use std::time::Instant;

use anyhow::{Result, ensure};
use pq_diesel::Worker;

use super::working::figure;
use super::{Plan, Scenario};
use crate::{Bench, Figure, Target};

/// Jobs for whose end another one waits.
pub(super) const SCENARIO: Scenario =
    Scenario { name: "follow-ups", about: "batches with a follow-up, beside drains without one", run };

const QUEUE: &str = "follow-ups";
const THREADS: usize = 4;

fn run(bench: &Bench, plan: &Plan) -> Result<Vec<Figure>> {
    let jobs = plan.jobs(10_000);
    let mut batches = Figure {
        beside: Some("as many jobs without a batch".to_owned()),
        target: Some(Target::RatioAtLeast(0.5)),
        ..figure(
            SCENARIO.name,
            "put and drain of a batch, until its follow-up runs",
            "jobs/s",
            [("jobs", jobs.to_string()), ("threads", THREADS.to_string())],
        )
    };
    for _ in 0..plan.rounds {
        batches.ours.push(batch(bench, jobs, true)?);
        batches.baseline.push(batch(bench, jobs, false)?);
    }
    Ok(vec![batches])
}

/// Puts and works jobs, and returns their rate.
fn batch(bench: &Bench, jobs: usize, has_follow_up: bool) -> Result<f64> {
    bench.refill(&bench.queue(QUEUE)?, 0)?;
    let queue = bench.pq.queue::<()>(QUEUE)?;
    let (eat, report) = (queue.task::<usize>("eat"), queue.task::<usize>("report"));
    let begun = Instant::now();
    if has_follow_up {
        report.batch(&jobs, |conn, batch| {
            eat.on(conn).call_many_with((0..jobs).map(|job| (job, batch.call_options())))
        })?;
    } else {
        eat.call_many(0..jobs)?;
    }
    let eats = eat.leased(|_, _| Ok::<_, Infallible>(()));
    let reports = report.leased(|_, _| Ok::<_, Infallible>(()));
    let all = jobs as u64 + u64::from(has_follow_up);
    let done = Worker::new(&bench.pq).serve(eats).serve(reports).threads(THREADS).run_jobs(all)?.done;
    ensure!(done == all, "{done} jobs of {all} were done");
    Ok(jobs as f64 / begun.elapsed().as_secs_f64())
}
