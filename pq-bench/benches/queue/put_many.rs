//! Puts of many jobs per call, and COPY into the same table.

use std::time::{Duration, Instant};

use criterion::Criterion;
use pq_bench::{Bench, copy_rate};

use crate::measure;

pub(crate) fn group(criterion: &mut Criterion, bench: &Bench) {
    let queue = bench.queue("put_many").unwrap();
    let payload = measure::payload();
    let put = |jobs: usize| {
        let begun = Instant::now();
        queue.put_many(std::iter::repeat_n(&payload, jobs)).unwrap();
        begun.elapsed()
    };
    let mut group = measure::group(criterion, bench, "put_many");
    for jobs in [10, 100, 1_000, 10_000, 100_000] {
        bench.refill(&queue, 0).unwrap();
        group.bench(format!("{jobs} jobs"), jobs, |times| (0..times).map(|_| put(jobs)).sum());
    }
    let mut conn = bench.connect().unwrap();
    let conn = std::cell::RefCell::new(&mut conn);
    group.bench("COPY of 10000 rows", 10_000, |times| {
        let copy = || 10_000.0 / copy_rate(&mut conn.borrow_mut(), 10_000).unwrap();
        Duration::from_secs_f64((0..times).map(|_| copy()).sum())
    });
    bench.refill(&queue, 0).unwrap();
    group.cost_of(10_000, || put(10_000));
}
