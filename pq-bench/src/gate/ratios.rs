//! Rates relative to pgbench, which detect only large regressions, because shared machines are noisy.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pq_diesel::{Pq, Worker};
use serde_json::value::RawValue;

use super::{Group, Measured, QUEUE, fill, median_of};
use crate::baseline::{Script, pgbench, plain_take};
use crate::{Bench, PAYLOAD};

const ROUNDS: usize = 3;
const JOBS: usize = 20_000;
const TIME: Duration = Duration::from_secs(1);

/// Returns the medians of interleaved pairs.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Measured>> {
    let (mut puts, mut drains) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        puts.push(put(bench)?);
        drains.push(drain(bench)?);
    }
    // A debug build of the client is several times slower, and a drain is mostly work of the client.
    let (least_put, least_drain) = if cfg!(debug_assertions) { (0.25, 0.1) } else { (0.5, 0.25) };
    Ok(vec![
        Measured::new(
            Group::Ratios,
            "puts on one connection : pgbench's INSERT",
            median_of(puts)?,
            least_put,
        ),
        Measured::new(
            Group::Ratios,
            "a transactional drain : the bare DELETE of 500",
            median_of(drains)?,
            least_drain,
        ),
    ])
}

fn put(bench: &Bench) -> Result<f64> {
    let [(_, sql), ..] = bench.pq.store().hot_statements();
    let sql = sql.replace("$1", &format!("'{QUEUE}'")).replace("$2", &format!("'{PAYLOAD}'"));
    drop(fill(bench, 0)?);
    let baseline = pgbench(bench.url(), &sql, 1, TIME)?;
    let mut conn = fill(bench, 0)?;
    let queue = bench.queue(QUEUE)?;
    let payload = RawValue::from_string(PAYLOAD.to_owned())?;
    queue.on(&mut conn).put(&payload)?;
    let (begun, mut puts) = (Instant::now(), 0_u32);
    while begun.elapsed() < TIME {
        queue.on(&mut conn).put(&payload)?;
        puts += 1;
    }
    Ok(f64::from(puts) / begun.elapsed().as_secs_f64() / baseline)
}

fn drain(bench: &Bench) -> Result<f64> {
    drop(fill(bench, JOBS)?);
    let runs = JOBS / 500;
    let baseline = Script::new(&plain_take(QUEUE, 500)).run_times(bench.url(), 1, runs)?;
    let baseline = Duration::from_secs_f64(runs as f64 / baseline.rate);
    drop(fill(bench, JOBS)?);
    let pq = Pq::builder().url(bench.url()).pool_size(4).connect()?;
    let queue = pq.queue::<Box<RawValue>>(QUEUE)?;
    let worker = Worker::new(&pq).serve(queue.transactional(|_, _| Ok::<_, Infallible>(())));
    let begun = Instant::now();
    let report = worker.run_until_empty()?;
    let ours = begun.elapsed();
    ensure!(report.done == JOBS as u64, "{report:?}");
    Ok(baseline.as_secs_f64() / ours.as_secs_f64())
}
