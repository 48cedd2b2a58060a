//! Settling: passing the outcomes of jobs to the store, and counting those that it accepted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error_backoff::ErrorBackoff;
use super::status::Report;
use super::thread_slots::{FinishedJob, ThreadSlot};
use super::worker_run::WorkerRun;
use crate::lock::lock;
use crate::{Claim, JobRecord, JobState, Outcome, Settlement, Store, StoreError};

/// The time that a finished job may wait for others to be settled with it.
pub(super) const SETTLE_WITHIN: Duration = Duration::from_millis(50);

/// Moves the jobs that a thread has not begun to those that it settles next, to be given back.
pub(super) fn give_back_buffer(slot: &ThreadSlot) {
    let unbegun: Vec<Claim> = lock(&slot.buffer).drain(..).collect();
    let given_back = unbegun.into_iter().map(|job| FinishedJob {
        job: Arc::new(job),
        outcome: Outcome::GiveBack,
        at: Instant::now(),
        settled_as: None,
    });
    lock(&slot.finished).extend(given_back);
}

/// Settles the leased jobs that a thread has finished.
///
/// While the store cannot be reached it tries again, until the worker aborts and the lease has expired anyway.
pub(super) fn settle_finished<S: Store>(run: &WorkerRun<S>, slot: &ThreadSlot) {
    let finished = std::mem::take(&mut *lock(&slot.finished));
    let Some(first) = finished.first() else { return };
    // All of them are of one batch, and so of one queue.
    let queue = &first.job.queue;
    let _span = tracing::debug_span!("pq.settle", jobs = finished.len()).entered();
    let began = Instant::now();
    let (mut backoff, mut may_be_settled) = (ErrorBackoff::default(), false);
    loop {
        match settle_once(run, &finished, may_be_settled) {
            Ok(report) => return slot.statistics.add(queue, &report),
            Err(error) if error.is_unavailable() => {
                tracing::warn!(%error, jobs = finished.len(), "settling failed; the worker will retry");
                may_be_settled = true;
            }
            // The store may be unable to store one of the outcomes. The others must not fail with it.
            Err(_) if finished.len() > 1 => {
                for job in &finished {
                    match settle_once(run, std::slice::from_ref(job), true) {
                        Ok(report) => slot.statistics.add(queue, &report),
                        Err(error) => log_refusal(job, &error),
                    }
                }
                return;
            }
            Err(error) => return finished.iter().for_each(|job| log_refusal(job, &error)),
        }
        if run.stop.is_aborting() && began.elapsed() > run.settings.lease {
            tracing::error!(jobs = finished.len(), "settling was given up; the leases will expire");
            return;
        }
        std::thread::sleep(backoff.next_pause());
    }
}

fn log_refusal(finished: &FinishedJob, error: &impl std::error::Error) {
    tracing::error!(job_id = %finished.job.id, %error, "settling failed; the job's lease will expire");
}

/// Passes the outcomes of leased jobs to the store once, and counts the accepted ones.
///
/// After a lost connection an earlier call may have been committed. With `may_be_settled` the jobs that the store
/// refuses are looked up by id and attempt to find out.
fn settle_once<S: Store>(
    run: &WorkerRun<S>,
    finished: &[FinishedJob],
    may_be_settled: bool,
) -> Result<Report, S::Error> {
    let store = run.store();
    let settlements: Vec<Settlement<'_>> = finished
        .iter()
        .map(|finished| Settlement { job: &finished.job, outcome: finished.outcome.clone() })
        .collect();
    store.with_connection(|conn| {
        let mut report = Report::default();
        let accepted = store.settle(conn, &settlements)?;
        for (finished, accepted) in finished.iter().zip(accepted) {
            let FinishedJob { job, outcome, settled_as, .. } = finished;
            let counted = match settled_as {
                _ if accepted => Some(outcome),
                Some(outcome) => Some(outcome),
                None if may_be_settled => {
                    let found = store.find(conn, &job.queue, job.id)?;
                    was_accepted(job, found.as_ref()).then_some(outcome)
                }
                None => None,
            };
            match counted {
                Some(outcome) => report.record(outcome),
                None => count_refusal(&mut report, job),
            }
        }
        Ok(report)
    })
}

/// Returns whether an outcome of this attempt was accepted, judged by where the job is now.
fn was_accepted(job: &Claim, found: Option<&JobRecord>) -> bool {
    found.is_none_or(|found| match found.state {
        JobState::Running => false,
        state => found.attempt == job.attempt && (state.is_ended() || found.error.is_some()),
    })
}

/// Passes the outcomes of jobs that the transaction of `conn` has taken, and counts the accepted ones.
pub(super) fn settle_in_transaction<S: Store>(
    store: &S,
    conn: &mut S::Conn,
    outcomes: Vec<(Arc<Claim>, Outcome)>,
    report: &mut Report,
) -> Result<(), S::Error> {
    let (jobs, outcomes): (Vec<_>, Vec<_>) = outcomes.into_iter().unzip();
    let settlements: Vec<Settlement<'_>> =
        jobs.iter().zip(outcomes).map(|(job, outcome)| Settlement { job, outcome }).collect();
    let _span = tracing::debug_span!("pq.settle", jobs = settlements.len()).entered();
    let accepted = store.settle(conn, &settlements)?;
    for (settlement, accepted) in settlements.iter().zip(accepted) {
        match accepted {
            true => report.record(&settlement.outcome),
            false => count_refusal(report, settlement.job),
        }
    }
    Ok(())
}

fn count_refusal(report: &mut Report, job: &Claim) {
    tracing::warn!(queue = %job.queue, job_id = %job.id, attempt = job.attempt, "outcome was refused");
    report.lost += 1;
}
