//! One poll of the queues: takes jobs of the first queue that has any, and runs them.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::batch::Batch;
use super::batch_sizer::BatchSizer;
use super::take_limiter::TakenBatch;
use super::worker_run::WorkerRun;
use super::{leased_batch, transactional_batch};
use crate::{Scan, Store, StoreError};

/// The time after which a thread looks again whether there are jobs for it to begin, if others have reserved the last
/// ones.
const RESERVED_PAUSE: Duration = Duration::from_millis(10);

/// The result of a poll.
#[derive(Debug)]
pub(super) enum PollResult {
    /// A batch was run.
    Ran,
    /// No queue has a ready job; the next scheduled one is due after this time, if there is one.
    Empty { next_due: Option<Duration> },
    /// The run has begun its maximum number of jobs.
    LimitReached,
}

/// Polls the queues in turn, and runs a batch of the first one that has a ready job.
///
/// Calls `found` before the first handler begins. Does not call it if there is no job.
pub(super) fn poll<S: Store>(
    run: &WorkerRun<S>,
    thread: usize,
    sizer: &mut BatchSizer,
    scan: Scan,
    found: &mut dyn FnMut(),
) -> Result<PollResult, S::Error> {
    let mut next_due = None;
    let mut empty = Vec::new();
    for position in run.queues.order() {
        let served = &run.queues.all[position];
        if served.is_asynchronous() {
            continue;
        }
        // A full scan must be certain that the queue is empty, so it does not leave the queue to another thread.
        if let Some(delay) = served.limiter.affinity_delay(thread, Instant::now())
            && scan == Scan::Resume
        {
            empty.push(position);
            next_due = earlier(next_due, Some(delay));
            continue;
        }
        let max_jobs = if served.is_transactional() { served.sharing_limit.max_jobs() } else { usize::MAX };
        let want = run.job_limit.reserve(sizer.size().min(max_jobs));
        if want == 0 && run.job_limit.is_reached() {
            return Ok(PollResult::LimitReached);
        }
        if want == 0 {
            return Ok(PollResult::Empty { next_due: Some(RESERVED_PAUSE) });
        }
        let mut began_at = None;
        let mut began = || {
            began_at = Some(Instant::now());
            run.record_poll();
            found();
        };
        let takes_in_transaction = served.is_transactional() && !served.limited.load(Ordering::Relaxed);
        let batch = match takes_in_transaction {
            true => transactional_batch::run_batch(run, thread, position, want, scan, &mut began),
            false => leased_batch::run_batch(run, thread, position, want, scan, &mut began),
        };
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => {
                run.job_limit.release(want);
                if !error.is_unavailable() {
                    sizer.shrink_after_error();
                }
                return Err(error);
            }
        };
        let Batch { taken, bytes, has_keys, lease_limit, unbegun, .. } = batch;
        run.job_limit.release(want - (taken - unbegun));
        run.record_begun(taken - unbegun);
        if taken > 0 {
            let took = began_at.map_or(Duration::ZERO, |began_at| began_at.elapsed());
            served.limiter.record_batch(thread, TakenBatch { has_keys, taken, want, took }, Instant::now());
            run.queues.record_turn(position, &empty);
            sizer.record(taken, bytes, took);
            if has_keys {
                sizer.limit_for_keys();
            }
            if let Some(limit) = lease_limit {
                sizer.limit_for_lost_lease(limit);
            }
            return Ok(PollResult::Ran);
        }
        served.limiter.record_empty(thread);
        empty.push(position);
        next_due = earlier(next_due, served.poll_due(batch.next_due));
    }
    Ok(PollResult::Empty { next_due })
}

fn earlier(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}
