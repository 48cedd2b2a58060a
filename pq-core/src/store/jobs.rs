//! Adding, taking and settling jobs.

use std::sync::Arc;
use std::time::Duration;

use super::Connect;
use crate::{Claim, Error, Extended, NewJob, Payload, Put, QueueName, Settlement, WakeSignal};

/// The maximum number of jobs of a take that meets jobs with serialization keys.
///
/// Each key may be a lock in the store until the transaction ends. PostgreSQL's lock table is shared by all sessions
/// and has a fixed size, see `max_locks_per_transaction`. A take must not fill it.
pub const MAX_KEYED_TAKE: usize = 512;

/// The bytes of payload, as they are stored, at which a take ends: 16 MiB.
///
/// The job that reaches them is the last one of the take. Without this bound, a take of many large jobs could last
/// longer than their lease and use all memory.
pub const MAX_TAKE_BYTES: usize = 16 << 20;

/// Adds, takes and settles jobs.
pub trait Jobs: Connect {
    /// Keeps a [`WakeSignal`] subscribed until it is dropped.
    type Subscription;

    /// Adds jobs to a queue in one transaction and returns the results in the order of `jobs`.
    ///
    /// # Errors
    ///
    /// The store's error. No job was added, unless the error says that the outcome is unknown.
    fn put(&self, conn: &mut Self::Conn, queue: &QueueName, jobs: &[NewJob])
    -> Result<Vec<Put>, Self::Error>;

    /// Adds all jobs of an iterator and returns their number.
    ///
    /// Jobs are sent as the iterator yields them, without collecting them first. None of them may have a unique key.
    ///
    /// # Errors
    ///
    /// The first error that `jobs` yields, or the store's error. No job was added, and a surrounding transaction can
    /// continue.
    fn put_all(
        &self,
        conn: &mut Self::Conn,
        queue: &QueueName,
        jobs: &mut dyn Iterator<Item = Result<NewJob, Error>>,
    ) -> Result<u64, Self::Error> {
        self.transaction(conn, |conn| {
            let mut count = 0;
            loop {
                let batch: Vec<NewJob> = Iterator::take(&mut *jobs, 1_000).collect::<Result<_, _>>()?;
                if batch.is_empty() {
                    return Ok(count);
                }
                count += self.put(conn, queue, &batch)?.len() as u64;
            }
        })
    }

    /// Takes up to `count` ready jobs of a queue for the transaction of `conn`.
    ///
    /// Takes none after the job with which the payloads reach [`MAX_TAKE_BYTES`]. A store may leave this out if
    /// `count` is at most 8, or while it can be expected to hold fewer bytes.
    ///
    /// # Errors
    ///
    /// The store's error. The end of the transaction returns any job that was taken.
    fn take(
        &self,
        conn: &mut Self::Conn,
        queue: &QueueName,
        count: usize,
        scan: Scan,
    ) -> Result<Taken, Self::Error>;

    /// Takes a job again that an earlier transaction took and returned by its rollback.
    ///
    /// The claim stays the same, so the job can be settled by it. Returns `false` if the job has changed, or if the job
    /// or its serialization key is held by another transaction or lease. A paused queue does not prevent it.
    ///
    /// # Errors
    ///
    /// The errors of [`Jobs::take`].
    fn retake(&self, conn: &mut Self::Conn, job: &Claim) -> Result<bool, Self::Error>;

    /// Takes up to `count` ready jobs under one lease, which expires `lease` after the commit. The bytes are bounded as
    /// by [`Jobs::take`].
    ///
    /// # Errors
    ///
    /// The errors of [`Jobs::take`].
    fn lease(
        &self,
        conn: &mut Self::Conn,
        queue: &QueueName,
        count: usize,
        lease: Duration,
        scan: Scan,
    ) -> Result<Taken, Self::Error>;

    /// Extends the leases to expire `lease` from now, and returns an answer for each that the store still has.
    ///
    /// A lease that is absent from the result has been lost. It never waits for another transaction: a lease that one
    /// has locked is not extended.
    ///
    /// # Errors
    ///
    /// The store's error. Unless it says that the outcome is unknown, no lease was extended.
    fn extend(
        &self,
        conn: &mut Self::Conn,
        leases: &[i64],
        lease: Duration,
    ) -> Result<Vec<Extension>, Self::Error>;

    /// Settles taken jobs and returns for each whether its outcome was accepted.
    ///
    /// An outcome is accepted if its claim is valid. One that is refused changes nothing. A completed job whose end
    /// is awaited ([`crate::Annotations::is_awaited`]) is kept as by [`crate::Outcome::Keep`]. With any outcome but
    /// [`crate::Outcome::Complete`], the job is back in the queue or in the archive when the transaction commits. A
    /// retry, a snooze or a give-back of a job whose cancellation was requested cancels it. A retry and a death are
    /// added to [`crate::JobRecord::attempt_log`].
    ///
    /// # Errors
    ///
    /// The store's error. No outcome was accepted.
    fn settle(&self, conn: &mut Self::Conn, settlements: &[Settlement<'_>]) -> Result<Accepted, Self::Error>;

    /// Replaces the payload of a held job.
    ///
    /// In a transaction the change commits with it: a job that is given back in it carries the new payload. Under a
    /// lease the payload is stored at once, and the next attempt gets it.
    ///
    /// # Errors
    ///
    /// [`Error::NotYours`], [`Error::LeaseLost`], or the store's error.
    fn update(&self, conn: &mut Self::Conn, claim: &Claim, payload: &Payload) -> Result<(), Self::Error>;

    /// Returns a held job to the queue, with its id, times, priority and newest payload.
    ///
    /// Others see it when the transaction commits, which notifies signals as a put does. For a job of a transaction the
    /// take counts as an attempt. For a leased job this settles it with [`crate::Outcome::GiveBack`].
    ///
    /// # Errors
    ///
    /// [`Error::NotYours`], [`Error::LeaseLost`], or the store's error.
    fn give_back(&self, conn: &mut Self::Conn, job: &Claim) -> Result<(), Self::Error>;

    /// Archives taken jobs as dead that no handler can decode, with the reason and the payload as stored.
    ///
    /// Jobs that were taken outside of a transaction are no longer in the queue by then.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn move_to_dead(&self, conn: &mut Self::Conn, jobs: &[Undecodable]) -> Result<(), Self::Error>;

    /// Calls [`Jobs::put`] on a connection of the store's own. The jobs are committed when it returns.
    ///
    /// A store that can put faster when it owns the commit overrides this.
    ///
    /// # Errors
    ///
    /// The errors of [`Jobs::put`] and [`Connect::with_connection`].
    fn put_now(&self, queue: &QueueName, jobs: &[NewJob]) -> Result<Vec<Put>, Self::Error> {
        self.with_connection(|conn| self.put(conn, queue, jobs))
    }

    /// Calls [`Jobs::put_all`] on a connection of the store's own. The jobs are committed when it returns.
    ///
    /// # Errors
    ///
    /// The errors of [`Jobs::put_all`] and [`Connect::with_connection`].
    fn put_all_now(
        &self,
        queue: &QueueName,
        jobs: &mut dyn Iterator<Item = Result<NewJob, Error>>,
    ) -> Result<u64, Self::Error> {
        self.with_connection(|conn| self.put_all(conn, queue, jobs))
    }

    /// Takes jobs on a connection of the store's own and commits: delivery is at most once.
    ///
    /// # Errors
    ///
    /// The errors of [`Jobs::take`] and [`Connect::with_connection`].
    fn take_now(&self, queue: &QueueName, count: usize, scan: Scan) -> Result<Taken, Self::Error> {
        self.with_connection(|conn| self.take(conn, queue, count, scan))
    }

    /// Notifies `signal` of each put to `queue` that commits from now on, until the subscription is dropped.
    ///
    /// A notification is a hint. A superfluous one costs a take, and a lost one costs at most [`Jobs::poll_interval`].
    /// Subscribing cannot fail: a store that cannot listen at the moment polls.
    fn subscribe(&self, queue: &QueueName, signal: &Arc<WakeSignal>) -> Self::Subscription;

    /// Returns the longest time that a wait sleeps between two takes.
    fn poll_interval(&self) -> Duration;
}

/// The answer to the extension of a lease that the store has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extension {
    /// The lease was extended.
    Extended(Extended),
    /// The lease with this token was not extended, because a transaction has locked it.
    ///
    /// That transaction settles the jobs of the lease or requeues them. Its end decides whether the lease is lost, so
    /// the caller must not rely on the lease and must ask again.
    Locked(i64),
}

/// Which settlements were accepted, in the order in which they were passed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a refused outcome changes nothing: the job was lost to another holder"]
pub struct Accepted(Vec<bool>);

impl Accepted {
    /// Creates the answer to settlements, in their order.
    pub fn new(accepted: Vec<bool>) -> Self {
        Self(accepted)
    }

    /// Returns whether all of them were accepted.
    #[must_use]
    pub fn all(&self) -> bool {
        self.0.iter().all(|accepted| *accepted)
    }
}

impl IntoIterator for Accepted {
    type Item = bool;
    type IntoIter = std::vec::IntoIter<bool>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<const N: usize> PartialEq<[bool; N]> for Accepted {
    fn eq(&self, other: &[bool; N]) -> bool {
        self.0 == other
    }
}

/// The part of a queue that a take scans before it reports that no job is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scan {
    /// Scans the whole queue. An empty result means that no job was ready.
    Full,
    /// Lets the store resume its scan, for a caller that polls again.
    ///
    /// If a full scan is expensive, the store may skip jobs that arrived before the position of its last take (a higher
    /// priority, a late commit, a rollback). [`Taken::next_due`] says when it scans them.
    Resume,
}

/// The result of a take.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    /// The jobs, in the order of the queue.
    pub jobs: Vec<Arc<Claim>>,
    /// If there are no jobs: when the next take is due, measured from now on the store's clock. That is when the next
    /// scheduled job falls due, or earlier if the store has another reason to poll again.
    pub next_due: Option<Duration>,
    /// Whether a transaction that had taken one of the jobs before was rolled back.
    ///
    /// Such a rollback leaves no other trace. A worker runs these jobs under a lease, where each attempt counts. Only a
    /// take for a transaction reports it, and it may report it of a job that another transaction had only locked.
    pub rolled_back: bool,
}

/// A taken job that no handler can decode.
#[derive(Clone, Debug)]
pub struct Undecodable {
    /// The job, with its payload as stored.
    pub job: Arc<Claim>,
    /// The error. It does not repeat the payload.
    pub reason: String,
}
