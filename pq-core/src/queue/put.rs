//! Putting on connections of the handle's own, and turning data into jobs.

use std::borrow::Borrow;

use serde::Serialize;

use super::Queue;
use crate::{CodecError, Error, JobId, NewJob, Payload, Put, PutOptions, Store};

impl<S: Store, T: Serialize> Queue<S, T> {
    /// Adds a job, committed when this returns, and gives its id. Threads that put at the same time may
    /// share a commit.
    ///
    /// # Errors
    ///
    /// [`Error`] where the payload cannot be put; the store's own. Where the connection was lost
    /// while the store committed, the outcome is unknown, and the error says so.
    pub fn put(&self, data: &T) -> Result<JobId, S::Error> {
        self.put_with(data, &PutOptions::new())
    }

    /// Adds a job with these options, as [`Queue::put`] does.
    ///
    /// # Errors
    ///
    /// As [`Queue::put`], and [`Error::InvalidTime`] for an option that cannot be used.
    pub fn put_with(&self, data: &T, options: &PutOptions) -> Result<JobId, S::Error> {
        Ok(self.try_put(data, options)?.id)
    }

    /// As [`Queue::put_with`], and says what was done: with a unique key the job may be there already.
    ///
    /// # Errors
    ///
    /// As [`Queue::put_with`].
    pub fn try_put(&self, data: &T, options: &PutOptions) -> Result<Put, S::Error> {
        let job = self.encode(data, options)?;
        Ok(self.put_now(std::slice::from_ref(&job))?[0])
    }

    /// Adds many jobs at once, all or none, and gives their ids in the same order. Far cheaper than
    /// as many puts.
    ///
    /// # Errors
    ///
    /// As [`Queue::put`]; nothing was added then.
    pub fn put_many<'t>(&self, data: impl IntoIterator<Item = &'t T>) -> Result<Vec<JobId>, S::Error>
    where
        T: 't,
    {
        let jobs = self.encode_all(data)?;
        Ok(ids(self.put_now(&jobs)?))
    }

    /// Adds many jobs at once, each with options of its own, as [`Queue::put_many`] does, and says of
    /// each what was done: with unique keys some may be there already, or twice in the batch.
    ///
    /// # Errors
    ///
    /// As [`Queue::put_with`]; nothing was added then.
    pub fn put_many_with<'t>(
        &self,
        jobs: impl IntoIterator<Item = (&'t T, &'t PutOptions)>,
    ) -> Result<Vec<Put>, S::Error>
    where
        T: 't,
    {
        let jobs = self.encode_all_with(jobs)?;
        self.put_now(&jobs)
    }

    /// Adds all jobs that an iterator gives, all or none, and says how many there were. The cheapest way to put very
    /// many: they are sent as they come and never gathered in memory, and no ids are given back. Others see them
    /// when the last one has been sent.
    ///
    /// ```
    /// # use pq_core::{Pq, Wait, memory::MemoryStore};
    /// # let pq = Pq::new(MemoryStore::new());
    /// let squares = pq.queue("squares")?;
    /// assert_eq!(squares.put_all((1..=1_000).map(|n: u64| n * n))?, 1_000);
    /// # Ok::<(), pq_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Queue::put`]; nothing was added then.
    pub fn put_all(&self, data: impl IntoIterator<Item = impl Borrow<T>>) -> Result<u64, S::Error> {
        self.put_all_now(&mut self.encode_each(data))
    }

    /// Adds all jobs that an iterator gives, each with options of its own, as [`Queue::put_all`] does.
    ///
    /// # Errors
    ///
    /// As [`Queue::put_with`], and [`Error::UniqueKey`] where a job has one; nothing was added then.
    pub fn put_all_with(
        &self,
        jobs: impl IntoIterator<Item = (impl Borrow<T>, impl Borrow<PutOptions>)>,
    ) -> Result<u64, S::Error> {
        self.put_all_now(&mut self.encode_each_with(jobs))
    }

    pub(super) fn encode_each(
        &self,
        data: impl IntoIterator<Item = impl Borrow<T>>,
    ) -> impl Iterator<Item = Result<NewJob, Error>> {
        data.into_iter().map(|data| self.encode_payload(data.borrow()).map(NewJob::new))
    }

    pub(super) fn encode_each_with(
        &self,
        jobs: impl IntoIterator<Item = (impl Borrow<T>, impl Borrow<PutOptions>)>,
    ) -> impl Iterator<Item = Result<NewJob, Error>> {
        jobs.into_iter().map(|(data, options)| {
            let job = self.encode(data.borrow(), options.borrow())?;
            if job.unique.is_some() { Err(Error::UniqueKey) } else { Ok(job) }
        })
    }

    pub(super) fn encode(&self, data: &T, options: &PutOptions) -> Result<NewJob, Error> {
        options.job(self.encode_payload(data)?)
    }

    pub(super) fn encode_all<'t>(&self, data: impl IntoIterator<Item = &'t T>) -> Result<Vec<NewJob>, Error>
    where
        T: 't,
    {
        data.into_iter().map(|data| self.encode_payload(data).map(NewJob::new)).collect()
    }

    pub(super) fn encode_all_with<'t>(
        &self,
        jobs: impl IntoIterator<Item = (&'t T, &'t PutOptions)>,
    ) -> Result<Vec<NewJob>, Error>
    where
        T: 't,
    {
        jobs.into_iter().map(|(data, options)| self.encode(data, options)).collect()
    }

    pub(super) fn encode_payload(&self, data: &T) -> Result<Payload, Error> {
        let refused = |found: serde_json::Error| Error::Encode(CodecError::new(found.to_string()));
        self.encode_json(serde_json::to_string(data).map_err(refused)?)
    }
}

impl<S: Store, T> Queue<S, T> {
    /// Puts on a connection of the handle's own.
    pub(crate) fn put_now(&self, jobs: &[NewJob]) -> Result<Vec<Put>, S::Error> {
        let _span = tracing::debug_span!("pq.put", queue = %self.name, jobs = jobs.len()).entered();
        self.store().put_now(&self.name, jobs)
    }

    /// Puts on this connection.
    pub(crate) fn put_on(&self, conn: &mut S::Conn, jobs: &[NewJob]) -> Result<Vec<Put>, S::Error> {
        let _span = tracing::debug_span!("pq.put", queue = %self.name, jobs = jobs.len()).entered();
        self.store().put(conn, &self.name, jobs)
    }

    fn put_all_now(&self, jobs: &mut dyn Iterator<Item = Result<NewJob, Error>>) -> Result<u64, S::Error> {
        let _span = tracing::debug_span!("pq.put_all", queue = %self.name).entered();
        self.store().put_all_now(&self.name, jobs)
    }

    /// The payload of this JSON, as the queue's codec writes it.
    pub(crate) fn encode_json(&self, json: String) -> Result<Payload, Error> {
        let codec = &self.pq.codec;
        let text = codec.encode(json).map_err(Error::Encode)?;
        if codec.is_identity() {
            Payload::written(text, self.pq.limits)
        } else {
            Payload::new(text, self.pq.limits)
        }
    }
}

/// The ids of what was put.
pub(super) fn ids(put: Vec<Put>) -> Vec<JobId> {
    put.into_iter().map(|put| put.id).collect()
}
