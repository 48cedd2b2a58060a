//! Drains with handlers that do nothing, by threads and by maximum batch size.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use criterion::Criterion;
use pq_bench::Bench;
use pq_diesel::Worker;

use crate::measure;

/// Number of jobs per drain.
const JOBS: usize = 10_000;

pub(crate) fn group(criterion: &mut Criterion, bench: &Bench) {
    let drains = |transactional, threads, batch| {
        move |times: usize| {
            let drain = |_| {
                bench.fill_by_sql("drain", JOBS).unwrap();
                drain(bench, transactional, threads, batch)
            };
            (0..times).map(drain).sum()
        }
    };
    let mut group = measure::group(criterion, bench, "drain");
    for (kind, transactional) in [("transactional", true), ("leased", false)] {
        for (threads, batch) in [(1, 16), (1, 128), (1, 512), (4, 512)] {
            let name = format!("{kind}/{threads} threads, batches of {batch}");
            group.bench(name, JOBS, drains(transactional, threads, batch));
        }
    }
    bench.fill_by_sql("drain", JOBS).unwrap();
    group.cost_of(JOBS, || drain(bench, true, 1, 512));
}

fn drain(bench: &Bench, transactional: bool, threads: usize, batch: usize) -> Duration {
    let queue = bench.queue("drain").unwrap();
    let handler = match transactional {
        true => queue.transactional(|_, _| Ok::<_, Infallible>(())),
        false => queue.leased(|_, _| Ok::<_, Infallible>(())),
    };
    let worker = Worker::new(&bench.pq).threads(threads).batch(1, batch).serve(handler);
    let begun = Instant::now();
    let report = worker.run_until_empty().unwrap();
    let time = begun.elapsed();
    assert_eq!(report.done, JOBS as u64);
    time
}
