//! The user's side: the handle, its queues, and what they do on whose connection.

mod bound;
mod iter;

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use bound::Bound;
pub use iter::Iter;

use crate::wait::{Look, look_and_wait};
use crate::{
    Codec, Counts, Dead, Error, Job, JobId, Json, NewJob, Payload, PayloadLimits, PutOptions, QueueName,
    RawJob, Stop, Store, Taken, Wait,
};

/// A handle to the queues of one store. Cheap to clone, and usable from many threads at once.
pub struct Pq<S> {
    store: Arc<S>,
    codec: Arc<dyn Codec>,
    limits: PayloadLimits,
    stop: Option<Stop>,
}

impl<S> Clone for Pq<S> {
    fn clone(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            codec: Arc::clone(&self.codec),
            limits: self.limits,
            stop: self.stop.clone(),
        }
    }
}

impl<S: Store> Pq<S> {
    /// A handle to the queues of this store, with JSON as it is and the default limits.
    #[must_use]
    pub fn new(store: S) -> Self {
        Self { store: Arc::new(store), codec: Arc::new(Json), limits: PayloadLimits::default(), stop: None }
    }

    /// The queues named from here on encode and decode their payloads with this codec.
    #[must_use]
    pub fn with_codec(mut self, codec: Arc<dyn Codec>) -> Self {
        self.codec = codec;
        self
    }

    /// The queues named from here on refuse larger payloads than this.
    #[must_use]
    pub fn with_limits(mut self, limits: PayloadLimits) -> Self {
        self.limits = limits;
        self
    }

    /// The waits of the queues named from here on end when `stop` says so.
    #[must_use]
    pub fn with_stop(mut self, stop: &Stop) -> Self {
        self.stop = Some(stop.clone());
        self
    }

    /// The queue of this name, whose payloads are of type `T`. Costs nothing: a queue is there as
    /// soon as it is named.
    ///
    /// Use [`serde_json::Value`] for any JSON, or `Box<serde_json::value::RawValue>` for its text,
    /// byte for byte.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidQueueName`].
    pub fn queue<T>(&self, name: impl AsRef<str>) -> Result<Queue<S, T>, Error> {
        let name = QueueName::new(name)?;
        Ok(Queue { pq: self.clone(), name, payload: PhantomData })
    }

    /// Runs `work` in a transaction on a connection of the handle's own: `Ok` commits, an error or a
    /// panic rolls back. Use [`Queue::on`] with the connection inside of it.
    ///
    /// # Errors
    ///
    /// What `work` returned, or the store's own.
    pub fn transaction<R, E: From<S::Error>>(
        &self,
        work: impl FnOnce(&mut S::Conn) -> Result<R, E>,
    ) -> Result<R, E> {
        self.store.with_connection(|conn| self.store.transaction(conn, work))
    }

    /// The store behind the handle.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.store
    }
}

/// A queue: a named line of jobs. Cheap to clone, and usable from many threads at once.
///
/// Its own methods run on connections of the handle's own. [`Queue::on`] does the same on the
/// caller's connection, inside the caller's transaction.
pub struct Queue<S, T> {
    pq: Pq<S>,
    name: QueueName,
    payload: PhantomData<fn(T) -> T>,
}

impl<S, T> Clone for Queue<S, T> {
    fn clone(&self) -> Self {
        Self { pq: self.pq.clone(), name: self.name.clone(), payload: PhantomData }
    }
}

impl<S: Store, T> Queue<S, T> {
    /// The queue's name.
    #[must_use]
    pub fn name(&self) -> &QueueName {
        &self.name
    }

    /// The same queue with another codec.
    #[must_use]
    pub fn with_codec(mut self, codec: Arc<dyn Codec>) -> Self {
        self.pq.codec = codec;
        self
    }

    /// The same queue, whose waits end when `stop` says so.
    #[must_use]
    pub fn with_stop(mut self, stop: &Stop) -> Self {
        self.pq.stop = Some(stop.clone());
        self
    }

    /// The same queue on this connection: inside its transaction, if it is in one. What is done
    /// there commits or rolls back with what the caller does, and never before.
    pub fn on<'a>(&'a self, conn: &'a mut S::Conn) -> Bound<'a, S, T> {
        Bound::new(self, conn)
    }

    /// Counts the queue's jobs by state. No lock is taken, and none waited for.
    ///
    /// # Errors
    ///
    /// The store's own.
    pub fn counts(&self) -> Result<Counts, S::Error> {
        let store = &*self.pq.store;
        store.with_connection(|conn| store.counts(conn, &self.name))
    }

    /// Deletes every job of the queue that nobody holds, scheduled ones included, and says how many.
    ///
    /// # Errors
    ///
    /// The store's own; nothing was deleted then.
    pub fn clear(&self) -> Result<u64, S::Error> {
        let store = &*self.pq.store;
        store.with_connection(|conn| store.clear(conn, &self.name))
    }

    /// Runs `work` in a transaction, as [`Pq::transaction`] does.
    ///
    /// # Errors
    ///
    /// What `work` returned, or the store's own.
    pub fn transaction<R, E: From<S::Error>>(
        &self,
        work: impl FnOnce(&mut S::Conn) -> Result<R, E>,
    ) -> Result<R, E> {
        self.pq.transaction(work)
    }

    fn store(&self) -> &S {
        &self.pq.store
    }
}

impl<S: Store, T: Serialize> Queue<S, T> {
    /// Adds a job, committed when this returns, and gives its id.
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
        let job = self.encode(data, options)?;
        let ids = self.store().put_now(&self.name, std::slice::from_ref(&job))?;
        Ok(ids[0])
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
        self.store().put_now(&self.name, &jobs)
    }

    /// Adds many jobs at once, each with options of its own, as [`Queue::put_many`] does.
    ///
    /// # Errors
    ///
    /// As [`Queue::put_with`]; nothing was added then.
    pub fn put_many_with<'t>(
        &self,
        jobs: impl IntoIterator<Item = (&'t T, &'t PutOptions)>,
    ) -> Result<Vec<JobId>, S::Error>
    where
        T: 't,
    {
        let jobs = self.encode_all_with(jobs)?;
        self.store().put_now(&self.name, &jobs)
    }

    fn encode(&self, data: &T, options: &PutOptions) -> Result<NewJob, Error> {
        let options = options.checked()?;
        Ok(NewJob {
            payload: self.encode_payload(data)?,
            schedule_at: options.schedule_at,
            expected_at: options.expected_at,
            priority: options.priority,
        })
    }

    fn encode_all<'t>(&self, data: impl IntoIterator<Item = &'t T>) -> Result<Vec<NewJob>, Error>
    where
        T: 't,
    {
        data.into_iter().map(|data| self.encode_payload(data).map(NewJob::new)).collect()
    }

    fn encode_all_with<'t>(
        &self,
        jobs: impl IntoIterator<Item = (&'t T, &'t PutOptions)>,
    ) -> Result<Vec<NewJob>, Error>
    where
        T: 't,
    {
        jobs.into_iter().map(|(data, options)| self.encode(data, options)).collect()
    }

    fn encode_payload(&self, data: &T) -> Result<Payload, Error> {
        let refused = |found: serde_json::Error| Error::Encode(crate::CodecError::new(found.to_string()));
        let json = serde_json::to_string(data).map_err(refused)?;
        let codec = &self.pq.codec;
        let text = codec.encode(json).map_err(Error::Encode)?;
        if codec.is_identity() {
            Payload::written(text, self.pq.limits)
        } else {
            Payload::new(text, self.pq.limits)
        }
    }
}

impl<S: Store, T: DeserializeOwned> Queue<S, T> {
    /// Gets the next job, waiting for one if need be; `None` where none came in time.
    ///
    /// **At most once**: the take is committed before this returns, so a crash after it loses the
    /// job. Use [`Queue::get_with`], or [`Queue::on`] in a transaction, where that matters.
    ///
    /// A job whose payload is no `T` goes dead with the reason, and the next one is looked for.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`] where the handle's [`Stop`] ended the wait; the store's own.
    pub fn get(&self, wait: Wait) -> Result<Option<Job<T>>, S::Error> {
        Ok(self.get_many(1, wait)?.pop())
    }

    /// Gets up to `count` jobs in one round trip, first in line first, waiting until there is at
    /// least one; an empty list where none came in time.
    ///
    /// **At most once**, as [`Queue::get`].
    ///
    /// # Errors
    ///
    /// As [`Queue::get`].
    pub fn get_many(&self, count: usize, wait: Wait) -> Result<Vec<Job<T>>, S::Error> {
        let found = self.wait(wait, || {
            let found = self.take_now(count)?;
            Ok(match found.jobs {
                jobs if jobs.is_empty() => Look::Nothing { next_due: found.next_due },
                jobs => Look::Found(jobs),
            })
        })?;
        Ok(found.unwrap_or_default())
    }

    /// Gets the next job and runs `work` on it, in one transaction: the take, what `work` writes on
    /// the connection and the job's completion commit together or not at all. `None` where no job
    /// came in time. No transaction is open during the wait.
    ///
    /// **Exactly once**, as far as the database is concerned: an error, a panic or a crash puts the
    /// job back at once.
    ///
    /// # Errors
    ///
    /// What `work` returned; [`Error::Stopped`]; the store's own.
    pub fn get_with<R, E: From<S::Error>>(
        &self,
        wait: Wait,
        work: impl FnOnce(&mut S::Conn, Job<T>) -> Result<R, E>,
    ) -> Result<Option<R>, E> {
        self.get_many_with(1, wait, |conn, mut jobs| match jobs.pop() {
            Some(job) => work(conn, job).map(Some),
            None => Ok(None),
        })
        .map(Option::flatten)
    }

    /// Gets up to `count` jobs and runs `work` on them, in one transaction, as [`Queue::get_with`]
    /// does for one.
    ///
    /// # Errors
    ///
    /// As [`Queue::get_with`].
    pub fn get_many_with<R, E: From<S::Error>>(
        &self,
        count: usize,
        wait: Wait,
        work: impl FnOnce(&mut S::Conn, Vec<Job<T>>) -> Result<R, E>,
    ) -> Result<Option<R>, E> {
        let mut work = Some(work);
        let found = self.wait(wait, || {
            let mut started = false;
            let mut failed = None;
            let looked = self.transaction(|conn| {
                let found = self.on(conn).take(count)?;
                let work = match work.take_if(|_| !found.jobs.is_empty()) {
                    Some(work) => work,
                    None => return Ok(Look::Nothing { next_due: found.next_due }),
                };
                started = true;
                work(conn, found.jobs).map(Look::Found).map_err(|error| {
                    // Any error rolls back. This one is dropped below: what `work` said counts.
                    failed = Some(error);
                    S::Error::from(Error::Stopped)
                })
            });
            // Once the work has begun nothing is waited out, a failed commit least of all.
            match (failed, looked) {
                (Some(error), _) => Ok(Look::Found(Err(error))),
                (None, Ok(Look::Found(done))) => Ok(Look::Found(Ok(done))),
                (None, Ok(Look::Nothing { next_due })) => Ok(Look::Nothing { next_due }),
                (None, Err(error)) if started => Ok(Look::Found(Err(error.into()))),
                (None, Err(error)) => Err(error),
            }
        });
        found.map_err(E::from)?.transpose()
    }

    /// Gets up to `count` jobs in one transaction and runs `work` on each in a nested one. Where one
    /// fails, its own writes are rolled back and its job goes back into the line; the others commit.
    /// Gives each job's id with what `work` returned; an empty list where no job came in time.
    ///
    /// # Errors
    ///
    /// The store's own, and then nothing at all has happened; [`Error::Stopped`]. What `work`
    /// returned stands in the list. A panic rolls everything back, and goes on.
    #[allow(clippy::type_complexity)]
    pub fn get_each_with<R, E: From<S::Error>>(
        &self,
        count: usize,
        wait: Wait,
        mut work: impl FnMut(&mut S::Conn, Job<T>) -> Result<R, E>,
    ) -> Result<Vec<(JobId, Result<R, E>)>, S::Error> {
        let done = self.get_many_with(count, wait, |conn, jobs| {
            jobs.into_iter().map(|job| self.on(conn).work_one(job, &mut work)).collect()
        })?;
        Ok(done.unwrap_or_default())
    }

    /// Gets jobs one after the other, for ever: `Ok(None)` says that none came within `wait`, so
    /// that a loop can stop or go on. It ends when the handle's [`Stop`] says so.
    ///
    /// **At most once**, as [`Queue::get`].
    #[must_use]
    pub fn iter(&self, wait: Wait) -> Iter<'_, S, T> {
        Iter::new(self, wait)
    }

    fn wait<R>(
        &self,
        wait: Wait,
        look: impl FnMut() -> Result<Look<R>, S::Error>,
    ) -> Result<Option<R>, S::Error> {
        look_and_wait(self.store(), &self.name, wait, self.pq.stop.as_ref(), look)
    }

    /// Takes on a connection of the handle's own. What cannot be decoded is buried on the way.
    fn take_now(&self, count: usize) -> Result<Decoded<T>, S::Error> {
        loop {
            let taken = self.store().take_now(&self.name, count)?;
            let found = self.decode(taken);
            if !found.dead.is_empty() {
                self.store().with_connection(|conn| self.store().bury(conn, &found.dead))?;
            }
            if !found.jobs.is_empty() || found.dead.is_empty() {
                return Ok(found);
            }
        }
    }

    fn decode(&self, taken: Taken) -> Decoded<T> {
        let mut found = Decoded { jobs: Vec::new(), dead: Vec::new(), next_due: taken.next_due };
        for raw in taken.jobs {
            match self.decode_payload(&raw) {
                Ok(data) => found.jobs.push(Job { data, raw }),
                Err(reason) => {
                    tracing::error!(queue = %raw.queue, id = %raw.id, reason, "a job cannot be decoded; it is dead");
                    found.dead.push(Dead { job: raw, reason });
                }
            }
        }
        found
    }

    fn decode_payload(&self, raw: &RawJob) -> Result<T, String> {
        let json = self.pq.codec.decode(raw.payload.as_str()).map_err(|found| found.to_string())?;
        serde_json::from_str(&json).map_err(|found| unquoted(&found))
    }
}

/// What a take found, decoded.
struct Decoded<T> {
    jobs: Vec<Job<T>>,
    dead: Vec<Dead>,
    next_due: Option<Duration>,
}

/// serde_json's description of what is wrong, without the values that it repeats.
fn unquoted(found: &serde_json::Error) -> String {
    let kind = match found.classify() {
        serde_json::error::Category::Data => "the payload is of another shape than the queue's type",
        serde_json::error::Category::Syntax => "the payload cannot be read as JSON",
        serde_json::error::Category::Eof => "the payload ends too early",
        serde_json::error::Category::Io => "the payload cannot be read",
    };
    format!("{kind}, at line {} column {}", found.line(), found.column())
}
