//! Settling: passing the outcomes of jobs to the store, and counting those that it accepted.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{fmt, mem, thread};

use super::sending_notes::send_last;
use super::statistics::ThreadStatistics;
use super::status::Report;
use super::tally::{EndedAttempt, Tally};
use super::thread_slots::{FinishedJob, SettleRetries, ThreadSlot};
use super::worker_run::WorkerRun;
use crate::incidents::Call;
use crate::lock::lock;
use crate::{Claim, JobRecord, JobState, Outcome, QueueName, Settlement, Store, StoreError};

/// The time that a finished job may wait for others to be settled with it.
pub(super) const SETTLE_WITHIN: Duration = Duration::from_millis(50);

/// Moves the jobs that a thread has not begun to those that it settles next, to be given back.
pub(super) fn give_back_buffer(slot: &ThreadSlot) {
    let unbegun = mem::take(&mut *lock(&slot.buffer));
    let given_back = unbegun.into_iter().map(|job| FinishedJob {
        job,
        outcome: Outcome::GiveBack,
        at: Instant::now(),
        attempt: None,
        settled_as: None,
        notes: None,
    });
    lock(&slot.finished).extend(given_back);
}

/// Settles the leased jobs that a thread has finished.
///
/// While the store refuses for a reason that may pass, for example because it cannot be reached, this tries again. The
/// maintenance thread extends the lease meanwhile. This gives up when the worker aborts and a lease length has passed.
pub(super) fn settle_finished<S: Store>(run: &WorkerRun<S>, slot: &ThreadSlot) {
    settle_all(run, &slot.statistics, &slot.finished, &mut lock(&slot.settling));
}

/// Settles these leased jobs as [`settle_finished`] does, apart from the others of their thread.
pub(super) fn settle_apart<S: Store>(run: &WorkerRun<S>, slot: &ThreadSlot, finished: Vec<FinishedJob>) {
    settle_all(run, &slot.statistics, &Mutex::new(finished), &mut SettleRetries::default());
}

fn settle_all<S: Store>(
    run: &WorkerRun<S>,
    statistics: &ThreadStatistics,
    finished: &Mutex<Vec<FinishedJob>>,
    retries: &mut SettleRetries,
) {
    let began = Instant::now();
    while !pass_outcomes(run, statistics, finished, retries) {
        if run.stop.is_aborting() && began.elapsed() > run.settings.lease {
            for lost in mem::take(&mut *lock(finished)) {
                count_loss(statistics, &lost, &"the worker stopped while the store refused it");
            }
            *retries = SettleRetries::default();
            return;
        }
        let pause = retries.next_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
        thread::sleep(pause);
    }
}

/// Tries once to settle the leased jobs that another thread has finished.
///
/// Does nothing while that thread settles them itself, or soon after the store refused them. Jobs that the store
/// refuses for now stay with the thread.
pub(super) fn settle_for_thread<S: Store>(run: &WorkerRun<S>, slot: &ThreadSlot) {
    if let Ok(mut retries) = slot.settling.try_lock()
        && retries.next_at.is_none_or(|at| at <= Instant::now())
    {
        pass_outcomes(run, &slot.statistics, &slot.finished, &mut retries);
    }
}

/// Passes the outcomes of finished jobs to the store. Returns `false` if some must be passed again.
///
/// If the store refuses several for good, they are passed in two halves, so that one of them does not take the others
/// with it.
fn pass_outcomes<S: Store>(
    run: &WorkerRun<S>,
    statistics: &ThreadStatistics,
    finished: &Mutex<Vec<FinishedJob>>,
    retries: &mut SettleRetries,
) -> bool {
    let passed = mem::take(&mut *lock(finished));
    if run.is_abandoned() {
        passed.iter().for_each(|job| count_loss(statistics, job, &"the worker has ended"));
        return true;
    }
    let Some(first) = passed.first() else { return true };
    send_last(run, &passed);
    // All of them are of one batch, and so of one queue.
    let queue = first.job.queue.clone();
    let mut parts = VecDeque::from([passed]);
    while let Some(mut part) = parts.pop_front() {
        match settle_once(run, &queue, &part, retries.may_be_settled) {
            Ok(tally) => statistics.add_tally(&queue, tally),
            Err(error) if error.is_passing() => {
                retries.may_be_settled |= error.is_unavailable();
                retries.next_at = Some(Instant::now() + retries.backoff.next_pause());
                let mut waiting = lock(finished);
                part.extend(parts.into_iter().flatten().chain(waiting.drain(..)));
                run.incidents.failed(Call::Settle, &error);
                *waiting = part;
                return false;
            }
            Err(error) if part.len() == 1 => part.iter().for_each(|job| count_loss(statistics, job, &error)),
            Err(_) => {
                let half = part.split_off(part.len() / 2);
                parts.push_front(half);
                parts.push_front(part);
            }
        }
    }
    *retries = SettleRetries::default();
    run.incidents.succeeded(Call::Settle);
    true
}

/// Reports an outcome that no try will pass to the store any more. Its job runs again when the lease has expired.
fn count_loss(statistics: &ThreadStatistics, lost: &FinishedJob, error: &dyn fmt::Display) {
    let FinishedJob { job, .. } = lost;
    tracing::warn!(
        queue = %job.queue,
        job_id = %job.id,
        attempt = job.attempt,
        %error,
        "outcome was lost; the job's lease will expire"
    );
    statistics.add(&job.queue, &Report { lost: 1, ..Report::default() });
}

/// Passes the outcomes of leased jobs to the store once, and counts the accepted ones.
///
/// After a lost connection an earlier call may have been committed. With `may_be_settled` the jobs that the store
/// refuses are looked up by id to find out.
fn settle_once<S: Store>(
    run: &WorkerRun<S>,
    queue: &QueueName,
    finished: &[FinishedJob],
    may_be_settled: bool,
) -> Result<Tally, S::Error> {
    let store = run.store();
    let settlements: Vec<Settlement<'_>> = finished
        .iter()
        .map(|finished| Settlement { job: &finished.job, outcome: finished.outcome.clone() })
        .collect();
    let span = run.pq.settle_span(queue, settlements.iter().map(Settlement::parts));
    let settle = |conn: &mut S::Conn| {
        let mut tally = Tally::default();
        let accepted = store.settle(conn, &settlements)?;
        for (finished, accepted) in finished.iter().zip(accepted) {
            let FinishedJob { job, outcome, attempt, settled_as, .. } = finished;
            let counted = match settled_as {
                _ if accepted => Some(outcome),
                Some(outcome) => Some(outcome.as_ref()),
                None if may_be_settled => {
                    let found = store.find(conn, &job.queue, job.id)?;
                    was_accepted(job, found.as_ref()).then_some(outcome)
                }
                None => None,
            };
            match counted {
                Some(outcome) => tally.record(outcome, attempt.as_ref()),
                None => count_refusal(&mut tally.report, job),
            }
        }
        Ok(tally)
    };
    span.run(|| store.with_connection(settle))
}

/// Returns whether an outcome of this attempt was accepted, judged by where the job is now.
fn was_accepted(job: &Claim, found: Option<&JobRecord>) -> bool {
    found.is_none_or(|found| match found.state {
        JobState::Running => false,
        // An attempt whose lease was lost counts as a crash, and that of a lost lease of several jobs does not count.
        state => {
            (found.attempt, found.crashes) == (job.attempt, job.crashes)
                && (state.is_ended() || found.error.is_some())
        }
    })
}

/// A job of a transaction, its outcome, and its attempt if it was begun.
pub(super) type SettledJob = (Arc<Claim>, Outcome, Option<EndedAttempt>);

/// Passes the outcomes of jobs that the transaction of `conn` has taken, and counts the accepted ones.
pub(super) fn settle_in_transaction<S: Store>(
    store: &S,
    conn: &mut S::Conn,
    outcomes: &[SettledJob],
    tally: &mut Tally,
) -> Result<(), S::Error> {
    let settlements: Vec<Settlement<'_>> =
        outcomes.iter().map(|(job, outcome, _)| Settlement { job, outcome: outcome.clone() }).collect();
    let accepted = store.settle(conn, &settlements)?;
    for ((job, outcome, attempt), accepted) in outcomes.iter().zip(accepted) {
        match accepted {
            true => tally.record(outcome, attempt.as_ref()),
            false => count_refusal(&mut tally.report, job),
        }
    }
    Ok(())
}

fn count_refusal(report: &mut Report, job: &Claim) {
    tracing::warn!(queue = %job.queue, job_id = %job.id, attempt = job.attempt, "outcome was refused");
    report.lost += 1;
}
