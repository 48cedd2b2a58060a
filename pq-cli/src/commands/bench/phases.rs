//! The phases of the bench, and their measurement.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::sql_types::BigInt;
use indicatif::ProgressBar;
use pq_diesel::{CancellationToken, Handler, Pq, Queue, StopMode, Wait, Worker};

use super::cleanup::{Leases, keep_everything, take_remaining};
use super::payload::Payload;
use super::report::{Latencies, Phase};
use crate::failure::Failure;
use crate::output;

/// Number of jobs per call of `put_many`.
const BATCH: u64 = 1_000;

/// Time to wait for a job that must be in the queue.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Interval at which waiting threads check for an interrupt.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

pub(super) struct Runner<'b> {
    pub(super) pq: &'b Pq,
    pub(super) queue: &'b Queue<Payload>,
    pub(super) payload: Payload,
    pub(super) jobs: u64,
    pub(super) threads: u32,
    pub(super) stop: &'b CancellationToken,
    pub(super) leases: &'b Leases,
}

impl Runner<'_> {
    pub(super) fn all(&self) -> Result<Vec<Phase>, Failure> {
        // Warms up the connections and prepared statements.
        self.run_threads("", "", u64::from(self.threads) * 20, || self.put_and_get())?;
        Ok(vec![
            self.run_threads("put", "put, one by one", self.jobs, || self.put())?,
            self.run_threads("get", "get, one by one", self.jobs, || self.get())?,
            self.run_threads("put_get", "put and get, in pairs", self.jobs, || self.put_and_get())?,
            // The next phase works the jobs of this one.
            self.put_many()?,
            self.run_worker("worker_transactional", "worker, transactional", false)?,
            self.put_many().and_then(|_| self.run_worker("worker_leased", "worker, leased", true))?,
            self.measure_pickup("pickup_transactional", "pickup, transactional", false)?,
            self.measure_pickup("pickup_leased", "pickup, leased", true)?,
        ])
    }

    /// Calls `operation` once per job, in all threads.
    fn run_threads(
        &self,
        key: &'static str,
        name: &'static str,
        jobs: u64,
        operation: impl Fn() -> Result<(), Failure> + Sync,
    ) -> Result<Phase, Failure> {
        let (bar, left) = (bar(name, jobs), AtomicU64::new(jobs));
        let one_thread = || {
            let mut latencies = latencies()?;
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
            {
                let begun = Instant::now();
                if let Err(failure) = self.check_interrupted().and_then(|()| operation()) {
                    // Stops the other threads.
                    left.store(0, Ordering::Relaxed);
                    return Err(failure);
                }
                record(&mut latencies, begun.elapsed());
                bar.inc(1);
            }
            Ok(latencies)
        };
        let (wal, begun) = (self.wal(), Instant::now());
        let ended: Vec<Result<Latencies, Failure>> = std::thread::scope(|scope| {
            let running: Vec<_> = (0..self.threads).map(|_| scope.spawn(one_thread)).collect();
            running.into_iter().map(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
        });
        let time = begun.elapsed();
        bar.finish_and_clear();
        let mut all = latencies()?;
        for one in ended {
            all.add(one?).map_err(|error| Failure::Bench(error.to_string()))?;
        }
        Ok(Phase { key, name, jobs, time: Some(time), wal: self.wal_since(wal), latencies: Some(all) })
    }

    fn put(&self) -> Result<(), Failure> {
        self.queue.put(&self.payload)?;
        Ok(())
    }

    /// Gets a job. Repeats an empty get: other threads may hold the ready jobs, and put new ones after this one looked.
    fn get(&self) -> Result<(), Failure> {
        let begun = Instant::now();
        while self.queue.get(Wait::No)?.is_none() {
            self.check_interrupted()?;
            if begun.elapsed() > TIMEOUT {
                return Err(jobs_missing());
            }
        }
        Ok(())
    }

    fn put_and_get(&self) -> Result<(), Failure> {
        self.put().and_then(|()| self.get())
    }

    fn put_many(&self) -> Result<Phase, Failure> {
        let name = "put_many, 1,000 at once";
        let (bar, wal, begun) = (bar(name, self.jobs), self.wal(), Instant::now());
        let mut left = self.jobs;
        while left > 0 {
            self.check_interrupted()?;
            let some = left.min(BATCH);
            self.queue.put_many(std::iter::repeat_n(&self.payload, some as usize))?;
            bar.inc(some);
            left -= some;
        }
        let time = begun.elapsed();
        bar.finish_and_clear();
        let wal = self.wal_since(wal);
        Ok(Phase { key: "put_many", name, jobs: self.jobs, time: Some(time), wal, latencies: None })
    }

    /// Works all jobs of the queue with a handler that does nothing.
    fn run_worker(&self, key: &'static str, name: &'static str, leased: bool) -> Result<Phase, Failure> {
        let bar = bar(name, self.jobs);
        let worked = bar.clone();
        let worker = self.worker(self.threads, leased, move || worked.inc(1));
        let control = worker.control();
        let wal = self.wal();
        let (report, time) = std::thread::scope(|scope| {
            let working = scope.spawn(move || {
                let begun = Instant::now();
                worker.run_until_empty().map(|report| (report, begun.elapsed()))
            });
            while !working.is_finished() {
                if self.stop.is_cancelled() {
                    // Handlers return at once, so there is nothing to abort.
                    control.stop(StopMode::Finish);
                }
                std::thread::sleep(POLL_INTERVAL);
            }
            working.join().unwrap_or_else(|e| std::panic::resume_unwind(e))
        })?;
        bar.finish_and_clear();
        let wal = self.wal_since(wal);
        self.check_interrupted()?;
        // A thread may give jobs back after all others have ended.
        take_remaining(self.queue)?;
        if report.done == 0 {
            return Err(jobs_missing());
        }
        Ok(Phase { key, name, jobs: report.done, time: Some(time), wal, latencies: None })
    }

    /// Measures the time from a put to the start of the handler in an idle worker.
    fn measure_pickup(&self, key: &'static str, name: &'static str, leased: bool) -> Result<Phase, Failure> {
        let rounds = (self.jobs / 50).clamp(20, 200);
        let (begins, begun) = channel();
        let worker = self.worker(1, leased, move || {
            let _ = begins.send(Instant::now());
        });
        let control = worker.control();
        let mut latencies = latencies()?;
        let (bar, wal) = (bar(name, rounds), self.wal());
        let round = || {
            self.check_interrupted()?;
            // Gives the worker time to find the queue empty and to wait.
            std::thread::sleep(POLL_INTERVAL);
            let before = Instant::now();
            self.put()?;
            loop {
                match begun.recv_timeout(POLL_INTERVAL) {
                    Ok(at) => return Ok(at.saturating_duration_since(before)),
                    Err(RecvTimeoutError::Timeout) if before.elapsed() < TIMEOUT => {
                        self.check_interrupted()?
                    }
                    Err(_) => return Err(jobs_missing()),
                }
            }
        };
        let measured = std::thread::scope(|scope| {
            let working = scope.spawn(move || worker.run());
            // The first round includes the start of the worker and is not counted.
            let measured = round().and_then(|_| {
                for _ in 0..rounds {
                    record(&mut latencies, round()?);
                    bar.inc(1);
                }
                Ok(())
            });
            control.stop(StopMode::Finish);
            working.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
            measured
        });
        bar.finish_and_clear();
        measured?;
        let wal = self.wal_since(wal);
        Ok(Phase { key, name, jobs: rounds, time: None, wal, latencies: Some(latencies) })
    }

    /// Returns a worker that does no maintenance and deletes nothing from the archive.
    fn worker(&self, threads: u32, leased: bool, work: impl Fn() + Send + Sync + 'static) -> Worker {
        let leases = self.leases.clone();
        let handler: Handler = match leased {
            true => self.queue.leased(move |_, job| {
                leases.record(job.lease());
                work();
                Ok::<_, Failure>(())
            }),
            false => self.queue.transactional(move |_, _| {
                work();
                Ok::<_, Failure>(())
            }),
        };
        Worker::new(self.pq)
            .threads(threads as usize)
            // It leaves nothing behind, its counters included.
            .heartbeat_every(None)
            .maintain_every(Duration::MAX)
            .retention(keep_everything())
            .serve(handler)
    }

    fn check_interrupted(&self) -> Result<(), Failure> {
        if self.stop.is_cancelled() { Err(pq_core::Error::Stopped.into()) } else { Ok(()) }
    }

    /// Returns the server's WAL position, or `None` without the privilege to read it.
    fn wal(&self) -> Option<i64> {
        let position = "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint";
        let read = self
            .pq
            .transaction(|conn| diesel::dsl::sql::<BigInt>(position).get_result(conn).map_err(Failure::from));
        read.ok()
    }

    fn wal_since(&self, before: Option<i64>) -> Option<u64> {
        self.wal().zip(before).map(|(after, before)| after.saturating_sub(before).max(0).unsigned_abs())
    }
}

fn bar(name: &str, jobs: u64) -> ProgressBar {
    if name.is_empty() {
        return ProgressBar::hidden();
    }
    let bar = output::progress_bar(jobs, "{prefix:>24} {wide_bar} {pos}/{len}, {per_sec}");
    bar.set_prefix(name.to_owned());
    bar
}

fn latencies() -> Result<Latencies, Failure> {
    // One nanosecond to one hour, with three significant digits.
    Latencies::new_with_bounds(1, 3_600_000_000_000, 3).map_err(|error| Failure::Bench(error.to_string()))
}

fn record(latencies: &mut Latencies, time: Duration) {
    latencies.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
}

fn jobs_missing() -> Failure {
    Failure::Bench(
        "jobs of the bench are missing: another process may be taking jobs from its queue".to_owned(),
    )
}
