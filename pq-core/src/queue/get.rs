//! Getting and working on connections of the handle's own, and turning what was taken into data.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::{Iter, Queue};
use crate::wait::{Look, look_and_wait};
use crate::{Error, Job, JobId, RawJob, Scan, Store, Taken, Undecodable, Wait};

impl<S: Store, T: DeserializeOwned> Queue<S, T> {
    /// Gets the next job, waiting for one if need be; `None` where none came in time.
    ///
    /// **At most once**: the take is committed before this returns, so a crash after it loses the
    /// job. Use [`Queue::get_with`], or [`Queue::on`] in a transaction, where that matters. Threads that
    /// get at the same time may share a statement, and no job goes to two of them.
    ///
    /// A job whose payload is no `T` goes dead with the reason, and the next one is looked for.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`] where the handle's [`crate::CancellationToken`] ended the wait; the store's own.
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
        let found = self.wait(wait, |scan| {
            let found = self.take_now(count, scan)?;
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
        let found = self.wait(wait, |scan| {
            let mut started = false;
            let mut failed = None;
            let looked = self.transaction(|conn| {
                let found = self.on(conn).take(count, scan)?;
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
        let store = self.store();
        let done = self.get_many_with(count, wait, |conn, jobs| -> Result<Vec<_>, S::Error> {
            let mut mark = store.savepoint(conn, None)?;
            let each = jobs.into_iter().map(|job| {
                let raw = Arc::clone(&job.raw);
                let kept = work(conn, job).and_then(|done| Ok((done, store.savepoint(conn, Some(mark))?)));
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

    /// Gets jobs one after the other, for ever: `Ok(None)` says that none came within `wait`, so
    /// that a loop can stop or go on. It ends when the handle's [`crate::CancellationToken`] says so.
    ///
    /// **At most once**, as [`Queue::get`].
    #[must_use]
    pub fn iter(&self, wait: Wait) -> Iter<'_, S, T> {
        Iter::new(self, wait)
    }

    pub(super) fn wait<R>(
        &self,
        wait: Wait,
        look: impl FnMut(Scan) -> Result<Look<R>, S::Error>,
    ) -> Result<Option<R>, S::Error> {
        look_and_wait(self.store(), std::slice::from_ref(&self.name), wait, self.pq.stop.as_ref(), look)
    }

    /// Takes on a connection of the handle's own. What cannot be decoded is buried on the way.
    fn take_now(&self, count: usize, scan: Scan) -> Result<Decoded<T>, S::Error> {
        loop {
            let taken = self.store().take_now(&self.name, count, scan)?;
            let found = self.decode(taken);
            if !found.dead.is_empty() {
                self.store().with_connection(|conn| self.store().move_to_dead(conn, &found.dead))?;
            }
            if !found.jobs.is_empty() || found.dead.is_empty() {
                return Ok(found);
            }
        }
    }

    pub(super) fn decode(&self, taken: Taken) -> Decoded<T> {
        let mut found = Decoded { jobs: Vec::new(), dead: Vec::new(), next_due: taken.next_due };
        for raw in taken.jobs {
            match self.decode_payload(&raw) {
                Ok(data) => found.jobs.push(Job { data, raw: Arc::new(raw) }),
                Err(reason) => {
                    tracing::error!(queue = %raw.queue, id = %raw.id, reason, "a job cannot be decoded; it is dead");
                    found.dead.push(Undecodable { job: raw, reason });
                }
            }
        }
        found
    }

    fn decode_payload(&self, raw: &RawJob) -> Result<T, String> {
        let json = self.json_of(raw)?;
        serde_json::from_str(&json).map_err(|found| unquoted(&found))
    }

    /// The job with its payload decoded, or why that cannot be.
    pub(crate) fn decoded(&self, raw: &Arc<RawJob>) -> Result<Job<T>, String> {
        Ok(Job { data: self.decode_payload(raw)?, raw: Arc::clone(raw) })
    }
}

impl<S: Store, T> Queue<S, T> {
    /// The JSON that the job carries, as the queue's codec reads it.
    pub(crate) fn json_of<'j>(&self, raw: &'j RawJob) -> Result<Cow<'j, str>, String> {
        self.pq.codec.decode(raw.payload.as_str()).map_err(|found| found.to_string())
    }
}

/// What a take found, decoded.
pub(super) struct Decoded<T> {
    pub(super) jobs: Vec<Job<T>>,
    pub(super) dead: Vec<Undecodable>,
    pub(super) next_due: Option<Duration>,
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
