//! Jobs with serialization keys.

use anyhow::Result;
use diesel::connection::SimpleConnection;

use super::working::{Kind, figure, parts};
use super::{Plan, Scenario};
use crate::{Bench, Cost, Figure, PAYLOAD};

/// Jobs of few and of many serialization keys.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "keys",
    about: "drains of jobs with 1, 100 and 10,000 serialization keys, beside jobs without keys",
    run,
};

const QUEUE: &str = "keys";

fn run(bench: &Bench, plan: &Plan) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for kind in Kind::BOTH {
        // A batch holds one job per key, so with one key each job is a batch. A leased worker settles each keyed
        // job by itself.
        let all = match kind {
            Kind::Transactional => [(1, 2_000), (100, 20_000), (10_000, 100_000)],
            Kind::Leased => [(1, 1_000), (100, 5_000), (10_000, 20_000)],
        };
        for (keys, jobs) in all {
            for threads in [1, 4] {
                let jobs = plan.jobs(jobs);
                let (mut with, mut without) = (Vec::new(), Vec::new());
                for _ in 0..plan.rounds {
                    for (keyed, costs) in [(true, &mut with), (false, &mut without)] {
                        fill(bench, jobs, keyed.then_some(keys))?;
                        costs.push(kind.drain(bench, QUEUE, threads, jobs)?);
                    }
                }
                let parameters = [
                    ("handlers", kind.name().to_owned()),
                    ("keys", keys.to_string()),
                    ("jobs", jobs.to_string()),
                    ("threads", threads.to_string()),
                ];
                figures.push(Figure {
                    ours: parts(&with, |cost| cost.rate),
                    beside: Some("as many jobs without keys".to_owned()),
                    baseline: parts(&without, |cost| cost.rate),
                    cost: Cost::median(&with),
                    baseline_cost: Cost::median(&without),
                    ..figure(SCENARIO.name, "drain of jobs with serialization keys", "jobs/s", parameters)
                });
            }
        }
    }
    Ok(figures)
}

/// Fills the queue with jobs of `keys` keys in rotation.
fn fill(bench: &Bench, jobs: usize, keys: Option<usize>) -> Result<()> {
    bench.refill(&bench.queue(QUEUE)?, 0)?;
    let key = keys.map_or("NULL".to_owned(), |keys| format!("'key ' || n % {keys}"));
    let mut conn = bench.connect()?;
    conn.batch_execute(&format!(
        "INSERT INTO pq.queue (q_name, data, serial_key) SELECT '{QUEUE}', '{PAYLOAD}', {key} \
        FROM generate_series(1, {jobs}) AS n"
    ))?;
    conn.batch_execute("VACUUM ANALYZE pq.queue")?;
    Ok(conn.batch_execute("CHECKPOINT")?)
}
