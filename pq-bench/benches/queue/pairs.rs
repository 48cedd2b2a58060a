//! A put and a get in a loop.

use anyhow::Context;
use criterion::Criterion;
use pq_bench::{Bench, pool};
use pq_diesel::Wait;

use crate::measure;

pub(crate) fn group(criterion: &mut Criterion, bench: &Bench) {
    let queue = bench.queue("pairs").unwrap();
    let payload = measure::payload();
    let pair = |_: usize| {
        queue.put(&payload)?;
        queue.get(Wait::No)?.map(drop).context("the queue is empty despite its backlog")
    };
    let mut group = measure::group(criterion, bench, "put and get");
    // With a backlog, no get finds the queue empty because other threads are faster.
    bench.fill_by_sql("pairs", 1_000).unwrap();
    for threads in [1, 2, 4, 8, 16] {
        let threads = pool::threads(threads).unwrap();
        let name = format!("through one handle/{} threads", threads.current_num_threads());
        group.bench(name, 1, |times| pool::run_times(&threads, times, pair).unwrap());
    }
    let one = pool::threads(1).unwrap();
    bench.fill_by_sql("pairs", 1_000).unwrap();
    group.cost_of(200, || pool::run_times(&one, 200, pair).unwrap());
}
