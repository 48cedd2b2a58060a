//! Handlers that do nothing, and the workers that run them, for several scenarios.

use std::convert::Infallible;
use std::sync::Barrier;

use anyhow::{Result, ensure};
use diesel::connection::SimpleConnection;
use pq_diesel::{Builder, Handler, Pq, Queue, Worker};
use serde_json::value::RawValue;

use crate::{Bench, Cost, Figure, Meter};

/// The kind of a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Transactional,
    Leased,
}

impl Kind {
    pub(super) const BOTH: [Self; 2] = [Self::Transactional, Self::Leased];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Transactional => "transactional",
            Self::Leased => "leased",
        }
    }

    /// Returns a handler that only calls `each`.
    pub(super) fn handler(
        self,
        queue: &Queue<Box<RawValue>>,
        each: impl Fn(&RawValue) + Send + Sync + 'static,
    ) -> Handler {
        let each = move |data: &RawValue| {
            each(data);
            Ok::<_, Infallible>(())
        };
        match self {
            Self::Transactional => queue.transactional(move |_, job| each(&job.data)),
            Self::Leased => queue.leased(move |_, job| each(&job.data)),
        }
    }

    /// Drains a queue of the default table with handlers that do nothing; see [`drain`].
    pub(super) fn drain(self, bench: &Bench, queue: &str, threads: usize, jobs: usize) -> Result<Cost> {
        drain(bench, Pq::builder(), threads, jobs, |pq| {
            Ok(Worker::new(pq).serve(self.idle(&pq.queue(queue)?)))
        })
    }

    /// Returns a handler that does nothing.
    pub(super) fn idle(self, queue: &Queue<Box<RawValue>>) -> Handler {
        self.handler(queue, |_| {})
    }
}

/// Works exactly `jobs` jobs, which must be in the queue, and counts the cost.
///
/// The worker has a handle of its own, made by `builder`. Its connections have prepared no statements, like those
/// of pgbench. They are closed before the counters are read, because an open session can report its statistics up
/// to ten seconds late.
pub(super) fn drain(
    bench: &Bench,
    builder: Builder,
    threads: usize,
    jobs: usize,
    worker: impl FnOnce(&Pq) -> Result<Worker>,
) -> Result<Cost> {
    let mut conn = bench.connect()?;
    let pq = builder.url(bench.url()).pool_size(threads as u32 + 4).connect()?;
    connected(&pq, threads + 2)?;
    let worker = worker(&pq)?.threads(threads);
    let meter = Meter::start(&mut conn)?;
    let report = worker.run_jobs(jobs as u64)?;
    let time = meter.elapsed();
    drop(pq);
    ensure!(report.done == jobs as u64, "{report:?}");
    meter.stop_after(&mut conn, jobs, time)
}

/// Opens this many connections of the handle.
fn connected(pq: &Pq, connections: usize) -> Result<()> {
    let all = Barrier::new(connections);
    std::thread::scope(|scope| {
        let open = || {
            pq.transaction(|conn| -> Result<(), pq_diesel::Error> {
                all.wait();
                Ok(conn.batch_execute("SELECT 1")?)
            })
        };
        let threads: Vec<_> = (0..connections).map(|_| scope.spawn(open)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
    })?;
    Ok(())
}

/// Returns a figure without values.
pub(super) fn figure<const N: usize>(
    scenario: &str,
    name: &str,
    unit: &str,
    parameters: [(&str, String); N],
) -> Figure {
    Figure {
        scenario: scenario.to_owned(),
        name: name.to_owned(),
        unit: unit.to_owned(),
        parameters: parameters.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        ..Figure::default()
    }
}

/// Returns one part of each cost.
pub(super) fn parts(costs: &[Cost], part: fn(&Cost) -> f64) -> Vec<f64> {
    costs.iter().map(part).collect()
}
