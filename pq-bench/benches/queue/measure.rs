//! Helpers of all groups.

use std::cell::Cell;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};
use pq_bench::{Bench, Cost, Meter, PAYLOAD};
use serde_json::value::RawValue;

/// A group that records whether any of it ran, because criterion can run a selection.
pub(crate) struct Group<'a> {
    name: &'static str,
    bench: &'a Bench,
    group: BenchmarkGroup<'a, WallTime>,
    ran: Cell<bool>,
}

/// Creates a short group: ten samples in two seconds.
pub(crate) fn group<'a>(criterion: &'a mut Criterion, bench: &'a Bench, name: &'static str) -> Group<'a> {
    let mut group = criterion.benchmark_group(name);
    // Filling the queue is not timed but takes time, so all samples have the same length.
    group
        .sampling_mode(SamplingMode::Flat)
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    Group { name, bench, group, ran: Cell::new(false) }
}

impl Group<'_> {
    /// Measures `work`, which does `jobs` jobs the given number of times and returns how long that took.
    pub(crate) fn bench(&mut self, name: impl Into<String>, jobs: usize, work: impl Fn(usize) -> Duration) {
        let ran = &self.ran;
        self.group.throughput(Throughput::Elements(jobs as u64));
        self.group.bench_function(name, |bencher| {
            ran.set(true);
            bencher.iter_custom(|times| work(usize::try_from(times).expect("a count that fits")));
        });
    }

    /// Ends the group, and prints the cost of the jobs that `work` does in the time that it returns.
    pub(crate) fn cost_of(self, jobs: usize, work: impl FnOnce() -> Duration) {
        self.group.finish();
        if !self.ran.get() {
            return;
        }
        let mut conn = self.bench.connect().unwrap();
        let meter = Meter::of(self.bench, &mut conn).unwrap();
        let time = work();
        let Cost { trips, commits, wal, dead_rows, client_cpu, peak_memory, .. } =
            meter.stop_after(&mut conn, jobs, time).unwrap();
        eprintln!(
            "{}, per job: {trips:.3} trips, {commits:.3} commits, {wal:.0} B of WAL, {dead_rows:.2} dead tuples, \
            {client_cpu:.1} µs of client CPU; {peak_memory:.0} MB of memory at most\n",
            self.name
        );
    }
}

/// Returns the default payload.
pub(crate) fn payload() -> Box<RawValue> {
    RawValue::from_string(PAYLOAD.to_owned()).expect("the payload is JSON")
}
