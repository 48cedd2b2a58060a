//! Put and get, one at a time, in batches, and by as many threads as rayon has.

#![allow(clippy::print_stderr, reason = "whoever runs it should know where it ran")]
#![allow(missing_docs, reason = "criterion's macros write undocumented functions")]

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pq_bench::{Bench, PAYLOAD};
use pq_diesel::Wait;
use rayon::prelude::*;
use serde_json::value::RawValue;

fn put_and_get(criterion: &mut Criterion) {
    let bench = Bench::start().expect("a server to measure on");
    eprintln!("measured on: {}", bench.origin());
    let queue = bench.queue("bench").expect("the name is right");
    let payload = RawValue::from_string(PAYLOAD.to_owned()).expect("the payload is JSON");
    let mut group = criterion.benchmark_group("queue");
    group.sample_size(10).measurement_time(Duration::from_secs(3)).throughput(Throughput::Elements(1));

    group.bench_function("put", |b| b.iter(|| queue.put(&payload).expect("a put")));
    group.bench_function("get", |b| {
        b.iter_custom(|count| {
            let jobs = usize::try_from(count).expect("a count that fits");
            bench.refill(&queue, jobs).expect("jobs to get");
            let begun = Instant::now();
            for _ in 0..count {
                queue.get(Wait::No).expect("a get").expect("a job");
            }
            begun.elapsed()
        });
    });
    group.bench_function("put then get", |b| {
        bench.refill(&queue, 0).expect("an empty queue");
        b.iter(|| {
            queue.put(&payload).expect("a put");
            queue.get(Wait::No).expect("a get").expect("a job")
        });
    });
    for threads in [1, 4, 16] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        group.throughput(Throughput::Elements(threads as u64));
        group.bench_function(BenchmarkId::new("put by threads", threads), |b| {
            b.iter(|| {
                pool.install(|| {
                    (0..threads).into_par_iter().for_each(|_| {
                        queue.put(&payload).expect("a put");
                    })
                })
            });
        });
    }
    for jobs in [100, 1_000] {
        group.throughput(Throughput::Elements(jobs as u64));
        group.bench_function(BenchmarkId::new("put_many then get_many", jobs), |b| {
            bench.refill(&queue, 0).expect("an empty queue");
            b.iter(|| {
                queue.put_many(std::iter::repeat_n(&payload, jobs)).expect("a put");
                assert_eq!(queue.get_many(jobs, Wait::No).expect("a get").len(), jobs);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, put_and_get);
criterion_main!(benches);
