//! Puts the jobs.

use std::io::BufRead;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Result;
use pq_diesel::Error;

use super::Run;
use super::controls::{self, FailurePlan, Watched};
use super::settings::ProducerMode;
use super::work::{Work, now_us};

/// Pause after a failed put.
pub(super) const AFTER_FAILURE: Duration = Duration::from_millis(200);

/// Interval at which an idle producer checks for shutdown.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

pub(super) struct Producer<'r> {
    run: &'r Run,
    work: Work,
    plan: Watched<'r, FailurePlan>,
    seq: u64,
    batches: usize,
}

impl<'r> Producer<'r> {
    pub(super) fn new(run: &'r Run) -> Result<Self> {
        let work = Work::of(run.settings.payload, run.settings.random)?;
        let plan = Watched::new(run.settings.failure_file.as_deref());
        Ok(Self { run, work, plan, seq: 0, batches: 0 })
    }

    /// Puts jobs until shutdown.
    pub(super) fn run(mut self) {
        match self.run.settings.producer_mode {
            _ if !self.run.settings.produces => while !self.run.shutdown.sleep(POLL_INTERVAL) {},
            ProducerMode::AtRate => self.at_rate(),
            ProducerMode::OnRequest => self.on_request(&tokens()),
            ProducerMode::ToDepth(depth) => self.keep_depth(depth),
        }
    }

    /// Puts jobs at a rate.
    ///
    /// The credit grows with elapsed time, so the next put compensates for a slow one. Credit beyond one batch is
    /// dropped, so that a server that was away is not flooded.
    fn at_rate(&mut self) {
        let (mut credit, mut credited) = (0.0, Instant::now());
        while !self.run.shutdown.sleep(self.run.settings.batch_every.saturating_sub(credited.elapsed())) {
            let rate = self.rate();
            let now = Instant::now();
            credit = if rate > 0.0 { credit + rate * (now - credited).as_secs_f64() } else { 0.0 };
            credited = now;
            let whole = credit.floor();
            credit -= whole;
            self.put((whole as u64).min(self.run.settings.batch));
        }
    }

    /// Puts as many jobs as each line requests, in calls of at most one batch.
    fn on_request(&mut self, tokens: &Receiver<u64>) {
        while !self.run.shutdown.is_requested() {
            let request = tokens.recv_timeout(POLL_INTERVAL);
            if request == Err(RecvTimeoutError::Disconnected) {
                self.run.shutdown.sleep(POLL_INTERVAL);
            }
            // Requests that arrive while the producer is paused are dropped.
            let is_paused = self.rate() <= 0.0;
            let mut left = request.unwrap_or_default();
            if is_paused && left > 0 {
                eprintln!("dropped a request for {left} jobs: the rate is 0");
                left = 0;
            }
            while left > 0 && !self.run.shutdown.is_requested() {
                let batch = left.min(self.run.settings.batch);
                self.put(batch);
                left -= batch;
            }
        }
    }

    fn keep_depth(&mut self, target: u64) {
        let pause = self.run.settings.batch_every;
        while !self.run.shutdown.is_requested() {
            let is_paused = self.rate() <= 0.0;
            let missing = match self.run.depth() {
                Ok(depth) if !is_paused => target.saturating_sub(depth.ready),
                Ok(_) => 0,
                Err(error) => {
                    self.failed(&error);
                    continue;
                }
            };
            self.put(missing.min(self.run.settings.batch));
            if missing <= self.run.settings.batch {
                self.run.shutdown.sleep(pause);
            }
        }
    }

    fn rate(&self) -> f64 {
        let rate = controls::rate(&self.run.settings);
        // In this mode there is no rate.
        let shown =
            if matches!(self.run.settings.producer_mode, ProducerMode::ToDepth(_)) { 0.0 } else { rate };
        self.run.figures.set_target(shown);
        rate
    }

    /// Puts jobs in one call, and uses the queues in rotation.
    fn put(&mut self, jobs: u64) {
        if jobs == 0 {
            return;
        }
        let plan = self.plan.now();
        let put_at_us = now_us();
        let begin = self.seq;
        // A put that failed may have been committed, so sequence numbers are not reused.
        self.seq += jobs;
        let works: Vec<Work> = (begin..self.seq)
            .map(|seq| {
                let mut work = Work { seq, put_at_us, ..self.work.clone() };
                if let Some(plan) = &plan {
                    plan.mark(&mut work);
                }
                work
            })
            .collect();
        let queue = &self.run.queues[self.batches % self.run.queues.len()];
        self.batches += 1;
        let begun = Instant::now();
        match queue.put_many(&works) {
            Ok(_) => {
                let (took, count) = (begun.elapsed(), u32::try_from(jobs).unwrap_or(u32::MAX));
                self.run.figures.put.add(jobs);
                self.run.figures.call.record(took, 1);
                self.run.figures.producer.record(took / count, count);
            }
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&self, error: &Error) {
        eprintln!("cannot put jobs: {error}");
        self.run.shutdown.sleep(AFTER_FAILURE);
    }
}

/// Reads the numbers of jobs from lines `ENQUEUE n` on standard input. Excess lines stay in the pipe.
fn tokens() -> Receiver<u64> {
    let (requests, tokens) = sync_channel(1_024);
    // The thread may block on standard input until the process ends, so it is not joined.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            match line.trim().strip_prefix("ENQUEUE ").map(str::parse) {
                Some(Ok(jobs)) => {
                    if requests.send(jobs).is_err() {
                        return;
                    }
                }
                _ => eprintln!("invalid line {line:?} on standard input; expected `ENQUEUE` and a number"),
            }
        }
        eprintln!("standard input ended; no more jobs are put");
    });
    tokens
}
