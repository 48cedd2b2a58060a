//! A batch of jobs under one lease.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::context::Context;
use super::queue_set::ServedQueue;
use super::run::Prepared;
use super::shared::{Finished, LeaseState, Shared, lock};
use super::status::{Report, StopMode};
use super::threads::{Batch, backoff};
use crate::task::{Failure, HandlerResult, Incoming, Run};
use crate::{Error, JobStatus, Outcome, RawJob, Scan, Settlement, Store, StoreError};

/// How long an ended job waits for others to be settled with it.
pub(super) const SETTLE_WITHIN: Duration = Duration::from_millis(50);

/// How long it does where others may wait for its key, among handlers that are quicker than this. Where a slow one
/// comes after them the keeper settles them.
const FREE_WITHIN: Duration = Duration::from_millis(2);

/// How often a thread asks whether its lease is still held, among handlers that are quicker than this. The keeper, who
/// finds out, does so less often.
const ASK_EVERY: Duration = Duration::from_millis(1);

/// Takes up to `want` jobs under a lease and works them. `found` is called when there are some, before the first
/// one is begun.
pub(super) fn batch<S: Store>(
    shared: &Arc<Shared<S>>,
    thread: usize,
    position: usize,
    want: usize,
    scan: Scan,
    found: &mut dyn FnMut(),
) -> Result<Batch, S::Error> {
    let (store, served) = (shared.pq.store(), &shared.queues.all[position]);
    let length = shared.settings.lease;
    let taken = {
        let _turn = served.limiter.acquire(thread, want);
        let _span = tracing::debug_span!("pq.take", queue = %served.queue.name(), want).entered();
        store.with_connection(|conn| store.lease(conn, served.queue.name(), want, length, scan))?
    };
    let Some(lease) = taken.jobs.first().and_then(|job| job.claim.lease()) else {
        return Ok(Batch::nothing(taken.next_due));
    };
    found();
    let batch = Batch::of(&taken.jobs);
    let state =
        LeaseState { length, extended: Instant::now(), lost: false, cancel_requested: HashSet::new() };
    lock(&shared.leases).insert(lease, state);
    shared.wake_maintenance();
    let slot = shared.slot(thread);
    shared.signals.totals.buffered.fetch_add(batch.taken as u64, Ordering::Relaxed);
    lock(&slot.buffer).extend(taken.jobs);
    let (mut begun, mut key_since) = (0, None);
    // The clock is read once a job: reading it is much of what a job costs whose handler does nothing.
    let (mut now, mut asked) = (Instant::now(), None);
    while let Some(job) = next(shared, thread, now, &mut asked) {
        begun += 1;
        if job.serialization_key.is_some() {
            key_since.get_or_insert(now);
        }
        let finished = one(shared, thread, position, served.prepare(job), now);
        now = finished.at;
        let mut waiting = lock(&slot.finished);
        waiting.push(finished);
        let due = key_since.is_some_and(|since| now - since > FREE_WITHIN)
            || waiting.first().is_some_and(|first| now - first.at > SETTLE_WITHIN);
        drop(waiting);
        if due {
            settle(shared, thread);
            (now, key_since) = (Instant::now(), None);
        }
    }
    settle(shared, thread);
    lock(&shared.leases).remove(&lease);
    Ok(Batch { given_back: batch.taken - begun, ..batch })
}

/// The next job that is to be begun, now. Those that are not are given back, and those whose lease is lost are
/// somebody else's; `asked` is when it was not.
fn next<S: Store>(
    shared: &Shared<S>,
    thread: usize,
    now: Instant,
    asked: &mut Option<Instant>,
) -> Option<RawJob> {
    if shared.signals.is_ending() {
        give_back(shared, thread);
    }
    loop {
        let job = lock(&shared.slot(thread).buffer).pop_front()?;
        shared.signals.totals.buffered.fetch_sub(1, Ordering::Relaxed);
        if asked.is_some_and(|asked| now - asked < ASK_EVERY) {
            return Some(job);
        }
        if job.claim.lease().is_none_or(|lease| is_held(shared, lease, now)) {
            *asked = Some(now);
            return Some(job);
        }
        tracing::warn!(id = %job.id, "a job is not begun, for its lease is lost");
        shared.signals.totals.add(&Report { lost: 1, ..Report::default() });
    }
}

/// Whether the lease is still held. One that may be over, because this process was asleep say, is asked for first.
fn is_held<S: Store>(shared: &Shared<S>, lease: i64, now: Instant) -> bool {
    let length = match lock(&shared.leases).get(&lease) {
        Some(state) if state.lost => return false,
        Some(state) if now - state.extended >= state.length => state.length,
        _ => return true,
    };
    let store = shared.pq.store();
    let extended: Result<_, S::Error> = store.with_connection(|conn| store.extend(conn, &[lease], length));
    let held = extended.is_ok_and(|extended| !extended.is_empty());
    if let Some(state) = lock(&shared.leases).get_mut(&lease) {
        state.extended = Instant::now();
        state.lost = !held;
    }
    held
}

/// Has what a thread has not begun be given back with what it settles next.
pub(super) fn give_back<S: Store>(shared: &Shared<S>, thread: usize) {
    let slot = shared.slot(thread);
    let unbegun: Vec<RawJob> = lock(&slot.buffer).drain(..).collect();
    shared.signals.totals.buffered.fetch_sub(unbegun.len() as u64, Ordering::Relaxed);
    let given = unbegun.into_iter().map(|job| Finished {
        job: Arc::new(job),
        outcome: Outcome::GiveBack,
        at: Instant::now(),
        settled: false,
    });
    lock(&slot.finished).extend(given);
}

fn one<S: Store>(
    shared: &Arc<Shared<S>>,
    thread: usize,
    position: usize,
    mut prepared: Prepared<'_, S>,
    now: Instant,
) -> Finished {
    let served = &shared.queues.all[position];
    let context = Context::new(shared, position, &prepared.incoming, prepared.timeout());
    let lease = prepared.incoming.raw.claim.lease().unwrap_or_default();
    let own = prepared.incoming.envelope.as_ref().and_then(|envelope| envelope.duration("lease"));
    if let Some(length) = own {
        set_length(shared, lease, length);
    }
    let mut settled = false;
    let ran = shared.run(thread, &prepared, now, &mut |incoming| match &prepared.handler {
        Ok(handler) => match &handler.run {
            Run::Leased(handler) => handler(&context, incoming),
            Run::Transactional(handler) => {
                in_transaction(shared, served, &prepared, incoming, handler, &mut settled)
            }
        },
        Err(failure) => Err(failure.clone()),
    });
    if own.is_some() {
        set_length(shared, lease, shared.settings.lease);
    }
    if let Some(call) = lock(&context.call).take() {
        // A retry begins with what was stored last.
        prepared.incoming.envelope = Some(call);
    }
    let settled = settled || context.settled.load(Ordering::SeqCst);
    let (job, outcome) = prepared.outcome_for(served, ran);
    Finished { job, outcome, at: Instant::now(), settled }
}

/// A job's own lease: the keeper extends by it from now on.
fn set_length<S: Store>(shared: &Shared<S>, lease: i64, length: Duration) {
    if let Some(state) = lock(&shared.leases).get_mut(&lease)
        && state.length != length
    {
        state.length = length;
        state.extended = Instant::now().checked_sub(length).unwrap_or(state.extended);
        shared.wake_maintenance();
    }
}

/// Why a transactional handler's transaction is rolled back.
enum Undo<E> {
    Failed(Failure),
    Lost,
    Store(E),
}

impl<E> From<E> for Undo<E> {
    fn from(error: E) -> Self {
        Self::Store(error)
    }
}

/// A transactional handler of a queue that is leased: its writes and the verdict commit together.
fn in_transaction<S: Store>(
    shared: &Shared<S>,
    served: &ServedQueue<S>,
    prepared: &Prepared<'_, S>,
    incoming: &Incoming,
    handler: &(dyn Fn(&mut S::Conn, &Incoming) -> HandlerResult + Send + Sync),
    settled: &mut bool,
) -> HandlerResult {
    let store = shared.pq.store();
    let done: Result<HandlerResult, Undo<S::Error>> = store.with_connection(|conn| {
        store.transaction(conn, |conn| {
            if let Some(timeout) = prepared.timeout() {
                store.set_statement_timeout(conn, Some(timeout))?;
            }
            let ran = handler(conn, incoming).map_err(Undo::Failed)?;
            let raw = RawJob::clone(&incoming.raw);
            let (job, outcome) = served.prepare(raw).outcome_for(served, Ok(ran.clone()));
            let accepted = store.settle(conn, &[Settlement { job: &job, outcome }])?;
            if accepted.first() == Some(&true) { Ok(Ok(ran)) } else { Err(Undo::Lost) }
        })
    });
    match done {
        Ok(ran) => {
            *settled = true;
            ran
        }
        Err(Undo::Failed(failure)) => Err(failure),
        Err(Undo::Lost) => Err(Failure::Error(Error::lease_lost(incoming.raw.id).to_string())),
        Err(Undo::Store(error)) => Err(Failure::Error(error.to_string())),
    }
}

/// Settles what a thread has finished. It goes on until the store has answered, or until the worker is to stop
/// now and a lease's time has passed: the leases end then.
pub(super) fn settle<S: Store>(shared: &Shared<S>, thread: usize) {
    let finished = std::mem::take(&mut *lock(&shared.slot(thread).finished));
    let Some(first) = finished.first() else { return };
    // They are of one batch, and so of one queue.
    let queue = &first.job.queue;
    let _span = tracing::debug_span!("pq.settle", verdicts = finished.len()).entered();
    let begun = Instant::now();
    let (mut pause, mut unknown) = (backoff::FIRST, false);
    loop {
        match pass(shared, &finished, unknown) {
            Ok(counts) => return shared.signals.totals.add_of(queue, &counts),
            Err(error) if error.is_unavailable() => {
                tracing::warn!(%error, verdicts = finished.len(), "verdicts cannot be passed; the worker tries again");
                unknown = true;
            }
            // One of them may be what the store cannot take.
            Err(_) if finished.len() > 1 => {
                for one in &finished {
                    match pass(shared, std::slice::from_ref(one), true) {
                        Ok(counts) => shared.signals.totals.add_of(queue, &counts),
                        Err(error) => refused(one, &error),
                    }
                }
                return;
            }
            Err(error) => return finished.iter().for_each(|one| refused(one, &error)),
        }
        if shared.signals.mode() == Some(StopMode::Abort) && begun.elapsed() > shared.settings.lease {
            tracing::error!(verdicts = finished.len(), "verdicts were not passed; their leases will end");
            return;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(backoff::MAX);
    }
}

fn refused(one: &Finished, error: &impl std::error::Error) {
    tracing::error!(id = %one.job.id, %error, "a verdict cannot be passed; the job's lease will end");
}

/// Passes the verdicts, and counts what became of them. Where an earlier try may have been accepted without
/// our learning of it, refused ones are looked up by id and attempt.
fn pass<S: Store>(shared: &Shared<S>, finished: &[Finished], unknown: bool) -> Result<Report, S::Error> {
    let store = shared.pq.store();
    let mut counts = Report::default();
    // What the handler settled itself is passed again in case it was rolled back: if not it is refused.
    let verdicts: Vec<Settlement<'_>> =
        finished.iter().map(|one| Settlement { job: &one.job, outcome: one.outcome.clone() }).collect();
    store.with_connection(|conn| {
        let accepted = store.settle(conn, &verdicts)?;
        for (one, accepted) in finished.iter().zip(accepted) {
            let ours = accepted
                || one.settled
                || (unknown
                    && was_accepted(&one.job, store.find(conn, &one.job.queue, one.job.id)?.as_ref()));
            if ours {
                counts.count(&one.outcome);
            } else {
                tracing::warn!(id = %one.job.id, attempt = one.job.attempt, "a verdict came too late");
                counts.lost += 1;
            }
        }
        Ok(counts)
    })
}

/// Whether a verdict on this attempt counts, from where the job is now.
fn was_accepted(job: &RawJob, place: Option<&JobStatus>) -> bool {
    match place {
        None => true,
        Some(JobStatus::Ended(ended)) => ended.attempt == job.attempt,
        Some(JobStatus::Waiting { attempt, error, .. }) => *attempt == job.attempt && error.is_some(),
        Some(JobStatus::Leased { .. }) => false,
    }
}
