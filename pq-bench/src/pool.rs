//! Many threads that do the same, by a pool of rayon's.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rayon::ThreadPool;

use crate::{Bench, Cost, Meter};

/// What threads have done together.
#[derive(Clone, Copy, Debug)]
pub struct PoolReport {
    /// Operations a second, of all threads.
    pub rate: f64,
    /// How many there were, with each thread's first, which is not measured.
    pub operations: usize,
}

/// A pool of so many threads.
///
/// # Errors
///
/// Where the system gives none.
pub fn threads(count: usize) -> Result<ThreadPool> {
    rayon::ThreadPoolBuilder::new().num_threads(count).build().context("there are no threads to be had")
}

/// Calls `operation` over and over on every thread of the pool for this time; it is given the thread's number.
///
/// # Errors
///
/// The first error of an operation; the other threads end then too.
pub fn run_for_duration(
    pool: &ThreadPool,
    time: Duration,
    operation: impl Fn(usize) -> Result<()> + Sync,
) -> Result<PoolReport> {
    let (start, failed) = (Barrier::new(pool.current_num_threads()), AtomicBool::new(false));
    let done = pool.broadcast(|thread| {
        // One call before the start, so that every thread has its connection and its statement. Who fails in it
        // must still come to the start, where the others wait.
        let first = operation(thread.index());
        failed.fetch_or(first.is_err(), Ordering::Relaxed);
        start.wait();
        first?;
        let begun = Instant::now();
        let mut operations = 0;
        while begun.elapsed() < time && !failed.load(Ordering::Relaxed) {
            operation(thread.index()).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
            operations += 1;
        }
        Ok(PoolReport { rate: operations as f64 / begun.elapsed().as_secs_f64(), operations: operations + 1 })
    });
    let done: Vec<PoolReport> = done.into_iter().collect::<Result<_>>()?;
    Ok(PoolReport {
        rate: done.iter().map(|thread| thread.rate).sum(),
        operations: done.iter().map(|thread| thread.operations).sum(),
    })
}

/// Calls `operation` so often, shared out among the threads of the pool, and says how long that took.
///
/// # Errors
///
/// The first error of an operation.
pub fn times(
    pool: &ThreadPool,
    times: usize,
    operation: impl Fn(usize) -> Result<()> + Sync,
) -> Result<Duration> {
    let threads = pool.current_num_threads();
    let begun = Instant::now();
    let done: Vec<Result<()>> = pool.broadcast(|thread| {
        let share = times / threads + usize::from(thread.index() < times % threads);
        (0..share).try_for_each(|_| operation(thread.index()))
    });
    done.into_iter().collect::<Result<()>>()?;
    Ok(begun.elapsed())
}

/// As [`run_for_duration`] with a pool of its own, and counts what each operation cost.
///
/// # Errors
///
/// Those of an operation; the database's.
pub fn cost_of(
    bench: &Bench,
    count: usize,
    time: Duration,
    operation: impl Fn(usize) -> Result<()> + Sync,
) -> Result<Cost> {
    let pool = threads(count)?;
    let mut conn = bench.connect()?;
    let meter = Meter::of(bench, &mut conn)?;
    let done = run_for_duration(&pool, time, operation)?;
    Ok(Cost { rate: done.rate, ..meter.stop(&mut conn, done.operations)? })
}
