//! Workers that drain a queue.

mod baseline;

use anyhow::Result;
use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use pq_diesel::{Pq, Queue, Worker};
use serde_json::value::RawValue;

use super::working::{self, Kind, parts};
use super::{Plan, Scenario};
use crate::baseline::plain_take;
use crate::{Bench, Cost, Figure, Meter, PAYLOAD, Target, pgbench_drain};

/// Workers with handlers that do nothing, and with transactional handlers that send one statement.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "drain",
    about: "workers that drain a queue, by threads and by batch size, beside plain SQL in pgbench; the handlers send no \
        statement, or one each, alone in their transactions or sharing them",
    run,
};

const QUEUE: &str = "drain";
const BATCH: usize = 500;
/// Number of handlers with statements that share a transaction.
const SHARED_BY: usize = 64;

/// A baseline of a drain.
struct Baseline {
    label: String,
    script: String,
    target: Option<Target>,
}

fn run(bench: &Bench, plan: &Plan) -> Result<Vec<Figure>> {
    bench.connect()?.batch_execute(baseline::LEASES)?;
    let mut figures = Vec::new();
    for kind in Kind::BOTH {
        for threads in [1, 2, 4, 16] {
            figures.extend(by_threads(bench, plan, kind, threads)?);
        }
        for size in [1, 10, 100, 500, 2_000] {
            figures.push(by_size(bench, plan, kind, size)?);
        }
        figures.push(kept(bench, plan, kind)?);
    }
    for threads in [1, 4] {
        for shared_by in [1, SHARED_BY] {
            figures.push(with_statements(bench, plan, shared_by, threads)?);
        }
    }
    bench.connect()?.batch_execute("DROP TABLE bench_leases")?;
    Ok(figures)
}

fn figure(name: &str, unit: &str, kind: Kind, threads: usize) -> Figure {
    let parameters = [("handlers", kind.name().to_owned()), ("threads", threads.to_string())];
    working::figure(SCENARIO.name, name, unit, parameters)
}

fn baselines_for(kind: Kind, threads: usize) -> Vec<Baseline> {
    match kind {
        Kind::Transactional => vec![Baseline {
            label: format!("pgbench, DELETE of {BATCH} a commit"),
            script: plain_take(QUEUE, BATCH) + ";",
            target: (threads <= 2).then_some(Target::RatioAtLeast(0.9)),
        }],
        Kind::Leased => vec![
            Baseline {
                label: format!("pgbench, {BATCH} at a time into one row, which is then deleted"),
                script: baseline::batch_lease(QUEUE, BATCH),
                target: Some(Target::RatioAtLeast(0.9)),
            },
            Baseline {
                label: format!("pgbench, UPDATE of {BATCH}, then DELETE of them"),
                script: baseline::update_then_delete(QUEUE, BATCH),
                target: Some(Target::RatioAtLeast(1.5)),
            },
        ],
    }
}

/// Drains the queue; by batches of exactly `size` if it is given.
fn drain(bench: &Bench, kind: Kind, threads: usize, jobs: usize, size: Option<usize>) -> Result<Cost> {
    working::drain(bench, Pq::builder(), threads, jobs, |pq| {
        let worker = Worker::new(pq).serve(kind.idle(&pq.queue(QUEUE)?));
        Ok(match size {
            Some(size) => worker.batch(size, size),
            None => worker,
        })
    })
}

/// Measures drains by a number of threads.
///
/// There is no checkpoint after the queue is filled. Otherwise the WAL would consist mostly of full-page images.
fn by_threads(bench: &Bench, plan: &Plan, kind: Kind, threads: usize) -> Result<Vec<Figure>> {
    let queue = bench.queue(QUEUE)?;
    let jobs = plan.batches(480_000, BATCH);
    let baselines_for = baselines_for(kind, threads);
    let (mut ours, mut baseline) = (Vec::new(), vec![Vec::new(); baselines_for.len()]);
    let (mut put, mut baseline_put) = (Vec::new(), Vec::new());
    // What a job writes does not depend on threads, so puts are counted once.
    let with_puts = threads == 1;
    for _ in 0..plan.rounds {
        if with_puts {
            put.push(fill(bench, &queue, jobs, |conn| put_many(&queue, conn))?);
        } else {
            bench.refill_in_use(&queue, jobs)?;
        }
        ours.push(drain(bench, kind, threads, jobs, None)?);
        for (position, (beside, costs)) in baselines_for.iter().zip(&mut baseline).enumerate() {
            if with_puts && position == 0 {
                baseline_put.push(fill(bench, &queue, jobs, insert)?);
            } else {
                bench.refill_in_use(&queue, jobs)?;
            }
            costs.push(pgbench_drain(bench, &beside.script, threads, jobs, BATCH)?);
        }
    }
    let name = format!("{} drain", kind.name());
    let mut figures: Vec<Figure> = baselines_for
        .iter()
        .zip(&baseline)
        .map(|(beside, costs)| Figure {
            target: beside.target,
            ..with_costs(figure(&name, "jobs/s", kind, threads), &ours, &beside.label, costs)
        })
        .collect();
    figures.push(Figure {
        ours: parts(&ours, |cost| cost.commits),
        beside: Some(baselines_for[0].label.clone()),
        baseline: parts(&baseline[0], |cost| cost.commits),
        target: Some(Target::AtMost(0.01)),
        ..figure("commits to drain", "commits/job", kind, threads)
    });
    if with_puts {
        let sum = |put: &[Cost], drained: &[Cost], part: fn(&Cost) -> f64| -> Vec<f64> {
            put.iter().zip(drained).map(|(put, drained)| part(put) + part(drained)).collect()
        };
        let beside = format!("INSERT of {BATCH} a commit; {}", baselines_for[0].label);
        for (name, unit, part, target) in [
            ("WAL, put and drain", "bytes/job", (|cost| cost.wal) as fn(&Cost) -> f64, Some(max_wal(kind))),
            ("dead rows, put and drain", "rows/job", |cost| cost.dead_rows, None),
        ] {
            figures.push(Figure {
                ours: sum(&put, &ours, part),
                beside: Some(beside.clone()),
                baseline: sum(&baseline_put, &baseline[0], part),
                target,
                ..figure(name, unit, kind, threads)
            });
        }
    }
    Ok(figures)
}

fn max_wal(kind: Kind) -> Target {
    Target::AtMost(match kind {
        Kind::Transactional => 420.0,
        Kind::Leased => 460.0,
    })
}

/// Puts jobs in batches into an empty table, and returns the cost.
fn fill(
    bench: &Bench,
    queue: &Queue<Box<RawValue>>,
    jobs: usize,
    mut batch: impl FnMut(&mut PgConnection) -> Result<()>,
) -> Result<Cost> {
    bench.refill(queue, 0)?;
    let (mut conn, mut writer) = (bench.connect()?, bench.connect()?);
    let meter = Meter::start(&mut conn)?;
    for _ in 0..jobs / BATCH {
        batch(&mut writer)?;
    }
    drop(writer);
    let cost = meter.stop(&mut conn, jobs)?;
    conn.batch_execute("VACUUM ANALYZE pq.queue")?;
    Ok(cost)
}

fn put_many(queue: &Queue<Box<RawValue>>, conn: &mut PgConnection) -> Result<()> {
    let payload = RawValue::from_string(PAYLOAD.to_owned())?;
    queue.on(conn).put_many(std::iter::repeat_n(&payload, BATCH))?;
    Ok(())
}

fn insert(conn: &mut PgConnection) -> Result<()> {
    Ok(conn.batch_execute(&format!(
        "INSERT INTO pq.queue (q_name, data) SELECT '{QUEUE}', '{PAYLOAD}' FROM generate_series(1, {BATCH})"
    ))?)
}

fn by_size(bench: &Bench, plan: &Plan, kind: Kind, size: usize) -> Result<Figure> {
    let queue = bench.queue(QUEUE)?;
    let jobs = (plan.jobs((size * 4_000).min(96_000)) / size).max(1) * size;
    let (label, script) = match kind {
        Kind::Transactional => ("pgbench, DELETE of as many a commit", plain_take(QUEUE, size) + ";"),
        Kind::Leased => (
            "pgbench, as many at a time into one row, which is then deleted",
            baseline::batch_lease(QUEUE, size),
        ),
    };
    let (mut ours, mut baseline) = (Vec::new(), Vec::new());
    // There are many of these figures and they have no target.
    for _ in 0..plan.rounds.min(2) {
        bench.refill_in_use(&queue, jobs)?;
        ours.push(drain(bench, kind, 1, jobs, Some(size))?);
        bench.refill_in_use(&queue, jobs)?;
        baseline.push(pgbench_drain(bench, &script, 1, jobs, size)?);
    }
    let mut figure = figure(&format!("{} drain by batch", kind.name()), "jobs/s", kind, 1);
    figure.parameters.insert("batch".to_owned(), size.to_string());
    Ok(with_costs(figure, &ours, label, &baseline))
}

/// Measures a drain that keeps each job in the archive with its outcome.
fn kept(bench: &Bench, plan: &Plan, kind: Kind) -> Result<Figure> {
    let queue = bench.queue(QUEUE)?;
    let jobs = plan.batches(96_000, BATCH);
    let (mut ours, mut baseline) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        bench.refill_in_use(&queue, jobs)?;
        ours.push(working::drain(bench, Pq::builder(), 1, jobs, |pq| {
            Ok(Worker::new(pq).serve(kind.idle(&pq.queue(QUEUE)?).keep_history(true)))
        })?);
        bench.refill_in_use(&queue, jobs)?;
        baseline.push(pgbench_drain(bench, &baseline::archive(QUEUE, BATCH), 1, jobs, BATCH)?);
        bench.connect()?.batch_execute("TRUNCATE pq.queue_archive")?;
    }
    let label = format!("pgbench, DELETE of {BATCH} that are INSERTed into the archive, a commit");
    let figure = figure(&format!("{} drain, history kept", kind.name()), "jobs/s", kind, 1);
    Ok(with_costs(figure, &ours, &label, &baseline))
}

/// Measures a drain whose handlers send one statement each, `shared_by` of them in a transaction.
fn with_statements(bench: &Bench, plan: &Plan, shared_by: usize, threads: usize) -> Result<Figure> {
    let queue = bench.queue(QUEUE)?;
    let jobs = plan.batches(12_000 + 1_000 * shared_by, shared_by * threads);
    let statements = "SELECT 1; ".repeat(shared_by);
    let script = format!("BEGIN; {}; {statements}COMMIT;", plain_take(QUEUE, shared_by));
    let (mut ours, mut baseline) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        bench.refill_in_use(&queue, jobs)?;
        ours.push(working::drain(bench, Pq::builder(), threads, jobs, |pq| {
            let queue = pq.queue::<Box<RawValue>>(QUEUE)?;
            let handler = queue.transactional(|conn, _| conn.batch_execute("SELECT 1"));
            Ok(Worker::new(pq).serve(handler.share_transaction(shared_by)))
        })?);
        bench.refill_in_use(&queue, jobs)?;
        baseline.push(pgbench_drain(bench, &script, threads, jobs, shared_by)?);
    }
    let handlers = match shared_by {
        1 => "transactional, alone in their transactions".to_owned(),
        shared_by => format!("transactional, {shared_by} to a transaction"),
    };
    let parameters = [("handlers", handlers), ("threads", threads.to_string())];
    let figure =
        working::figure(SCENARIO.name, "transactional drain, one statement a job", "jobs/s", parameters);
    Ok(with_costs(figure, &ours, "pgbench, DELETE of as many and a statement for each, a commit", &baseline))
}

fn with_costs(figure: Figure, ours: &[Cost], beside: &str, baseline: &[Cost]) -> Figure {
    Figure {
        ours: parts(ours, |cost| cost.rate),
        beside: Some(beside.to_owned()),
        baseline: parts(baseline, |cost| cost.rate),
        cost: Cost::median(ours),
        baseline_cost: Cost::median(baseline),
        ..figure
    }
}
