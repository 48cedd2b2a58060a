//! What several scenarios do: jobs that do nothing, and the workers that work them.

use std::convert::Infallible;
use std::sync::Barrier;

use anyhow::{Result, ensure};
use diesel::connection::SimpleConnection;
use pq_diesel::{Builder, Handler, Pq, Queue, Worker};
use serde_json::value::RawValue;

use crate::{Bench, Cost, Figure, Meter};

/// How a handler has its job.
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

    /// A handler that calls this for each job, and does nothing else.
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

    /// [`drain`] of a queue of the usual table, by handlers that do nothing.
    pub(super) fn drain(self, bench: &Bench, queue: &str, threads: usize, jobs: usize) -> Result<Cost> {
        drain(bench, Pq::builder(), threads, jobs, |pq| {
            Ok(Worker::new(pq).serve(self.idle(&pq.queue(queue)?)))
        })
    }

    /// A handler that does nothing.
    pub(super) fn idle(self, queue: &Queue<Box<RawValue>>) -> Handler {
        self.handler(queue, |_| {})
    }
}

/// Works so many jobs, which are there; no more, if there are more. The worker has a handle of its own, made by
/// `builder`: it begins with connections that know no statement yet, as those of pgbench do, and they are closed
/// before the end is counted, for a session that lives on may keep what it has done to itself for ten seconds.
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

/// Has the handle open so many connections.
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

/// A figure that nothing is in yet.
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

/// Of each run's cost one part, as a figure's rounds.
pub(super) fn parts(costs: &[Cost], part: fn(&Cost) -> f64) -> Vec<f64> {
    costs.iter().map(part).collect()
}
