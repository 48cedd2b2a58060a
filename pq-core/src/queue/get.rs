//! Taking jobs on the handle's own connections, and decoding their payloads.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::{Iter, Queue};
use crate::incidents::Incidents;
use crate::wait::{Polled, Subscribe, poll_and_wait};
use crate::{Claim, Error, Job, JobId, JobRecord, Scan, Store, Taken, Undecodable, Wait};

impl<S: Store, T: DeserializeOwned> Queue<S, T> {
    /// Takes the next job, waiting for one if necessary. Returns `None` if the wait ended without a job.
    ///
    /// **At most once**: the take is committed before this returns, so a crash afterwards loses the job. If that
    /// matters, use [`Queue::get_with`], [`Queue::lease`], or [`Queue::on`] in a transaction.
    ///
    /// Threads that call this at the same time may share a statement. A job whose payload is not a `T` is archived as
    /// dead, and the next job is taken instead.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`] if a [`crate::CancellationToken`] ended the wait; the store's errors.
    pub fn get(&self, wait: Wait) -> Result<Option<Job<T>>, S::Error> {
        Ok(self.get_many(1, wait)?.pop())
    }

    /// Takes up to `count` jobs in one round trip, in queue order, waiting for the first one if necessary.
    ///
    /// Returns an empty list if the wait ended without a job. **At most once**, as [`Queue::get`]. A list with fewer
    /// jobs does not mean that no more are ready: the list ends with the job with which the payloads have 16 MiB as
    /// stored, and at most 512 are returned at once if some have serialization keys or were scheduled.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::get`].
    pub fn get_many(&self, count: usize, wait: Wait) -> Result<Vec<Job<T>>, S::Error> {
        let found = self.wait(wait, |scan| {
            let found = self.take_now(count, scan)?;
            Ok(match found.jobs {
                jobs if jobs.is_empty() => Polled::Nothing { next_due: found.next_due },
                jobs => Polled::Found(jobs),
            })
        })?;
        Ok(found.unwrap_or_default())
    }

    /// Takes the next job and runs `work` on it, in one transaction.
    ///
    /// The take, what `work` writes on the connection, and the job's completion commit together or not at all. Returns
    /// `None` if the wait ended without a job. No transaction is open during the wait.
    ///
    /// **Exactly once**, for effects in the database: an error, a panic or a crash returns the job to the queue at
    /// once.
    ///
    /// # Errors
    ///
    /// The error of `work`; [`Error::Stopped`]; the store's errors.
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

    /// Takes up to `count` jobs and runs `work` on them, in one transaction, as [`Queue::get_with`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::get_with`].
    pub fn get_many_with<R, E: From<S::Error>>(
        &self,
        count: usize,
        wait: Wait,
        work: impl FnOnce(&mut S::Conn, Vec<Job<T>>) -> Result<R, E>,
    ) -> Result<Option<R>, E> {
        let store = self.store();
        self.take_and_run(count, wait, |conn, jobs| {
            store.with_call_timeout(conn, None, |conn| work(conn, jobs))
        })
    }

    /// Takes up to `count` jobs and runs `work` on them, in one transaction.
    fn take_and_run<R, E: From<S::Error>>(
        &self,
        count: usize,
        wait: Wait,
        work: impl FnOnce(&mut S::Conn, Vec<Job<T>>) -> Result<R, E>,
    ) -> Result<Option<R>, E> {
        let (store, mut work) = (self.store(), Some(work));
        let found = self.wait(wait, |scan| {
            let mut started = false;
            let mut failed = None;
            let take_and_run = |conn: &mut S::Conn| {
                let found = self.on(conn).take(count, scan)?;
                let work = match work.take_if(|_| !found.jobs.is_empty()) {
                    Some(work) => work,
                    None => return Ok(Polled::Nothing { next_due: found.next_due }),
                };
                started = true;
                work(conn, found.jobs).map(Polled::Found).map_err(|error| {
                    // Any error rolls the transaction back. This one is replaced by the error of `work` below.
                    failed = Some(error);
                    S::Error::from(Error::Stopped)
                })
            };
            let polled = store.with_connection(|conn| store.transaction(conn, take_and_run));
            // After `work` has run, an error must not be retried by the wait: the commit may have succeeded.
            match (failed, polled) {
                (Some(error), _) => Ok(Polled::Found(Err(error))),
                (None, Ok(Polled::Found(done))) => Ok(Polled::Found(Ok(done))),
                (None, Ok(Polled::Nothing { next_due })) => Ok(Polled::Nothing { next_due }),
                (None, Err(error)) if started => Ok(Polled::Found(Err(error.into()))),
                (None, Err(error)) => Err(error),
            }
        });
        found.map_err(E::from)?.transpose()
    }

    /// Takes up to `count` jobs in one transaction and runs `work` on each, in a nested transaction of its own.
    ///
    /// If `work` fails for a job, its writes are rolled back and the job is requeued; the others commit. Returns each
    /// job's id with the result of `work`, or an empty list if the wait ended without a job.
    ///
    /// # Errors
    ///
    /// The store's errors; nothing has changed then; [`Error::Stopped`]. Errors of `work` are in the list. A panic
    /// rolls everything back and propagates.
    #[allow(clippy::type_complexity)]
    pub fn get_each_with<R, E: From<S::Error>>(
        &self,
        count: usize,
        wait: Wait,
        mut work: impl FnMut(&mut S::Conn, Job<T>) -> Result<R, E>,
    ) -> Result<Vec<(JobId, Result<R, E>)>, S::Error> {
        let store = self.store();
        let done = self.take_and_run(count, wait, |conn, jobs| -> Result<Vec<_>, S::Error> {
            let mut mark = store.savepoint(conn, None)?;
            let each = jobs.into_iter().map(|job| {
                let raw = Arc::clone(&job.claim);
                let kept = store.with_call_timeout(conn, None, |conn| work(conn, job));
                let kept = kept.and_then(|done| Ok((done, store.savepoint(conn, Some(mark))?)));
                let done = match kept {
                    Ok((done, behind)) => {
                        mark = behind;
                        Ok(done)
                    }
                    Err(error) => {
                        store.rollback_to(conn, mark)?;
                        store.give_back(conn, &raw)?;
                        mark = store.savepoint(conn, Some(mark))?;
                        Err(error)
                    }
                };
                Ok((raw.id, done))
            });
            each.collect()
        })?;
        Ok(done.unwrap_or_default())
    }

    /// Returns an iterator that takes one job after another. **At most once**, as [`Queue::get`].
    ///
    /// An item of `Ok(None)` means that no job came within `wait`. The iterator ends when the handle's
    /// [`crate::CancellationToken`] is cancelled.
    #[must_use]
    pub fn iter(&self, wait: Wait) -> Iter<'_, S, T> {
        Iter::new(self, wait)
    }

    pub(super) fn wait<R>(
        &self,
        wait: Wait,
        poll: impl FnMut(Scan) -> Result<Polled<R>, S::Error>,
    ) -> Result<Option<R>, S::Error> {
        poll_and_wait(
            self.store(),
            Subscribe::Puts(std::slice::from_ref(&self.name)),
            wait,
            self.pq.cancellation_token.as_ref(),
            &Incidents::default(),
            poll,
        )
    }

    /// Takes jobs on a connection of the handle. Jobs that cannot be decoded are archived as dead.
    fn take_now(&self, count: usize, scan: Scan) -> Result<Decoded<T>, S::Error> {
        loop {
            let taken = self.in_take_span(count, || self.store().take_now(&self.name, count, scan))?;
            let found = self.decode(taken);
            if !found.dead.is_empty() {
                self.store().with_connection(|conn| self.store().move_to_dead(conn, &found.dead))?;
            }
            if !found.jobs.is_empty() || found.dead.is_empty() {
                return Ok(found);
            }
        }
    }

    /// Decodes the jobs of a take. Logs those that cannot be decoded.
    pub fn decode(&self, taken: Taken) -> Decoded<T> {
        let mut found = Decoded { jobs: Vec::new(), dead: Vec::new(), next_due: taken.next_due };
        for raw in taken.jobs {
            match self.decode_payload(&raw) {
                Ok(data) => found.jobs.push(Job { data, claim: raw }),
                Err(reason) => {
                    tracing::error!(queue = %raw.queue, id = %raw.id, reason, "job undecodable, archived as dead");
                    found.dead.push(Undecodable { job: raw, reason });
                }
            }
        }
        found
    }

    fn decode_payload(&self, raw: &Claim) -> Result<T, String> {
        let json = self.json_of(raw)?;
        serde_json::from_str(&json).map_err(|found| unquoted(&found))
    }

    /// Decodes the payload of a job, or returns the reason why it cannot be decoded.
    pub(crate) fn decoded(&self, raw: &Arc<Claim>) -> Result<Job<T>, String> {
        Ok(Job { data: self.decode_payload(raw)?, claim: Arc::clone(raw) })
    }
}

impl<S: Store, T> Queue<S, T> {
    /// Decodes the payload of a job into JSON with the queue's codec.
    pub(crate) fn json_of<'j>(&self, raw: &'j JobRecord) -> Result<Cow<'j, str>, String> {
        self.pq.codec.decode(raw.payload.as_str()).map_err(|found| found.to_string())
    }
}

/// The result of a take, decoded.
#[derive(Debug)]
pub struct Decoded<T> {
    /// The jobs, in queue order.
    pub jobs: Vec<Job<T>>,
    /// The jobs that cannot be decoded. They must be archived as dead.
    pub dead: Vec<Undecodable>,
    /// When the next scheduled job is due, if there was no job to take.
    pub next_due: Option<Duration>,
}

/// Describes a decoding error without the values of the payload, which serde_json's own text repeats.
fn unquoted(found: &serde_json::Error) -> String {
    let kind = match found.classify() {
        serde_json::error::Category::Data => "the payload does not match the queue's type",
        serde_json::error::Category::Syntax => "the payload is not valid JSON",
        serde_json::error::Category::Eof => "the payload ends too early",
        serde_json::error::Category::Io => "the payload cannot be read",
    };
    format!("{kind}, at line {} column {}", found.line(), found.column())
}
