//! The worker that processes the jobs.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use pq_diesel::{Context, Error, Handler, Job, Outcome, Queue, Report, Worker};

use super::Run;
use super::controls;
use super::figures::Figures;
use super::settings::Settings;
use super::work::{Fail, Injected, Work, now_us};

/// Interval at which a long job checks for an abort, and at which a closed gate file is read.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Creates a leased worker that serves all queues, with one thread per consumer.
pub(super) fn worker(run: &Run) -> Worker {
    let serve = |worker: Worker, queue: &Queue<Work>| {
        // By weight, because with strict priority a queue waits until all earlier ones are empty.
        worker.serve(handler(queue, &run.settings, &run.figures)).weight(queue.name().as_str(), 1)
    };
    run.queues.iter().fold(Worker::new(&run.pq).threads(run.settings.workers), serve)
}

/// Waits for the gate file, then runs the worker until it is stopped.
///
/// Returns an empty report if the run ends before the gate opens.
pub(super) fn run(run: &Run, worker: Worker) -> Result<Report, Error> {
    if let Some(gate) = &run.settings.gate_file {
        while !controls::is_open(gate) {
            if run.shutdown.sleep(POLL_INTERVAL) {
                return Ok(Report::default());
            }
        }
    }
    worker.run()
}

fn handler(queue: &Queue<Work>, settings: &Settings, figures: &Arc<Figures>) -> Handler {
    let (figures, time, attempts) = (Arc::clone(figures), settings.work, settings.attempts);
    let handle = move |context: &Context, job: Job<Work>| {
        record_start(&figures, &job.data);
        let attempt = u32::try_from(job.attempt).unwrap_or_default();
        if job.data.fails(attempt) {
            figures.failed.add(1);
            if attempt >= attempts && job.data.fail == Some(Fail::Poison) {
                figures.exhausted.add(1);
            }
            return Err(Injected);
        }
        if !work(context, time) {
            return Ok(Outcome::snooze(Duration::ZERO));
        }
        record_end(&figures, &job.data);
        Ok(Outcome::Complete)
    };
    queue.leased(handle).max_retries(attempts - 1)
}

fn record_start(figures: &Figures, work: &Work) {
    let now = now_us();
    if let Some(run_at_ms) = work.run_at_ms {
        let late = now.saturating_sub(run_at_ms.saturating_mul(1_000));
        figures.load_group.begun.add(1);
        figures.load_group.early.add(u64::from(late < 0));
        let mut lateness = figures.load_group.lateness.lock().unwrap_or_else(PoisonError::into_inner);
        lateness.saturating_record(late.max(0).unsigned_abs());
    }
    if !work.is_special() {
        figures.claim.record_us(now - work.put_at_us, 1);
    }
}

fn record_end(figures: &Figures, work: &Work) {
    if !work.is_special() {
        figures.end_to_end.record_us(now_us() - work.put_at_us, 1);
    }
    if work.fail == Some(Fail::Transient) {
        figures.retried.add(1);
    }
    match work.run_at_ms {
        Some(_) => figures.load_group.completed.add(1),
        None => figures.completed.add(1),
    }
}

/// Simulates work for this time. Returns `false` if the job was aborted.
fn work(context: &Context, time: Duration) -> bool {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        if context.is_aborting() {
            return false;
        }
        std::thread::sleep(left.min(POLL_INTERVAL));
    }
}
