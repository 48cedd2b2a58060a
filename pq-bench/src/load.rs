//! What we do on the server.

use std::sync::Barrier;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pq_diesel::{Queue, Wait};
use serde_json::value::RawValue;

/// Operations a second of so many threads, each calling `operation` over and over for this time.
///
/// # Errors
///
/// The first error of an operation.
pub fn rate<E: Send>(
    threads: usize,
    time: Duration,
    operation: impl Fn() -> Result<(), E> + Sync,
) -> Result<f64, E> {
    let start = Barrier::new(threads);
    let work = || {
        // One call before the start, so that every thread has its connection and its statement.
        operation()?;
        start.wait();
        let begun = Instant::now();
        let mut done = 0_u32;
        while begun.elapsed() < time {
            operation()?;
            done += 1;
        }
        Ok(f64::from(done) / begun.elapsed().as_secs_f64())
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().map(|thread| thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).sum()
    })
}

/// How long after each put has returned its waiter has the job, in milliseconds; `rounds` of them.
/// The put's commit comes before its return, so the figure can be a little less than the whole, and
/// below zero where the waiter was faster than the answer to the put.
///
/// # Errors
///
/// The database's.
pub fn wake_latencies(queue: &Queue<Box<RawValue>>, rounds: usize) -> Result<Vec<f64>> {
    let payload = RawValue::from_string("1".to_owned())?;
    let (got, arrivals) = channel();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(move || -> Result<()> {
            for _ in 0..rounds {
                queue.get(Wait::For(Duration::from_secs(10)))?.context("no job came")?;
                got.send(Instant::now())?;
            }
            Ok(())
        });
        let mut latencies = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            // Long enough for the waiter to have looked and gone to sleep.
            std::thread::sleep(Duration::from_millis(5));
            let before = Instant::now();
            queue.put(&payload)?;
            let put = Instant::now();
            let arrived = arrivals.recv_timeout(Duration::from_secs(10))?;
            let late = arrived.saturating_duration_since(put).as_secs_f64();
            let early = put.saturating_duration_since(arrived.max(before)).as_secs_f64();
            latencies.push((late - early) * 1_000.0);
        }
        waiter.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
        Ok(latencies)
    })
}
