//! Durable steps of leased jobs, and signals for them.

use std::time::Duration;

use super::Connect;
use crate::{Claim, JobId, JobRecord, Payload, SentSignal, StepKind, StepRecord};

/// Keeps the steps of jobs, and the signals that were sent to them.
///
/// Both belong to a job from its put until it completes: while it waits, runs, or is archived as dead or cancelled.
/// After that maintenance deletes them, and so does a put that replaces the job.
pub trait Steps: Connect {
    /// Returns the kept steps of a job, by their positions.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn steps(&self, conn: &mut Self::Conn, job: &JobRecord) -> Result<Vec<StepRecord>, Self::Error>;

    /// Keeps a step of a leased job, in the transaction of the connection.
    ///
    /// It is refused if an outcome of the claim would be refused, and while the transaction is open nobody else
    /// settles the job or returns it to its queue. It is also refused if a step with this position is kept, or the
    /// one before is not.
    ///
    /// # Errors
    ///
    /// The store's error. Nothing was kept.
    fn keep_step(
        &self,
        conn: &mut Self::Conn,
        job: &Claim,
        step: &NewStep<'_>,
    ) -> Result<Keeping, Self::Error>;

    /// Delivers the first signal of the step's name, and keeps its value as the result of the step; or keeps that the
    /// step waits for it, for [`NewStep::after`] from when that was kept first.
    ///
    /// The caller must call it in a transaction. If the answer is [`Keeping::Waits`], it must return the job to its
    /// queue for that time in the same transaction: then each signal that is committed is either delivered here, or
    /// makes the waiting job due.
    ///
    /// It is refused as by [`Steps::keep_step`].
    ///
    /// # Errors
    ///
    /// The store's error. Nothing was kept.
    fn await_signal(
        &self,
        conn: &mut Self::Conn,
        job: &Claim,
        step: &NewStep<'_>,
    ) -> Result<Keeping, Self::Error>;

    /// Deletes the steps of a job from this position on, and returns their number.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn forget_steps(&self, conn: &mut Self::Conn, job: &JobRecord, position: u32)
    -> Result<u64, Self::Error>;

    /// Sends a signal to a job that waits or runs. Returns `false` if there is none with this id.
    ///
    /// It is kept until the job waits for it. If the job waits for one of this name, it is due when the transaction
    /// commits, which notifies as a put does. Signals of one name are delivered in the order in which they were sent.
    ///
    /// # Errors
    ///
    /// The store's error. Nothing was sent.
    fn signal(
        &self,
        conn: &mut Self::Conn,
        job: JobId,
        name: &str,
        value: &Payload,
    ) -> Result<bool, Self::Error>;

    /// Returns the first `count` signals of a job that are not delivered, in the order in which they were sent. Takes
    /// no lock.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn signals(
        &self,
        conn: &mut Self::Conn,
        job: &JobRecord,
        count: usize,
    ) -> Result<Vec<SentSignal>, Self::Error>;
}

/// A step to keep.
#[derive(Clone, Debug)]
pub struct NewStep<'a> {
    /// See [`StepRecord::position`].
    pub position: u32,
    /// [`StepKind::Step`], [`StepKind::Sleep`] or [`StepKind::Waiting`].
    pub kind: StepKind,
    /// See [`StepRecord::name`].
    pub name: &'a str,
    /// The result of a step.
    pub result: Option<Payload>,
    /// The length of a sleep or a wait.
    pub after: Option<Duration>,
}

/// What became of a step that was to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keeping {
    /// It was kept. For a signal this is its value, and `None` if it did not come in time.
    Kept(Option<Payload>),
    /// The signal has not come. The job must wait for this time.
    Waits(Duration),
    /// The claim is not valid. Nothing was changed.
    LeaseLost,
    /// A step with this position is kept, or the one before is not. Nothing was changed.
    OutOfOrder,
}
