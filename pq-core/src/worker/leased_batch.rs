//! A batch of jobs that are taken under one lease, while no transaction is open.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::batch::Batch;
use super::lease_keeper::log_lost_lease;
use super::prepared_job::PreparedJob;
use super::queue_set::ServedQueue;
use super::run_handler::run_handler;
use super::settling::{SETTLE_WITHIN, give_back_buffer, settle_finished};
use super::status::Report;
use super::thread_slots::{FinishedJob, ThreadSlot};
use super::transactional_batch::MAX_RERUNS;
use super::worker_run::WorkerRun;
use crate::handler::{Context, Entered, HandlerResult, Incoming, Run};
use crate::lock::lock;
use crate::{Claim, Error, Failure, Outcome, Scan, Settlement, Store, StoreError, Taken};

/// The time that a finished job with a serialization key may wait for others to be settled with it.
///
/// Jobs with the same key wait for it. This is checked after each handler; if the next one is slow, the maintenance
/// thread settles.
const SETTLE_KEYED_WITHIN: Duration = Duration::from_millis(2);

/// The interval at which a thread with quick handlers checks that it still holds its lease.
///
/// If the process was suspended, the lease may have expired before the maintenance thread could notice. No job begins
/// under a lease that may expire within this interval, unless an extension confirms the lease.
const CONFIRM_EVERY: Duration = Duration::from_millis(1);

/// The delay before a transactional handler runs again whose transaction the store refused for a reason that may pass.
const RUN_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Takes up to `want` jobs of the queue at `position` under a lease, and runs them.
///
/// Calls `found` before the first handler begins. Does not call it if there is no job.
pub(super) fn run_batch<S: Store>(
    run: &WorkerRun<S>,
    thread: usize,
    position: usize,
    want: usize,
    scan: Scan,
    found: &mut dyn FnMut(),
) -> Result<Batch, S::Error> {
    let served = &run.queues.all[position];
    let taken = {
        let _permit = served.limiter.acquire(want);
        take_under_lease(run, position, want, scan)?
    };
    let Some(lease) = taken.jobs.first().and_then(|job| job.lease()) else {
        return Ok(Batch::empty(taken.next_due));
    };
    found();
    let batch = Batch::of(&taken.jobs);
    served.limited.store(taken.jobs.iter().any(|job| job.limited), Ordering::Relaxed);
    let (slot, mut jobs) = (&run.slots()[thread], taken.jobs);
    if let Some(limit) = batch.lease_limit.filter(|limit| *limit < jobs.len()) {
        // A job that kills its worker must not take more than this many others with it.
        lock(&slot.buffer).extend(jobs.split_off(limit));
        give_back_buffer(slot);
        settle_finished(run, slot);
    }
    lock(&slot.buffer).extend(jobs);
    let (mut begun, mut keyed_since) = (0, None);
    // Reading the clock is a large part of the cost of an empty handler. It is read once for each job.
    let (mut now, mut confirmed_at) = (Instant::now(), None);
    while let Some(job) = next_job(run, slot, now, &mut confirmed_at) {
        begun += 1;
        if job.serialization_key.is_some() {
            keyed_since.get_or_insert(now);
        }
        let finished = run_one(run, slot, position, served.prepare(job), now);
        now = finished.at;
        let mut waiting = lock(&slot.finished);
        waiting.push(finished);
        let is_due = keyed_since.is_some_and(|since| now - since > SETTLE_KEYED_WITHIN)
            || waiting.first().is_some_and(|first| now - first.at > SETTLE_WITHIN);
        drop(waiting);
        if is_due {
            settle_finished(run, slot);
            (now, keyed_since) = (Instant::now(), None);
        }
    }
    settle_finished(run, slot);
    run.leases.remove(lease);
    Ok(Batch { unbegun: batch.taken - begun, ..batch })
}

/// Takes jobs of a queue under a lease, which is extended from then on.
pub(super) fn take_under_lease<S: Store>(
    run: &WorkerRun<S>,
    position: usize,
    want: usize,
    scan: Scan,
) -> Result<Taken, S::Error> {
    let (store, queue, length) = (run.store(), &run.queues.all[position].queue, run.settings.lease);
    let mut asked_at = Instant::now();
    let taken = queue.in_take_span(want, || {
        store.with_connection(|conn| {
            asked_at = Instant::now();
            store.lease(conn, queue.name(), want, length, scan)
        })
    })?;
    if let Some(lease) = taken.jobs.first().and_then(|job| job.lease()) {
        run.leases.insert(lease, length, asked_at);
        run.lease_added();
    }
    Ok(taken)
}

/// Returns the next job to begin.
///
/// If the worker is finishing, the jobs of the buffer are given back. Jobs of a lost lease are skipped. `confirmed_at`
/// is when the lease was last known to be held.
fn next_job<S: Store>(
    run: &WorkerRun<S>,
    slot: &ThreadSlot,
    now: Instant,
    confirmed_at: &mut Option<Instant>,
) -> Option<Arc<Claim>> {
    if run.stop.is_finishing() {
        give_back_buffer(slot);
    }
    loop {
        let job = lock(&slot.buffer).pop_front()?;
        if confirmed_at.is_some_and(|at| now - at < CONFIRM_EVERY) {
            return Some(job);
        }
        if job.lease().is_none_or(|lease| run.leases.confirm(run.store(), lease, now, CONFIRM_EVERY)) {
            *confirmed_at = Some(now);
            return Some(job);
        }
        tracing::warn!(queue = %job.queue, job_id = %job.id, "job was skipped because its lease was lost");
        slot.statistics.add(&job.queue, &Report { lost: 1, ..Report::default() });
    }
}

fn run_one<S: Store>(
    run: &WorkerRun<S>,
    slot: &ThreadSlot,
    position: usize,
    mut prepared: PreparedJob<'_, S>,
    now: Instant,
) -> FinishedJob {
    let served = &run.queues.all[position];
    let context = Context::new(&run.context_access[position], &prepared.incoming, prepared.timeout());
    let lease = prepared.incoming.claim.lease().unwrap_or_default();
    let own_length = prepared.incoming.envelope.as_ref().and_then(|envelope| envelope.duration("lease"));
    if let Some(length) = own_length {
        set_lease_length(run, lease, length);
    }
    let mut committed = None;
    let result = run_handler(run, slot, &prepared, now, &mut |handler| match handler {
        Run::Leased(handler) => {
            let _entered = Entered::enter(|| Arc::clone(context.notes()));
            handler(&context, &prepared.incoming)
        }
        Run::Transactional(handler) => run_in_transaction(run, served, &prepared, handler, &mut committed),
        Run::Asynchronous(_) => Err(Failure::Error("the handler is asynchronous".to_owned())),
    });
    if own_length.is_some() {
        set_lease_length(run, lease, run.settings.lease);
    }
    if run.leases.report_expiry(lease) {
        log_lost_lease(&prepared.incoming.claim);
    }
    let result = prepared.unless_asked_to_end(run, result);
    let (settled_as, checkpoint) = context.take_effects();
    if checkpoint.is_some() {
        // A retry begins with the arguments of the last checkpoint.
        prepared.incoming.envelope = checkpoint;
    }
    let at = Instant::now();
    let attempt = Some(prepared.ended_attempt(&run.clock, now, at));
    let (job, outcome) = prepared.end(run, served, result);
    let settled_as = committed.or(settled_as).map(Box::new);
    FinishedJob { job, outcome, at, attempt, settled_as, notes: context.end_notes() }
}

/// Sets by how much the lease is extended, for a job whose call has a lease length of its own.
pub(super) fn set_lease_length<S: Store>(run: &WorkerRun<S>, lease: i64, length: Duration) {
    if run.leases.set_length(lease, length) {
        run.lease_added();
    }
}

/// The reason why the transaction of a handler is rolled back.
enum Rollback<E> {
    /// The handler ended with this result, and keeps no writes.
    Ended(HandlerResult),
    LeaseLost,
    Store(E),
}

impl<E> From<E> for Rollback<E> {
    fn from(error: E) -> Self {
        Self::Store(error)
    }
}

/// Runs a transactional handler under a lease. Its writes and its job's outcome commit together. After a conflict
/// with another transaction it is run again at once, a few times.
///
/// Sets `committed` to the outcome if they did, or if the connection was lost so that they may have. If the store
/// refuses the transaction for another reason that may pass, the job runs again, and the attempt is not counted.
fn run_in_transaction<S: Store>(
    run: &WorkerRun<S>,
    served: &ServedQueue<S>,
    prepared: &PreparedJob<'_, S>,
    handler: &(dyn Fn(&mut S::Conn, &Incoming) -> HandlerResult + Send + Sync),
    committed: &mut Option<Outcome>,
) -> HandlerResult {
    let (store, incoming, mut reruns) = (run.store(), &prepared.incoming, 0);
    loop {
        let (mut settled_as, mut is_conflict) = (None, false);
        let done: Result<HandlerResult, Rollback<S::Error>> = store.with_connection(|conn| {
            let conflicts = store.conflicts(conn);
            let done = store.transaction_at(conn, prepared.isolation(), |conn| {
                if let Some(timeout) = prepared.timeout() {
                    store.set_statement_timeout(conn, Some(timeout))?;
                }
                let returned = store.with_call_timeout(conn, None, |conn| handler(conn, incoming));
                let returned = match returned.map(Outcome::into_parts) {
                    Ok((outcome, true)) => outcome,
                    Ok((outcome, false)) => return Err(Rollback::Ended(Ok(outcome))),
                    Err(failure) => return Err(Rollback::Ended(Err(failure))),
                };
                if run.is_abandoned() {
                    return Err(Rollback::LeaseLost);
                }
                let (outcome, _) = prepared.outcome_of(run, served, Ok(returned.clone()));
                let settlement = Settlement { job: &incoming.claim, outcome };
                let settlements = std::slice::from_ref(&settlement);
                let parts = settlements.iter().map(Settlement::parts);
                let span = run.pq.settle_span(served.queue.name(), parts);
                let accepted = span.run(|| store.settle(conn, settlements))?;
                settled_as = Some(settlement.outcome);
                if accepted.all() { Ok(Ok(returned)) } else { Err(Rollback::LeaseLost) }
            });
            is_conflict = store.conflicts(conn) != conflicts;
            if let Err(Rollback::Ended(Err(_))) = done {
                // The handler may have failed because the connection was lost. This call then fails, too.
                store.now(conn)?;
            }
            done
        });
        let (result, is_conflict) = match done {
            Ok(result) => {
                *committed = settled_as;
                return result;
            }
            Err(Rollback::Ended(Ok(outcome))) => return Ok(outcome),
            Err(Rollback::Ended(Err(failure))) => (Err(failure), is_conflict),
            Err(Rollback::LeaseLost) => {
                return Err(Failure::Error(Error::lease_lost(incoming.claim.id).to_string()));
            }
            Err(Rollback::Store(error)) if error.is_passing() && !error.is_conflict() => {
                tracing::warn!(job_id = %incoming.claim.id, %error, "transaction was refused; the job will run again");
                // The commit may have succeeded although its answer was lost.
                *committed = settled_as.filter(|_| error.is_unavailable());
                return Ok(Outcome::snooze(RUN_AGAIN_AFTER));
            }
            Err(Rollback::Store(error)) => {
                (Err(Failure::not_kept(&error)), is_conflict || error.is_conflict())
            }
        };
        if !is_conflict || reruns == MAX_RERUNS {
            return result;
        }
        reruns += 1;
        tracing::info!(job_id = %incoming.claim.id, reruns, "handler conflicted with another transaction");
    }
}
