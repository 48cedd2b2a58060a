//! Calls that wait for their answer, and batches.

use std::convert::Infallible;
use std::time::Instant;

use anyhow::{Result, ensure};
use pq_diesel::{Outcome, StopMode, Wait, Worker};

use super::wake;
use super::working::{Kind, figure};
use super::{Plan, Scenario};
use crate::stats::percentile;
use crate::{Bench, Figure, Target};

/// Jobs for whose end something waits.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "follow-ups",
    about: "calls that wait for their answer, beside pickups; batches with a follow-up, beside drains without one",
    run,
};

const QUEUE: &str = "follow-ups";
const THREADS: usize = 4;

fn run(bench: &Bench, plan: &Plan) -> Result<Vec<Figure>> {
    let jobs = plan.jobs(10_000);
    let times = ((500.0 * plan.scale) as usize).max(50);
    let mut answers = Figure {
        beside: Some("from a put to the start of its handler".to_owned()),
        target: Some(Target::RatioAtMost(2.5)),
        ..figure(SCENARIO.name, "call_and_wait of a handler that does nothing, p50", "ms", [])
    };
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
        bench.refill(&bench.queue(QUEUE)?, 0)?;
        answers.ours.push(percentile(&waits(bench, times)?, 50.0));
        answers.baseline.push(percentile(&wake::pickups(&bench.pq, &bench.pq, Kind::Leased, times)?, 50.0));
        batches.ours.push(batch(bench, jobs, true)?);
        batches.baseline.push(batch(bench, jobs, false)?);
    }
    Ok(vec![answers, batches])
}

/// Returns the milliseconds from each call to its answer, by a worker of one thread that is otherwise idle.
fn waits(bench: &Bench, times: usize) -> Result<Vec<f64>> {
    let double = bench.pq.queue::<()>(QUEUE)?.task::<i64>("double");
    let worker = Worker::new(&bench.pq).serve(double.leased(|_, job| Outcome::result(&(job.data * 2))));
    let control = worker.control();
    std::thread::scope(|scope| {
        let working = scope.spawn(move || worker.run());
        let latencies: Result<Vec<f64>> = (0..times)
            .map(|_| {
                std::thread::sleep(wake::PAUSE);
                let called = Instant::now();
                let answer = double.call_and_wait::<i64>(&21, Wait::For(wake::TIMEOUT))?;
                let took = called.elapsed();
                ensure!(answer.result.done() == Some(42), "no answer");
                Ok(took.as_secs_f64() * 1_000.0)
            })
            .collect();
        control.stop(StopMode::Drain);
        working.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
        latencies
    })
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
