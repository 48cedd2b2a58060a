//! One put per commit.

use criterion::Criterion;
use pq_bench::{Bench, pool};

use crate::measure;

pub(crate) fn group(criterion: &mut Criterion, bench: &Bench) {
    let queue = bench.queue("put").unwrap();
    let payload = measure::payload();
    let put = |_: usize| Ok(queue.put(&payload).map(drop)?);
    let with_the_caller =
        |_: usize| Ok(bench.pq.transaction(|conn| queue.on(conn).put(&payload)).map(drop)?);
    let mut group = measure::group(criterion, bench, "put");
    bench.refill(&queue, 0).unwrap();
    for threads in [1, 2, 4, 8, 16] {
        let threads = pool::threads(threads).unwrap();
        let name = format!("through one handle/{} threads", threads.current_num_threads());
        group.bench(name, 1, |times| pool::run_times(&threads, times, put).unwrap());
    }
    let one = pool::threads(1).unwrap();
    group.bench("in the caller's transaction", 1, |times| {
        pool::run_times(&one, times, with_the_caller).unwrap()
    });
    bench.refill(&queue, 0).unwrap();
    group.cost_of(200, || pool::run_times(&one, 200, put).unwrap());
}
