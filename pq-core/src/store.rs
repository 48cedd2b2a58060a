//! What a store of jobs must do: the implementor's side.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::{
    Cancelled, Claim, Cron, CronEntry, Ended, EndedAs, Error, Extended, Filter, Heartbeat, HeartbeatReply,
    JobId, JobStatus, Listed, MaintenanceReport, NewJob, Overview, Payload, Put, QueueName, RawJob,
    Retention, Settlement, StopMode, WakeSignal, WorkerId, WorkerInfo,
};

/// Where jobs are kept.
///
/// Every method that reads or writes jobs gets the connection to do it on. The caller's transaction
/// is therefore the connection that the caller passes: a store never commits what a caller began.
///
/// # Contract
///
/// The `conformance` suite holds a store to all of this.
///
/// - **Atomicity.** A method on a connection inside a transaction takes effect if and only if that
///   transaction commits, and a nested one only if all around it do. On a connection outside of any,
///   each call is a transaction of its own: it takes effect whole or not at all.
/// - **Put.** The jobs get ascending ids in the order given. They are seen by nobody else before
///   their transaction commits, and by the transaction itself at once. At the commit, not before,
///   every [`WakeSignal`] that is subscribed to the queue is rung. A job that any other writer adds by the
///   store's own means (plain SQL, say) counts as put.
/// - **Take.** Returns the first ready jobs, at most as many as asked for, in order: higher priority,
///   then earlier `expected_at` with those without one last, then lower id. A job is ready when it is
///   due (`schedule_at` is absent or has come, on the store's clock at the moment of the call, not at
///   the beginning of the transaction) and nobody holds it. What others hold is passed over and never
///   waited for. No job is ever returned to two holders, and none is held that is not returned.
///   A taken job is gone when the transaction commits, and back in its place, for everybody, as soon
///   as it is rolled back; also when its connection or its process dies.
/// - **Claims.** The [`Claim`] of a taken job proves that the transaction holds it. [`Store::update`]
///   and [`Store::give_back`] refuse a claim whose transaction has ended or that has been given back,
///   with [`Error::NotYours`], and change nothing then.
/// - **Leases.** A job that was taken by [`Store::lease`] is held after the commit, until its verdict
///   or until a [`Store::maintain`] finds its lease over. A verdict counts while the claim is good: until
///   then, and once. From the sweep on the job is anyone's, and nothing from the old claim is accepted.
/// - **Serialization keys.** Of the jobs of a queue that share one, at most one is held at any time: by
///   a transaction that has not ended, or by a lease. Nobody waits for it. When it ends the key's first
///   job in line is ready, and signals are rung as for a put.
/// - **Unique keys.** Of the jobs of a queue that share one, at most one waits or is held by a lease.
///   Puts decide it one after the other, also in a batch and when they are made at once.
/// - **Clocks.** Only the store's clock decides what is due.
/// - **Foreign rows.** What other writers stored must not stop a take, whatever it is.
///
/// Nothing in the trait needs a transaction to stay open while a caller sleeps: a wait is made of
/// takes and of [`Store::subscribe`].
pub trait Store: Send + Sync + 'static {
    /// What transactions run on.
    type Conn;
    /// What can go wrong, the errors of the core included.
    type Error: StoreError;
    /// Keeps a [`WakeSignal`] subscribed while it lives.
    type Subscription;
    /// How far a transaction had come.
    type Savepoint: Copy;

    /// Adds jobs to a queue, in one transaction, and answers in the order of `jobs`.
    ///
    /// # Errors
    ///
    /// The store's own. Nothing was added then, except where the error says that the outcome is
    /// unknown.
    fn put(&self, conn: &mut Self::Conn, queue: &QueueName, jobs: &[NewJob])
    -> Result<Vec<Put>, Self::Error>;

    /// Adds all jobs that `jobs` gives, as [`Store::put`] does, and says how many there were. They are taken from
    /// the iterator as they are sent and not gathered before. None of them has a unique key.
    ///
    /// # Errors
    ///
    /// The first that `jobs` gives; the store's own. Nothing was added then, and a transaction around it can go on.
    fn put_all(
        &self,
        conn: &mut Self::Conn,
        queue: &QueueName,
        jobs: &mut dyn Iterator<Item = Result<NewJob, Error>>,
    ) -> Result<u64, Self::Error> {
        self.transaction(conn, |conn| {
            let mut count = 0;
            loop {
                let some: Vec<NewJob> = Iterator::take(&mut *jobs, 1_000).collect::<Result<_, _>>()?;
                if some.is_empty() {
                    return Ok(count);
                }
                count += self.put(conn, queue, &some)?.len() as u64;
            }
        })
    }

    /// Takes up to `count` ready jobs of a queue.
    ///
    /// # Errors
    ///
    /// The store's own; nothing was taken then that the end of the transaction does not give back.
    fn take(
        &self,
        conn: &mut Self::Conn,
        queue: &QueueName,
        count: usize,
        scan: Scan,
    ) -> Result<Taken, Self::Error>;

    /// Has this transaction hold a job again that an earlier one took and gave back by its rollback: with the claim
    /// that it had, for its verdict. `false` where it is not as it was, and where somebody else holds it by now, or its
    /// serialization key. A pause is no reason.
    ///
    /// # Errors
    ///
    /// As [`Store::take`].
    fn retake(&self, conn: &mut Self::Conn, job: &RawJob) -> Result<bool, Self::Error>;

    /// Takes as [`Store::take`] does, under one lease for all: the jobs are yours for this long after
    /// the commit, and then anyone's.
    ///
    /// # Errors
    ///
    /// As [`Store::take`].
    fn lease(
        &self,
        conn: &mut Self::Conn,
        queue: &QueueName,
        count: usize,
        lease: Duration,
        scan: Scan,
    ) -> Result<Taken, Self::Error>;

    /// Has these leases end this long from now. One that is missing from the answer is lost.
    ///
    /// # Errors
    ///
    /// The store's own.
    fn extend(
        &self,
        conn: &mut Self::Conn,
        leases: &[i64],
        lease: Duration,
    ) -> Result<Vec<Extended>, Self::Error>;

    /// Passes verdicts on taken jobs, and says of each whether it was accepted: whether the claim was
    /// still good. A refused one changes nothing. Jobs that end otherwise than by
    /// [`crate::Outcome::Complete`] are back in the line, or in the archive, when the transaction
    /// commits. A retry or a give-back of a job that somebody wants cancelled cancels it.
    ///
    /// # Errors
    ///
    /// The store's own; none was accepted then.
    fn settle(&self, conn: &mut Self::Conn, verdicts: &[Settlement<'_>]) -> Result<Vec<bool>, Self::Error>;

    /// Where a job of the queue is; `None` where it is done and nothing was kept, or was never there.
    ///
    /// # Errors
    ///
    /// The store's own.
    fn find(
        &self,
        conn: &mut Self::Conn,
        queue: &QueueName,
        id: JobId,
    ) -> Result<Option<JobStatus>, Self::Error>;

    /// Cancels a job that waits, or has the holder of its lease told.
    ///
    /// # Errors
    ///
    /// The store's own.
    fn cancel(&self, conn: &mut Self::Conn, queue: &QueueName, id: JobId) -> Result<Cancelled, Self::Error>;

    /// The queue's jobs that ended so, the last first, at most `count` and only those before `before`
    /// in that order (by end, then id) if it is given.
    ///
    /// # Errors
    ///
    /// The store's own.
    fn archived(
        &self,
        conn: &mut Self::Conn,
        queue: &QueueName,
        ended: EndedAs,
        before: Option<&Ended>,
        count: usize,
    ) -> Result<Vec<Ended>, Self::Error>;

    /// Puts jobs of the archive back into the line, due at once, under their ids and with their
    /// attempts counted from the beginning: those of these ids, dead or cancelled, or where none are
    /// given all dead ones. One whose unique key is in use stays. Says how many went back.
    ///
    /// # Errors
    ///
    /// The store's own.
    fn requeue(
        &self,
        conn: &mut Self::Conn,
        queue: &QueueName,
        ids: Option<&[JobId]>,
    ) -> Result<u64, Self::Error>;

    /// Removes from the archive what ended so, longer than `age` ago, and says how many.
    ///
    /// # Errors
    ///
    /// The store's own.
    fn prune(
        &self,
        conn: &mut Self::Conn,
        queue: &QueueName,
        ended: EndedAs,
        age: Duration,
    ) -> Result<u64, Self::Error>;

    /// Does for all queues what is due, some at a time: returns the jobs of leases that are over, prunes the archive by
    /// these bounds, and forgets workers that have not been heard of for long. Any process may call it, as often as it
    /// likes: `None` says that another one is at it. Its connection is in no transaction.
    ///
    /// # Errors
    ///
    /// The store's own.
    fn maintain(
        &self,
        conn: &mut Self::Conn,
        retention: &Retention,
    ) -> Result<Option<MaintenanceReport>, Self::Error>;

    /// Replaces the payload of a job that is held. In a transaction it takes effect with that:
    /// whatever is given back in it carries the new payload. Under a lease it is stored at once, and
    /// whoever takes the job after this attempt gets it.
    ///
    /// # Errors
    ///
    /// [`Error::NotYours`] or [`Error::LeaseLost`], or the store's own.
    fn update(&self, conn: &mut Self::Conn, claim: &Claim, payload: &Payload) -> Result<(), Self::Error>;

    /// Puts a job that this transaction holds back into the line, with its id, its times, its
    /// priority and its newest payload, and rings as a put does. Others see it when the transaction
    /// commits. The take counts as an attempt. Of a leased job it is [`crate::Outcome::GiveBack`].
    ///
    /// # Errors
    ///
    /// [`Error::NotYours`], or the store's own.
    fn give_back(&self, conn: &mut Self::Conn, job: &RawJob) -> Result<(), Self::Error>;

    /// Keeps jobs that were taken and can never be worked, with the reason and their payload as it
    /// was stored: they are dead. Where they were got outside of a transaction they are already gone
    /// from the line.
    ///
    /// # Errors
    ///
    /// The store's own.
    fn move_to_dead(&self, conn: &mut Self::Conn, jobs: &[Undecodable]) -> Result<(), Self::Error>;

    /// Counts a queue's jobs by state, without a lock.
    ///
    /// # Errors
    ///
    /// The store's own.
    fn counts(&self, conn: &mut Self::Conn, queue: &QueueName) -> Result<Counts, Self::Error>;

    /// Deletes every job of a queue that nobody holds, whatever its state, and returns how many.
    /// Dead jobs stay.
    ///
    /// # Errors
    ///
    /// The store's own; nothing was deleted then.
    fn clear(&self, conn: &mut Self::Conn, queue: &QueueName) -> Result<u64, Self::Error>;

    /// The store's clock, at the moment of the call.
    ///
    /// # Errors
    ///
    /// The store's own.
    fn now(&self, conn: &mut Self::Conn) -> Result<DateTime<Utc>, Self::Error>;

    /// Pauses a queue, or has it go on, and says whether it was otherwise before. Nobody takes a job of a paused
    /// queue; what is held already is not touched. Going on rings as a put does. A pause knows nothing of other
    /// writers' own ways to take (Python's, say).
    ///
    /// # Errors
    ///
    /// The store's own.
    fn pause(&self, conn: &mut Self::Conn, queue: &QueueName, paused: bool) -> Result<bool, Self::Error>;

    /// The numbers of every queue that has a job, live or kept, or that is paused, by name.
    ///
    /// # Errors
    ///
    /// The store's own.
    fn overview(&self, conn: &mut Self::Conn) -> Result<Vec<Overview>, Self::Error>;

    /// Jobs with all that is known of them, by number: the first `count` that the filter lets through.
    ///
    /// # Errors
    ///
    /// The store's own.
    fn list(&self, conn: &mut Self::Conn, filter: &Filter, count: usize) -> Result<Vec<Listed>, Self::Error>;

    /// Moves jobs that nobody holds from one queue to another, with all they have: those of these ids, or
    /// where none are given all. One whose unique key is in use there stays. Says how many went.
    ///
    /// # Errors
    ///
    /// The store's own; none went then.
    fn move_jobs(
        &self,
        conn: &mut Self::Conn,
        from: &QueueName,
        to: &QueueName,
        ids: Option<&[JobId]>,
    ) -> Result<u64, Self::Error>;

    /// Notes what a worker tells of itself, and tells it whether it is to stop.
    ///
    /// # Errors
    ///
    /// The store's own.
    fn heartbeat(&self, conn: &mut Self::Conn, beat: &Heartbeat) -> Result<HeartbeatReply, Self::Error>;

    /// Forgets a worker that has ended.
    ///
    /// # Errors
    ///
    /// The store's own.
    fn deregister(&self, conn: &mut Self::Conn, worker: WorkerId) -> Result<(), Self::Error>;

    /// The workers that are known, by number.
    ///
    /// # Errors
    ///
    /// The store's own.
    fn workers(&self, conn: &mut Self::Conn) -> Result<Vec<WorkerInfo>, Self::Error>;

    /// Has a worker be told at its next beat to stop; a mode that is not sterner than one before changes nothing.
    /// `false` where no such worker is known.
    ///
    /// # Errors
    ///
    /// The store's own.
    fn stop_worker(
        &self,
        conn: &mut Self::Conn,
        worker: WorkerId,
        mode: StopMode,
    ) -> Result<bool, Self::Error>;

    /// Sets a periodic job whose next tick is `next_at`, in place of the one of its name if there is one: then
    /// the answer is `false`. It is not paused.
    ///
    /// # Errors
    ///
    /// The store's own.
    fn set_cron(
        &self,
        conn: &mut Self::Conn,
        cron: &Cron,
        next_at: Option<DateTime<Utc>>,
    ) -> Result<bool, Self::Error>;

    /// The periodic jobs, by name.
    ///
    /// # Errors
    ///
    /// The store's own.
    fn crons(&self, conn: &mut Self::Conn) -> Result<Vec<CronEntry>, Self::Error>;

    /// Removes a periodic job; `false` where there is none of the name. Jobs that it has put stay.
    ///
    /// # Errors
    ///
    /// The store's own.
    fn remove_cron(&self, conn: &mut Self::Conn, name: &str) -> Result<bool, Self::Error>;

    /// Pauses a periodic job, or has it go on with this tick; `false` where there is none of the name.
    ///
    /// # Errors
    ///
    /// The store's own.
    fn pause_cron(
        &self,
        conn: &mut Self::Conn,
        name: &str,
        paused: bool,
        next_at: Option<DateTime<Utc>>,
    ) -> Result<bool, Self::Error>;

    /// The periodic jobs that are due, for the transaction that fires them: nobody else is given them until it
    /// ends, and nobody waits.
    ///
    /// # Errors
    ///
    /// The store's own.
    fn due_crons(&self, conn: &mut Self::Conn) -> Result<Vec<CronEntry>, Self::Error>;

    /// Notes the last tick of a periodic job for which a job was put, and the next.
    ///
    /// # Errors
    ///
    /// The store's own.
    fn advance_cron(
        &self,
        conn: &mut Self::Conn,
        name: &str,
        last_at: Option<DateTime<Utc>>,
        next_at: Option<DateTime<Utc>>,
    ) -> Result<(), Self::Error>;

    /// Runs `work` in a transaction on `conn`, or in a nested one if it is in one already. `Ok`
    /// commits; an error rolls back, and so does a panic, which then goes on. The connection can be
    /// used again after all three.
    ///
    /// # Errors
    ///
    /// What `work` returned, or the store's own where the transaction could not begin or commit.
    fn transaction<R, E: From<Self::Error>>(
        &self,
        conn: &mut Self::Conn,
        work: impl FnOnce(&mut Self::Conn) -> Result<R, E>,
    ) -> Result<R, E>;

    /// Marks how far the transaction that `conn` is in has come, in place of `earlier`, which is given up. For many
    /// steps, each of which is to be undone alone, in about half the round trips of a nested transaction for each.
    ///
    /// # Errors
    ///
    /// The store's own, also where a statement since `earlier` has failed in a way that no other can follow: then
    /// `earlier` is still good for [`Store::rollback_to`], and the transaction can go on after it.
    fn savepoint(
        &self,
        conn: &mut Self::Conn,
        earlier: Option<Self::Savepoint>,
    ) -> Result<Self::Savepoint, Self::Error>;

    /// [`Store::savepoint`], and [`Store::set_statement_timeout`] for what follows it and for what follows an undo to it, in as many round
    /// trips as the mark alone if the store can.
    ///
    /// # Errors
    ///
    /// As [`Store::savepoint`].
    fn savepoint_and_timeout(
        &self,
        conn: &mut Self::Conn,
        earlier: Option<Self::Savepoint>,
        limit: Option<Duration>,
    ) -> Result<Self::Savepoint, Self::Error> {
        self.set_statement_timeout(conn, limit)?;
        self.savepoint(conn, earlier)
    }

    /// Undoes what the transaction has done since the mark, nested ones that were left open included. The mark stays.
    ///
    /// # Errors
    ///
    /// The store's own.
    fn rollback_to(&self, conn: &mut Self::Conn, mark: Self::Savepoint) -> Result<(), Self::Error>;

    /// Lends a connection of the store's own, outside of any transaction.
    ///
    /// # Errors
    ///
    /// What `work` returned; [`Error::NoConnection`] where the store has none; the store's own where
    /// none could be had.
    fn with_connection<R, E: From<Self::Error>>(
        &self,
        work: impl FnOnce(&mut Self::Conn) -> Result<R, E>,
    ) -> Result<R, E>;

    /// [`Store::put`] on a connection of the store's own, committed when it returns. A store that
    /// can do better when it owns the commit does it here.
    ///
    /// # Errors
    ///
    /// As [`Store::put`] and [`Store::with_connection`].
    fn put_now(&self, queue: &QueueName, jobs: &[NewJob]) -> Result<Vec<Put>, Self::Error> {
        self.with_connection(|conn| self.put(conn, queue, jobs))
    }

    /// [`Store::put_all`] on a connection of the store's own, committed when it returns.
    ///
    /// # Errors
    ///
    /// As [`Store::put_all`] and [`Store::with_connection`].
    fn put_all_now(
        &self,
        queue: &QueueName,
        jobs: &mut dyn Iterator<Item = Result<NewJob, Error>>,
    ) -> Result<u64, Self::Error> {
        self.with_connection(|conn| self.put_all(conn, queue, jobs))
    }

    /// [`Store::take`] on a connection of the store's own, committed when it returns: at most once.
    ///
    /// # Errors
    ///
    /// As [`Store::take`] and [`Store::with_connection`].
    fn take_now(&self, queue: &QueueName, count: usize, scan: Scan) -> Result<Taken, Self::Error> {
        self.with_connection(|conn| self.take(conn, queue, count, scan))
    }

    /// Has `signal` rung for every put to `queue` that commits after this returns, while the
    /// subscription lives. A ring is a hint: one too many costs a look, and one that is lost costs at
    /// most [`Store::poll_interval`]. It cannot fail; a store that cannot listen now polls.
    fn subscribe(&self, queue: &QueueName, signal: &Arc<WakeSignal>) -> Self::Subscription;

    /// A number that grows whenever something is done on this connection, if the store can tell: what
    /// nobody has touched need not be protected by a nested transaction.
    fn activity(&self, conn: &mut Self::Conn) -> Option<u64> {
        let _ = conn;
        None
    }

    /// Has statements of the transaction that is open on the connection end with an error after so long, if
    /// the store can; `None` for as long as they like. An undo to a mark undoes that as well, and the commit is none.
    ///
    /// # Errors
    ///
    /// The store's own.
    fn set_statement_timeout(
        &self,
        conn: &mut Self::Conn,
        limit: Option<Duration>,
    ) -> Result<(), Self::Error> {
        let _ = (conn, limit);
        Ok(())
    }

    /// The longest that a wait sleeps between two looks.
    fn poll_interval(&self) -> Duration;
}

/// What waits and workers must know of a store's errors.
pub trait StoreError: std::error::Error + From<Error> + Send + Sync + 'static {
    /// Whether the store could not be reached, or was not ready to serve, so that the same call may
    /// succeed later: a wait goes on then.
    fn is_unavailable(&self) -> bool;

    /// Whether the transaction could not be had beside another one, so that it may succeed if it is run again: a
    /// worker does so, and counts no failure.
    fn is_conflict(&self) -> bool {
        false
    }
}

/// How much of a queue a take scans before it reports that nothing is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// Scans the whole queue. An empty result means that no job was ready.
    Full,
    /// Lets the store resume its scan, for a caller that polls again.
    ///
    /// If a full scan is expensive, the store may skip jobs that arrived before the position of its last take (a higher
    /// priority, a late commit, a rollback). [`Taken::next_due`] says when it scans them.
    Resume,
}

/// What a take found.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    /// The jobs, first in line first.
    pub jobs: Vec<RawJob>,
    /// Where there are none: after how long the next waiting job falls due, on the store's clock, or it is worth
    /// looking again for another reason.
    pub next_due: Option<Duration>,
}

/// A job that can never be worked, and why.
#[derive(Clone, Debug)]
pub struct Undecodable {
    /// The job, with its payload as it was stored.
    pub job: RawJob,
    /// Why. It does not repeat the payload.
    pub reason: String,
}

/// A queue's jobs by state, as one snapshot sees them: what a transaction under way holds counts as
/// what it was before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Due, and taken by nobody: what Python's `len(queue)` counts. Those that wait for their
    /// serialization key are among them.
    pub ready: u64,
    /// Not due yet.
    pub scheduled: u64,
    /// Held under a lease.
    pub leased: u64,
    /// Taken by a Python `pq`, which keeps the row; the outcome is unknown.
    pub dequeued: u64,
    /// In the archive: failed for good.
    pub dead: u64,
    /// In the archive: cancelled.
    pub cancelled: u64,
    /// In the archive: done, where history is kept.
    pub done: u64,
}

impl Counts {
    /// Jobs that are still to be worked, or are being worked under a lease.
    #[must_use]
    pub fn live(&self) -> u64 {
        self.ready + self.scheduled + self.leased
    }
}
