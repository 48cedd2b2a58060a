//! What a store of jobs must do: the implementor's side.

use std::sync::Arc;
use std::time::Duration;

use crate::{Bell, Claim, Error, JobId, NewJob, Payload, QueueName, RawJob};

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
///   every [`Bell`] that is subscribed to the queue is rung. A job that any other writer adds by the
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
    /// Keeps a [`Bell`] subscribed while it lives.
    type Subscription;

    /// Adds jobs to a queue, in one transaction, and returns their ids in the order of `jobs`.
    ///
    /// # Errors
    ///
    /// The store's own. Nothing was added then, except where the error says that the outcome is
    /// unknown.
    fn put(
        &self,
        conn: &mut Self::Conn,
        queue: &QueueName,
        jobs: &[NewJob],
    ) -> Result<Vec<JobId>, Self::Error>;

    /// Takes up to `count` ready jobs of a queue.
    ///
    /// # Errors
    ///
    /// The store's own; nothing was taken then that the end of the transaction does not give back.
    fn take(&self, conn: &mut Self::Conn, queue: &QueueName, count: usize) -> Result<Taken, Self::Error>;

    /// Replaces the payload of a job that this transaction holds. It takes effect with the
    /// transaction: whatever is given back in it carries the new payload.
    ///
    /// # Errors
    ///
    /// [`Error::NotYours`], or the store's own.
    fn update(&self, conn: &mut Self::Conn, claim: &Claim, payload: &Payload) -> Result<(), Self::Error>;

    /// Puts a job that this transaction holds back into the line, with its id, its times, its
    /// priority and its newest payload, and rings as a put does. Others see it when the transaction
    /// commits.
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
    fn bury(&self, conn: &mut Self::Conn, jobs: &[Dead]) -> Result<(), Self::Error>;

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
    fn put_now(&self, queue: &QueueName, jobs: &[NewJob]) -> Result<Vec<JobId>, Self::Error> {
        self.with_connection(|conn| self.put(conn, queue, jobs))
    }

    /// [`Store::take`] on a connection of the store's own, committed when it returns: at most once.
    ///
    /// # Errors
    ///
    /// As [`Store::take`] and [`Store::with_connection`].
    fn take_now(&self, queue: &QueueName, count: usize) -> Result<Taken, Self::Error> {
        self.with_connection(|conn| self.take(conn, queue, count))
    }

    /// Has `bell` rung for every put to `queue` that commits after this returns, while the
    /// subscription lives. A ring is a hint: one too many costs a look, and one that is lost costs at
    /// most [`Store::poll_interval`]. It cannot fail; a store that cannot listen now polls.
    fn subscribe(&self, queue: &QueueName, bell: &Arc<Bell>) -> Self::Subscription;

    /// The longest that a wait sleeps between two looks.
    fn poll_interval(&self) -> Duration;
}

/// What the wait loop must know of a store's errors.
pub trait StoreError: std::error::Error + From<Error> + Send + Sync + 'static {
    /// Whether the store could not be reached, or was not ready to serve, so that the same call may
    /// succeed later: a wait goes on then.
    fn is_unavailable(&self) -> bool;
}

/// What a take found.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    /// The jobs, first in line first.
    pub jobs: Vec<RawJob>,
    /// Where there are none: after how long the next waiting job falls due, on the store's clock.
    pub next_due: Option<Duration>,
}

/// A job that can never be worked, and why.
#[derive(Clone, Debug)]
pub struct Dead {
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
    /// Due, and taken by nobody: what Python's `len(queue)` counts.
    pub ready: u64,
    /// Not due yet.
    pub scheduled: u64,
    /// Taken by a Python `pq`, which keeps the row; the outcome is unknown.
    pub dequeued: u64,
    /// Failed for good, and kept with the reason.
    pub dead: u64,
}

impl Counts {
    /// Counts as a store found them.
    #[must_use]
    pub fn new(ready: u64, scheduled: u64, dequeued: u64, dead: u64) -> Self {
        Self { ready, scheduled, dequeued, dead }
    }

    /// Jobs that are still to be worked.
    #[must_use]
    pub fn live(&self) -> u64 {
        self.ready + self.scheduled
    }
}
