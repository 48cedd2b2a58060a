//! Enqueueing on the handle's own connections, and encoding data into jobs.

use std::borrow::Borrow;

use serde::Serialize;

use super::Queue;
use crate::annotations::Noted;
use crate::{Annotations, CodecError, Error, NewJob, Payload, Put, PutOptions, Store};

impl<S: Store, T: Serialize> Queue<S, T> {
    /// Enqueues a job.
    ///
    /// The job is committed when this returns. Threads that put at the same time may share a commit. To enqueue in a
    /// transaction of your own, use [`Queue::on`].
    ///
    /// `data` is a `&T`, or any reference that a `T` can be borrowed as: a `&str` for a `Queue<String>`.
    ///
    /// ```
    /// # use pq_core::{Pq, PutOutcome, memory::MemoryStore};
    /// # let pq = Pq::new(MemoryStore::new());
    /// let apples = pq.queue::<String>("apples")?;
    /// let put = apples.put("Granny Smith")?;
    /// assert_eq!(put.outcome, PutOutcome::Added);
    /// # Ok::<(), pq_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// An [`Error`] if the payload is refused; nothing was sent then. Otherwise the store's error. If the connection
    /// was lost during the commit, the outcome is unknown, and the error says so.
    pub fn put<Q: Serialize + ?Sized>(&self, data: &Q) -> Result<Put, S::Error>
    where
        T: Borrow<Q>,
    {
        self.put_with(data, &PutOptions::new())
    }

    /// Enqueues a job with options, as [`Queue::put`] does.
    ///
    /// With a unique key the job may exist already: [`Put::outcome`] says what was done.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put`], and [`Error::InvalidTime`], [`Error::InvalidKey`] or
    /// [`Error::InvalidAnnotation`] for an invalid option.
    pub fn put_with<Q: Serialize + ?Sized>(&self, data: &Q, options: &PutOptions) -> Result<Put, S::Error>
    where
        T: Borrow<Q>,
    {
        self.put_one(|| self.encode(data, options))
    }

    /// Enqueues many jobs in one round trip, all or none, and returns their ids in the same order.
    ///
    /// Is much faster than one call of [`Queue::put`] for each job. For more jobs than fit in memory, use
    /// [`Queue::put_all`].
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put`]; no job was added then.
    pub fn put_many(&self, data: impl IntoIterator<Item = impl Borrow<T>>) -> Result<Vec<Put>, S::Error> {
        self.put_now(|| self.encode_each(data).collect::<Result<Vec<_>, _>>())
    }

    /// Enqueues many jobs, each with its own options, as [`Queue::put_many`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put_with`]; no job was added then.
    pub fn put_many_with(
        &self,
        jobs: impl IntoIterator<Item = (impl Borrow<T>, impl Borrow<PutOptions>)>,
    ) -> Result<Vec<Put>, S::Error> {
        self.put_now(|| self.encode_each_with(jobs).collect::<Result<Vec<_>, _>>())
    }

    /// Enqueues all jobs of an iterator, all or none, and returns their number.
    ///
    /// This is the fastest way to enqueue very many jobs. They are streamed to the store, never collected in memory,
    /// and their ids are not returned. Other sessions see them when the last one has been sent.
    ///
    /// ```
    /// # use pq_core::{Pq, memory::MemoryStore};
    /// # let pq = Pq::new(MemoryStore::new());
    /// let squares = pq.queue("squares")?;
    /// assert_eq!(squares.put_all((1..=1_000).map(|n: u64| n * n))?, 1_000);
    /// # Ok::<(), pq_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put`]; no job was added then.
    pub fn put_all(&self, data: impl IntoIterator<Item = impl Borrow<T>>) -> Result<u64, S::Error> {
        self.put_all_now(|| self.encode_each(data))
    }

    /// Enqueues all jobs of an iterator, each with its own options, as [`Queue::put_all`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put_with`], and [`Error::UniqueKey`] if a job has a unique key; no job was added then.
    pub fn put_all_with(
        &self,
        jobs: impl IntoIterator<Item = (impl Borrow<T>, impl Borrow<PutOptions>)>,
    ) -> Result<u64, S::Error> {
        self.put_all_now(|| self.encode_each_with(jobs))
    }

    /// Encodes the payloads of jobs that are put in the trace context of the caller.
    ///
    /// For a crate that puts jobs on connections of its own, as [`Queue::encode`].
    pub fn encode_each(
        &self,
        data: impl IntoIterator<Item = impl Borrow<T>>,
    ) -> impl Iterator<Item = Result<NewJob, Error>> {
        // A trace context alone violates no rule.
        let annotations =
            Annotations::new(Noted { trace: self.trace(), ..Noted::default() }).unwrap_or_default();
        data.into_iter().map(move |data| {
            let payload = self.encode_payload::<T>(data.borrow())?;
            Ok(NewJob { annotations: annotations.clone(), ..NewJob::new(payload) })
        })
    }

    /// Encodes jobs, each with its own options, as [`Queue::encode_each`] does.
    pub fn encode_each_with(
        &self,
        jobs: impl IntoIterator<Item = (impl Borrow<T>, impl Borrow<PutOptions>)>,
    ) -> impl Iterator<Item = Result<NewJob, Error>> {
        jobs.into_iter().map(|(data, options)| self.encode::<T>(data.borrow(), options.borrow()))
    }

    /// Encodes a job without enqueueing it.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put_with`] that are not the store's.
    pub fn encode<Q: Serialize + ?Sized>(&self, data: &Q, options: &PutOptions) -> Result<NewJob, Error> {
        options.job(self.encode_payload(data)?, self.trace())
    }

    /// Encodes the payload of a job.
    ///
    /// # Errors
    ///
    /// An [`Error`] if the payload is refused.
    pub fn encode_payload<Q: Serialize + ?Sized>(&self, data: &Q) -> Result<Payload, Error> {
        let refused = |found: serde_json::Error| Error::Encode(CodecError::new(found.to_string()));
        self.encode_json(serde_json::to_string(data).map_err(refused)?)
    }
}

impl<S: Store, T> Queue<S, T> {
    /// Encodes one job, and enqueues it on a connection of the handle.
    pub(crate) fn put_one(&self, encode: impl FnOnce() -> Result<NewJob, Error>) -> Result<Put, S::Error> {
        Ok(self.put_now(|| encode().map(|job| [job]))?[0])
    }

    /// Encodes jobs, and enqueues them on a connection of the handle.
    pub(crate) fn put_now<J: AsRef<[NewJob]>>(
        &self,
        encode: impl FnOnce() -> Result<J, Error>,
    ) -> Result<Vec<Put>, S::Error> {
        self.put_in_span(encode, |jobs| self.store().put_now(&self.name, jobs))
    }

    /// Streams jobs to a connection of the handle. Refuses unique keys, since no job's outcome is returned.
    pub(crate) fn put_all_now<I: Iterator<Item = Result<NewJob, Error>>>(
        &self,
        encode: impl FnOnce() -> I,
    ) -> Result<u64, S::Error> {
        self.put_all_in_span(encode, |jobs| self.store().put_all_now(&self.name, jobs))
    }

    /// Encodes JSON into a payload with the queue's codec.
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
