//! What heartbeats, counters and logs cost a worker.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use pq_diesel::Worker;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{fmt, registry, reload};

use super::working::{Kind, figure};
use super::{Plan, Scenario};
use crate::{Bench, Figure, Target};

/// Drains with and without what makes a worker visible.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "observed",
    about: "drains with heartbeats, stored counters and logs, beside drains without them",
    run,
};

const QUEUE: &str = "observed";

fn run(bench: &Bench, plan: &Plan) -> Result<Vec<Figure>> {
    let (level, logging) = reload::Layer::new(LevelFilter::OFF);
    let log = fmt::layer().with_writer(std::io::sink).with_filter(level);
    registry().with(log).try_init().context("cannot install a subscriber for logs")?;
    let kinds = Kind::BOTH.map(|kind| [(kind, LevelFilter::OFF), (kind, LevelFilter::INFO)]);
    let mut figures = Vec::new();
    for (kind, logged) in kinds.into_iter().flatten() {
        // Heartbeats are sent every two seconds.
        let jobs = plan.jobs(800_000);
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for round in 0..plan.rounds {
            // Each of the two is the first of a pair as often as the other.
            for is_observed in [round % 2 == 0, round % 2 == 1] {
                logging.reload(if is_observed { logged } else { LevelFilter::OFF })?;
                bench.fill_by_sql(QUEUE, jobs)?;
                let worker = Worker::new(&bench.pq).serve(kind.idle(&bench.queue(QUEUE)?));
                let worker = if is_observed { worker } else { worker.heartbeat_every(None) };
                let begun = Instant::now();
                let report = worker.run_jobs(jobs as u64)?;
                ensure!(report.done == jobs as u64, "{report:?}");
                let rate = jobs as f64 / begun.elapsed().as_secs_f64();
                if is_observed { &mut with } else { &mut without }.push(rate);
            }
        }
        let parameters = [
            ("handlers", kind.name().to_owned()),
            ("jobs", jobs.to_string()),
            ("log level", logged.to_string()),
        ];
        figures.push(Figure {
            ours: with,
            beside: Some("without heartbeats, stored counters and logs".to_owned()),
            baseline: without,
            target: Some(Target::RatioAtLeast(0.97)),
            ..figure(SCENARIO.name, "drain with heartbeats and stored counters", "jobs/s", parameters)
        });
    }
    Ok(figures)
}
