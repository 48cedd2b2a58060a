//! One get per commit.

use std::time::Duration;

use anyhow::Context;
use criterion::Criterion;
use pq_bench::{Bench, pool};
use pq_diesel::Wait;
use rayon::ThreadPool;

use crate::measure;

pub(crate) fn group(criterion: &mut Criterion, bench: &Bench) {
    let queue = bench.queue("get").unwrap();
    let get = |_: usize| queue.get(Wait::No)?.map(drop).context("the queue is empty");
    let filled = |threads: &ThreadPool, times: usize| -> Duration {
        bench.fill_by_sql("get", times).unwrap();
        pool::run_times(threads, times, get).unwrap()
    };
    let mut group = measure::group(criterion, bench, "get");
    for threads in [1, 4, 16] {
        let threads = pool::threads(threads).unwrap();
        let name = format!("through one handle/{} threads", threads.current_num_threads());
        group.bench(name, 1, |times| filled(&threads, times));
    }
    let one = pool::threads(1).unwrap();
    bench.fill_by_sql("get", 200).unwrap();
    group.cost_of(200, || pool::run_times(&one, 200, get).unwrap());
}
