//! The latency of a call that waits for its answer.

use std::time::Instant;

use anyhow::{Result, ensure};
use pq_diesel::{JobResult, Pq, StopMode, Wait, Worker};

use super::wake::{PAUSE, TIMEOUT, pickups};
use super::working::{Kind, figure};
use super::{Plan, Scenario};
use crate::{Bench, Figure, Target, percentile};

/// Time from the start of a call to its answer.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "answer",
    about: "latency of a call that waits for its answer from an idle worker, beside the pickup of a put",
    run,
};

const QUEUE: &str = "answer";

fn run(bench: &Bench, plan: &Plan) -> Result<Vec<Figure>> {
    let times = ((1_000.0 * plan.scale) as usize).max(50);
    let another = Pq::connect(bench.url())?;
    let mut figures = Vec::new();
    for kind in Kind::BOTH {
        let (mut answered, mut picked_up) = (Vec::new(), Vec::new());
        for _ in 0..plan.rounds {
            answered.push(answers(&bench.pq, &another, kind, times)?);
            picked_up.push(pickups(&bench.pq, &another, kind, times)?);
        }
        let all = answered.concat();
        let of = |rounds: &[Vec<f64>]| rounds.iter().map(|times| percentile(times, 50.0)).collect();
        figures.push(Figure {
            ours: of(&answered),
            beside: Some("the pickup of a job, from the put to the handler's start".to_owned()),
            baseline: of(&picked_up),
            target: Some(Target::RatioAtMost(2.5)),
            percentiles: [50.0, 90.0, 99.0].map(|percent| (percent, percentile(&all, percent))).to_vec(),
            ..figure(
                SCENARIO.name,
                "call_and_wait of a no-op, p50",
                "ms",
                [("handlers", kind.name().to_owned())],
            )
        });
    }
    Ok(figures)
}

/// Returns the milliseconds of each call, one at a time, to a worker of one thread that is otherwise idle.
fn answers(pq: &Pq, caller: &Pq, kind: Kind, times: usize) -> Result<Vec<f64>> {
    let (task, calls) =
        (pq.queue::<()>(QUEUE)?.task::<()>("nothing"), caller.queue::<()>(QUEUE)?.task::<()>("nothing"));
    let handler = match kind {
        Kind::Leased => task.leased(|_, _| Ok::<_, String>(())),
        Kind::Transactional => task.transactional(|_, _| Ok::<_, String>(())),
    };
    let worker = Worker::new(pq).serve(handler);
    let control = worker.control();
    std::thread::scope(|scope| {
        let working = scope.spawn(move || worker.run());
        let latencies = (0..times).map(|_| {
            std::thread::sleep(PAUSE);
            let begun = Instant::now();
            let answer = calls.call_and_wait::<()>(&(), Wait::For(TIMEOUT))?;
            ensure!(answer.result == JobResult::Done(()), "{answer:?}");
            Ok(begun.elapsed().as_secs_f64() * 1_000.0)
        });
        let latencies = latencies.collect();
        control.stop(StopMode::Drain);
        working.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
        latencies
    })
}
