//! What a leased handler can ask and do while it runs.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::incoming::Incoming;
use super::isolation::Isolation;
use super::job_notes::{JobNotes, OpenNotes};
use super::policy::Policy;
use super::steps::StepSequence;
use crate::envelope::{Arguments, Envelope};
use crate::lease_table::LeaseTable;
use crate::lock::lock;
use crate::stop::StopSignal;
use crate::store::Extension;
use crate::{
    CancellationToken, Claim, CodecError, Error, Failure, JobSpan, LogLevel, LogLine, NewNotes, Outcome,
    Payload, Pq, Progress, Queue, Settlement, Store, Trace,
};

/// The part of a running worker that the contexts of one queue's handlers share.
pub(crate) struct ContextAccess<S: Store> {
    pub(crate) pq: Pq<S>,
    pub(crate) queue: Queue<S, ()>,
    pub(crate) leases: Arc<LeaseTable>,
    pub(crate) notes: Arc<OpenNotes>,
    pub(crate) stop: Arc<StopSignal>,
}

/// A leased handler's view of its job.
///
/// The worker extends the lease while the handler runs. A handler that runs for long must ask
/// [`Context::should_stop`] from time to time and return early if it says so.
///
/// If the process crashes, the lease expires, and another worker begins the next attempt. To write to the database
/// exactly once, complete the job in the same transaction with [`Context::complete_with`].
pub struct Context<S: Store> {
    pub(crate) access: Arc<ContextAccess<S>>,
    pub(super) job: Arc<Claim>,
    trace: Trace,
    is_task: bool,
    deadline: Option<Instant>,
    settled_as: Mutex<Option<Outcome>>,
    /// The task's call with the arguments of the last checkpoint.
    checkpoint: Mutex<Option<Envelope>>,
    pub(super) steps: Mutex<StepSequence>,
    /// Exists once the handler has asked for it.
    token: OnceLock<CancellationToken>,
    /// Exists once something was noted.
    notes: OnceLock<Arc<JobNotes>>,
    /// The policy of the handler, for [`Context::outcome_of`]. `None` for a blocking one.
    policy: Option<Policy>,
}

/// A checkpoint that is not stored yet. Created by [`Context::encode_checkpoint`].
#[derive(Debug)]
pub struct Checkpoint {
    payload: Payload,
    call: Option<Envelope>,
}

impl Checkpoint {
    /// Returns the payload to store.
    #[must_use]
    pub fn payload(&self) -> &Payload {
        &self.payload
    }
}

impl<S: Store> fmt::Debug for Context<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { job, trace, is_task, deadline, .. } = self;
        f.debug_struct("Context")
            .field("job", job)
            .field("trace", trace)
            .field("is_task", is_task)
            .field("deadline", deadline)
            .finish_non_exhaustive()
    }
}

impl<S: Store> Context<S> {
    pub(crate) fn new(
        access: &Arc<ContextAccess<S>>,
        incoming: &Incoming,
        timeout: Option<Duration>,
    ) -> Self {
        Self {
            access: Arc::clone(access),
            job: Arc::clone(&incoming.claim),
            trace: incoming.claim.annotations.trace(),
            is_task: incoming.envelope.is_some(),
            deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            settled_as: Mutex::default(),
            checkpoint: Mutex::default(),
            steps: Mutex::default(),
            token: OnceLock::new(),
            notes: OnceLock::new(),
            policy: None,
        }
    }

    /// Creates the context of an asynchronous handler.
    pub(crate) fn with_policy(
        access: &Arc<ContextAccess<S>>,
        incoming: &Incoming,
        timeout: Option<Duration>,
        policy: &Policy,
    ) -> Self {
        Self { policy: Some(policy.clone()), ..Self::new(access, incoming, timeout) }
    }

    /// Returns the outcome with which a job is settled whose asynchronous handler returned this one.
    ///
    /// For a handler that settles its job in a transaction of its own, as [`Context::settle_with`] does: completed
    /// jobs are kept if the task says so, and a retry is bounded by the task's retries.
    #[must_use]
    pub fn outcome_of(&self, outcome: Outcome) -> Outcome {
        let Some(policy) = &self.policy else { return outcome };
        match outcome {
            Outcome::Complete if policy.keep_history || self.job.annotations.is_awaited() => {
                Outcome::Keep { result: None }
            }
            Outcome::Retry { after, error, payload } => {
                let queue = &self.access.queue;
                let call = queue.json_of(&self.job).and_then(|json| Envelope::read(&json));
                let envelope = call.ok().filter(|_| self.is_task);
                let incoming = Incoming { claim: Arc::clone(&self.job), envelope };
                policy.after_failure(queue, &incoming, &Failure::Error(error), Some((after, payload)))
            }
            outcome => outcome,
        }
    }

    /// Returns the isolation level that the task asks for. See [`crate::Task::isolation`].
    ///
    /// For an asynchronous handler that begins a transaction.
    #[must_use]
    pub fn isolation(&self) -> Isolation {
        self.policy.as_ref().map_or(Isolation::ReadCommitted, |policy| policy.isolation)
    }

    /// Returns the job with its encoded payload.
    #[must_use]
    pub fn job(&self) -> &Claim {
        &self.job
    }

    /// Returns the trace context in which the job was put. It is empty if the program that put it had none.
    #[must_use]
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Returns whether the handler should return early.
    ///
    /// If the worker is stopping, the handler can return [`Outcome::GiveBack`] or an error: the job is ready again at
    /// once, and the attempt is not counted.
    ///
    /// That is so if [`Context::is_cancelled`], [`Context::is_timed_out`], [`Context::is_lease_lost`] or
    /// [`Context::is_aborting`] returns `true`.
    #[must_use]
    pub fn should_stop(&self) -> bool {
        self.is_cancelled() || self.is_timed_out() || self.is_lease_lost() || self.is_aborting()
    }

    /// Returns a token that is cancelled when [`Context::should_stop`] becomes true, within a tenth of a second.
    ///
    /// For an asynchronous handler, which can wait for it. It is not cancelled by a timeout, because the handler's
    /// future is dropped then.
    #[must_use]
    pub fn cancellation_token(&self) -> CancellationToken {
        self.token.get_or_init(CancellationToken::new).clone()
    }

    /// Cancels the token if the handler has asked for it and should stop.
    pub(crate) fn cancel_if_stopped(&self) {
        if let Some(token) = self.token.get()
            && !token.is_cancelled()
            && self.should_stop()
        {
            token.cancel();
        }
    }

    /// Returns whether cancellation of the job was requested.
    ///
    /// The worker learns of a request when it extends the lease, which is within two seconds. A retry, a
    /// snooze or [`Outcome::GiveBack`] then cancels the job.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.lease().is_some_and(|lease| self.access.leases.is_cancel_requested(lease, self.job.id))
    }

    /// Returns whether the handler has exceeded its timeout. The attempt has failed then, whatever the handler returns.
    #[must_use]
    pub fn is_timed_out(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Returns whether the lease was lost, or must be assumed to be lost.
    ///
    /// That is so if the store has answered that it no longer has the lease, or if the worker could not extend the
    /// lease before it must have expired, for example because it cannot reach the store. Another worker may run the
    /// job, and the store may refuse this attempt's outcome. It is not so while a transaction has the lease locked,
    /// such as the one in which the handler calls [`Context::complete_with`].
    #[must_use]
    pub fn is_lease_lost(&self) -> bool {
        self.lease().is_some_and(|lease| self.access.leases.is_lost(lease))
    }

    /// Returns whether the worker was stopped with [`crate::StopMode::Abort`].
    #[must_use]
    pub fn is_aborting(&self) -> bool {
        self.access.stop.is_aborting()
    }

    /// Notes how many units of work are done, of how many, and what the handler does.
    ///
    /// It is shown with the job by the library ([`Pq::progress`]), the command and the dashboard. `total` is 0 if the
    /// number is unknown, and `note` can be empty. The worker stores the newest one at most once a second and at the
    /// end of the attempt, in a thread of its own, so a call takes less than a microsecond and a handler can call
    /// this in a loop. The next attempt begins without progress.
    ///
    /// A crash loses what was noted within the last second or so. Nothing is stored after the lease was lost.
    pub fn progress(&self, done: u64, total: u64, note: &str) {
        self.notes().set_progress(Progress::new(done, total, note));
    }

    /// Adds a line to the log of the job, at [`LogLevel::Info`].
    ///
    /// The log is kept with the job, through retries, and with its archive ([`Pq::log`]). The newest 64 KiB of it are
    /// kept, and of a line the first 8 KiB. The worker stores lines at most once a second and at the end of the
    /// attempt, before its outcome.
    ///
    /// A crash loses the lines of the last second or so. Nothing is stored after the lease was lost, or after the
    /// handler has settled its job by [`Context::settle_with`].
    pub fn log(&self, text: impl AsRef<str>) {
        self.log_at(LogLevel::Info, text);
    }

    /// Adds a line to the log of the job, as [`Context::log`] does.
    pub fn log_at(&self, level: LogLevel, text: impl AsRef<str>) {
        self.notes().log(level, text.as_ref());
    }

    /// Returns the notes of the attempt, which are created now if there are none.
    pub(crate) fn notes(&self) -> &Arc<JobNotes> {
        self.notes.get_or_init(|| JobNotes::new(&self.job, &self.access.notes))
    }

    /// Stores what the attempt has noted by `write`, in the transaction that settles the job.
    ///
    /// For a handler that settles its job in a transaction of its own, other than by [`Context::settle_with`]. If
    /// that is rolled back, the notes are stored at the end of the attempt.
    #[must_use]
    pub fn held_back_notes(&self) -> Option<(Vec<LogLine>, Option<Progress>)> {
        self.notes.get()?.hold_back()
    }

    /// Corrects the cost of the job ([`crate::PutOptions::cost`]) when it is known, in tokens. Committed when this
    /// returns.
    ///
    /// The buckets of the queue and of the job's group are debited or credited by the difference, once for the
    /// attempt: a later call replaces the cost, and the same one changes nothing. A bucket can owe tokens then, and
    /// later jobs wait for them. The next attempt takes what the put has stated. Without a rate nothing is done. In a
    /// transaction of your own use [`crate::BoundQueue::correct_cost`].
    ///
    /// # Errors
    ///
    /// [`Error::InvalidAnnotation`] for a cost above 1,000,000; [`Error::LeaseLost`] if the lease has expired or the
    /// job is settled; the store's errors. Nothing was changed.
    pub fn cost(&self, tokens: u32) -> Result<(), S::Error> {
        let pq = &self.access.pq;
        pq.store().with_connection(|conn| pq.correct_cost(conn, &self.job, tokens))
    }

    /// Extends the lease at once.
    ///
    /// The worker extends it while the handler runs. Call this before a step that must not run twice, to be sure that
    /// the lease is still held.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`] if the lease has expired. [`Error::LeaseLocked`] if an open transaction settles the job and
    /// does not end within half a second; the lease was not extended then. The store's errors.
    pub fn extend_lease(&self) -> Result<(), S::Error> {
        let id = self.job.id;
        let lease = self.lease().ok_or_else(|| Error::lease_lost(id))?;
        match self.access.leases.extend_now(self.access.pq.store(), lease)? {
            Some(Extension::Extended(_)) => Ok(()),
            Some(Extension::Locked(_)) => Err(Error::lease_locked(id).into()),
            None => Err(Error::lease_lost(id).into()),
        }
    }

    /// Completes the job in the caller's transaction, on the caller's connection.
    ///
    /// The caller's writes and the completion commit together. What the handler returns has no effect then. If the
    /// transaction is rolled back, the handler's result holds.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`] if the lease has expired. Return it from the transaction, so that it is rolled back: the
    /// next attempt does the work. The store's errors.
    pub fn complete_with(&self, conn: &mut S::Conn) -> Result<(), S::Error> {
        self.settle_with(conn, Outcome::Complete)
    }

    /// Settles the job with any outcome in the caller's transaction. See [`Context::complete_with`].
    ///
    /// # Errors
    ///
    /// See [`Context::complete_with`].
    pub fn settle_with(&self, conn: &mut S::Conn, outcome: Outcome) -> Result<(), S::Error> {
        if let Some((lines, progress)) = self.held_back_notes() {
            let notes = [NewNotes { job: &self.job, lines: &lines, progress: progress.as_ref() }];
            let _are_refused_with_the_outcome = self.access.pq.store().write_notes(conn, &notes, true)?;
        }
        let settlement = Settlement { job: &self.job, outcome };
        let settlements = std::slice::from_ref(&settlement);
        let accepted =
            self.settle_span(settlements).run(|| self.access.pq.store().settle(conn, settlements))?;
        if !accepted.all() {
            return Err(Error::lease_lost(self.job.id).into());
        }
        self.note_settled(settlement.outcome);
        Ok(())
    }

    /// Creates the span of a settlement in a transaction of the handler's own.
    #[must_use]
    pub fn settle_span(&self, settlements: &[Settlement<'_>]) -> JobSpan {
        self.access.pq.settle_span(&self.job.queue, settlements.iter().map(Settlement::parts))
    }

    /// Notes that the handler settled the job in a transaction of its own, other than by [`Context::settle_with`].
    pub fn note_settled(&self, outcome: Outcome) {
        *lock(&self.settled_as) = Some(outcome);
    }

    /// Returns whether the handler has settled the job in a transaction of its own.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        lock(&self.settled_as).is_some()
    }

    /// Replaces the job's payload at once, and commits. The next attempt begins with it.
    ///
    /// For a task it replaces the arguments.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put`] for the payload; [`Error::LeaseLost`] if the lease has expired; the store's errors.
    pub fn checkpoint<T: Serialize>(&self, data: &T) -> Result<(), S::Error> {
        let checkpoint = self.encode_checkpoint(data)?;
        let store = self.access.pq.store();
        store.with_connection(|conn| store.update(conn, &self.job, &checkpoint.payload))?;
        self.note_checkpoint(checkpoint);
        Ok(())
    }

    /// Notes that a checkpoint was stored, other than by [`Context::checkpoint`].
    pub fn note_checkpoint(&self, checkpoint: Checkpoint) {
        *lock(&self.checkpoint) = checkpoint.call;
    }

    /// Encodes a checkpoint without storing it.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put`] for the payload.
    pub fn encode_checkpoint<T: Serialize>(&self, data: &T) -> Result<Checkpoint, Error> {
        let json =
            serde_json::to_string(data).map_err(|found| Error::Encode(CodecError::new(found.to_string())))?;
        let queue = &self.access.queue;
        let mut call = None;
        if self.is_task {
            let read = queue.json_of(&self.job).and_then(|json| Envelope::read(&json));
            let mut changed = read.map_err(|reason| Error::Encode(CodecError::new(reason)))?;
            changed.set_arguments(Arguments::of(&json))?;
            call = Some(changed);
        }
        let payload = queue.encode_json(call.as_ref().map_or(Ok(json), Envelope::to_json)?)?;
        Ok(Checkpoint { payload, call })
    }

    /// Runs `work` in a transaction on a connection of the worker's handle, for example to call
    /// [`Context::complete_with`].
    ///
    /// # Errors
    ///
    /// The error of `work`, which rolls the transaction back; the store's errors.
    pub fn transaction<R, E: From<S::Error>>(
        &self,
        work: impl FnOnce(&mut S::Conn) -> Result<R, E>,
    ) -> Result<R, E> {
        self.access.pq.transaction(work)
    }

    fn lease(&self) -> Option<i64> {
        self.job.lease()
    }

    /// Returns the outcome with which the handler settled the job, and the call of its last checkpoint.
    pub(crate) fn take_effects(&self) -> (Option<Outcome>, Option<Envelope>) {
        (lock(&self.settled_as).take(), lock(&self.checkpoint).take())
    }

    /// Ends the attempt's notes, and returns them if some are not stored yet.
    pub(crate) fn end_notes(&self) -> Option<Arc<JobNotes>> {
        self.notes.get().filter(|notes| notes.end()).map(Arc::clone)
    }
}
