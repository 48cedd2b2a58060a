//! What we do on the server.

use std::sync::Barrier;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::Result;
use pq_diesel::{Pq, StopMode, Worker};
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

/// How long after each put of the producer began a worker's handler has begun, in milliseconds; `rounds` of them, one
/// at a time, with a worker of one thread that has nothing else to do.
///
/// # Errors
///
/// The database's.
pub fn pickup_latencies(
    pq: &Pq,
    producer: &Pq,
    name: &str,
    transactional: bool,
    rounds: usize,
) -> Result<Vec<f64>> {
    let queue = pq.queue::<Box<RawValue>>(name)?;
    let puts = producer.queue::<Box<RawValue>>(name)?;
    let payload = RawValue::from_string("1".to_owned())?;
    let (begun, begins) = channel();
    let handler = match transactional {
        true => queue.transactional(move |_, _| begun.send(Instant::now())),
        false => queue.leased(move |_, _| begun.send(Instant::now())),
    };
    let worker = Worker::new(pq).serve(handler);
    let control = worker.control();
    std::thread::scope(|scope| {
        let working = scope.spawn(move || worker.run());
        let mut times = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            // Long enough for the worker to have looked and gone to sleep.
            std::thread::sleep(Duration::from_millis(5));
            let put = Instant::now();
            puts.put(&payload)?;
            let began = begins.recv_timeout(Duration::from_secs(10))?;
            times.push(began.saturating_duration_since(put).as_secs_f64() * 1_000.0);
        }
        control.stop(StopMode::All);
        working.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
        Ok(times)
    })
}
