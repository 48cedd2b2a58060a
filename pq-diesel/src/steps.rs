//! The steps of jobs, and signals for them.

use diesel::pg::PgConnection;
use pq_core::{ChangeOutcome, JobId, JobRecord, Payload, SentSignal, StepRecord};
use serde::Serialize;

use crate::{Error, Pq};

impl Pq {
    /// Sends a signal to a job that waits or runs. See [`pq_core::Pq::signal`].
    ///
    /// # Errors
    ///
    /// [`pq_core::Error::NotLive`] if no job with this id waits or runs; the other errors of [`pq_core::Pq::signal`];
    /// the database's own.
    pub fn signal<T: Serialize + ?Sized>(&self, id: JobId, name: &str, value: &T) -> Result<(), Error> {
        self.0.signal(id, name, value)
    }

    /// Sends a signal on the caller's connection, inside the caller's transaction. See [`pq_core::Pq::signal_on`].
    ///
    /// In a transaction at REPEATABLE READ or SERIALIZABLE it fails as a conflict if the job went to sleep since the
    /// transaction's snapshot.
    ///
    /// # Errors
    ///
    /// See [`Pq::signal`].
    pub fn signal_on<T: Serialize + ?Sized>(
        &self,
        conn: &mut PgConnection,
        id: JobId,
        name: &str,
        value: &T,
    ) -> Result<(), Error> {
        self.0.signal_on(conn, id, name, value)
    }

    /// Checks the name of a signal and encodes its value. See [`pq_core::Pq::encode_signal`].
    ///
    /// # Errors
    ///
    /// See [`pq_core::Pq::encode_signal`].
    pub fn encode_signal<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Result<Payload, Error> {
        Ok(self.0.encode_signal(name, value)?)
    }

    /// Returns the kept steps of a job, by their positions. See [`pq_core::Pq::steps`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn steps(&self, job: &JobRecord) -> Result<Vec<StepRecord>, Error> {
        self.0.steps(job)
    }

    /// Returns the first `count` signals of a job that are not delivered. See [`pq_core::Pq::signals`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn signals(&self, job: &JobRecord, count: usize) -> Result<Vec<SentSignal>, Error> {
        self.0.signals(job, count)
    }

    /// Forgets a step of a job and all later ones, and makes the job due. See [`pq_core::Pq::retry_from_step`].
    ///
    /// # Errors
    ///
    /// [`pq_core::Error::InvalidSetting`] if the job has no such step; the database's own. Nothing was changed.
    pub fn retry_from_step(&self, id: JobId, step: &str) -> Result<ChangeOutcome, Error> {
        self.0.retry_from_step(id, step)
    }
}
