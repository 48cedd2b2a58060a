//! Runs an operation on many threads of a rayon pool.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rayon::ThreadPool;

use crate::{Bench, Cost, Meter};

/// The work that all threads of a pool did.
#[derive(Clone, Copy, Debug)]
pub struct PoolReport {
    /// Operations per second, of all threads together.
    pub rate: f64,
    /// Number of operations, including the first of each thread, which is not timed.
    pub operations: usize,
}

/// Creates a pool of threads.
///
/// # Errors
///
/// If the threads cannot be started.
pub fn threads(count: usize) -> Result<ThreadPool> {
    rayon::ThreadPoolBuilder::new().num_threads(count).build().context("cannot start threads")
}

/// Calls `operation` repeatedly on each thread of the pool for a time.
///
/// The argument of `operation` is the thread's index.
///
/// # Errors
///
/// The first error of an operation. The other threads stop as well.
pub fn run_for_duration(
    pool: &ThreadPool,
    time: Duration,
    operation: impl Fn(usize) -> Result<()> + Sync,
) -> Result<PoolReport> {
    let (start, failed) = (Barrier::new(pool.current_num_threads()), AtomicBool::new(false));
    let done = pool.broadcast(|thread| {
        // The first call is not timed: it opens the thread's connection and prepares the statement. A thread
        // whose first call fails must still reach the barrier, because the other threads wait there.
        let first = operation(thread.index());
        failed.fetch_or(first.is_err(), Ordering::Relaxed);
        start.wait();
        first?;
        let begun = Instant::now();
        let mut operations = 0;
        // At least once, also if the thread was suspended for the whole time.
        loop {
            operation(thread.index()).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
            operations += 1;
            if begun.elapsed() >= time || failed.load(Ordering::Relaxed) {
                break;
            }
        }
        Ok(PoolReport { rate: operations as f64 / begun.elapsed().as_secs_f64(), operations: operations + 1 })
    });
    let done: Vec<PoolReport> = done.into_iter().collect::<Result<_>>()?;
    Ok(PoolReport {
        rate: done.iter().map(|thread| thread.rate).sum(),
        operations: done.iter().map(|thread| thread.operations).sum(),
    })
}

/// Calls `operation` `times` times in total and returns how long that took.
///
/// The calls are divided evenly among the threads of the pool.
///
/// # Errors
///
/// The first error of an operation.
pub fn run_times(
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

/// Calls [`run_for_duration`] with a new pool and counts the cost of each operation.
///
/// # Errors
///
/// Errors of the operation; database errors.
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
