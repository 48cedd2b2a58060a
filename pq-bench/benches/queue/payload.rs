//! The effect of the payload's size.

use anyhow::Context;
use criterion::Criterion;
use pq_bench::{Bench, payload_of, pool};
use pq_diesel::Wait;
use serde_json::value::RawValue;

use crate::measure;

pub(crate) fn group(criterion: &mut Criterion, bench: &Bench) {
    let queue = bench.queue("payload").unwrap();
    let pair_of = |size: usize| {
        let payload = RawValue::from_string(payload_of(size)).unwrap();
        let queue = &queue;
        move |_: usize| {
            queue.put(&payload)?;
            queue.get(Wait::No)?.map(drop).context("the job that was put is not in the queue")
        }
    };
    let one = pool::threads(1).unwrap();
    let mut group = measure::group(criterion, bench, "put and get by payload");
    for (name, size) in [("24 B", 24), ("1 KiB", 1 << 10), ("16 KiB", 16 << 10), ("256 KiB", 256 << 10)] {
        bench.refill(&queue, 0).unwrap();
        let pair = pair_of(size);
        group.bench(name, 1, |times| pool::run_times(&one, times, &pair).unwrap());
    }
    let pair = pair_of(16 << 10);
    bench.refill(&queue, 0).unwrap();
    group.cost_of(100, || pool::run_times(&one, 100, &pair).unwrap());
}
