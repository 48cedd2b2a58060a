//! Periodic jobs: defining, listing, pausing and removing them.

use std::sync::Arc;

use serde::Serialize;

use super::{Pq, Queue};
use crate::audit::Action;
use crate::{Cron, CronEntry, Error, JobId, NewJob, Store, Task, When};

impl<S: Store> Pq<S> {
    /// Sets a periodic job, replacing one of the same name. Its first tick is the next on the store's clock.
    ///
    /// A program can set its periodic jobs at each start. One that is paused stays paused, and as long as its
    /// expression and its time zone stay the same it keeps its next tick, which may be due already.
    ///
    /// Returns `false` if it replaced one.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSetting`] if the expression has no future tick; the store's errors.
    pub fn set_cron(&self, cron: &Cron) -> Result<bool, S::Error> {
        let action = Action::new("set periodic job").queue(cron.queue.as_str()).details(&cron.name);
        let set = |conn: &mut S::Conn| {
            let next = cron.next_after(self.store.now(conn)?)?;
            if next.is_none() {
                let expression = &cron.expression;
                let message = format!("invalid cron expression {expression:?}: it must have a future tick");
                return Err(Error::InvalidSetting(message).into());
            }
            self.store.set_cron(conn, cron, next)
        };
        self.recorded(&action, |_| 1, |conn| self.store.transaction(conn, set))
    }

    /// Lists the periodic jobs, ordered by name.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn crons(&self) -> Result<Vec<CronEntry>, S::Error> {
        self.store.with_connection(|conn| self.store.crons(conn))
    }

    /// Puts the job of a periodic job now, also if it is paused. Its next tick stays.
    ///
    /// The job's `expected_at` is the time of the store's clock. Returns `None` if there is none of that name.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn run_cron(&self, name: &str) -> Result<Option<JobId>, S::Error> {
        let action = Action::new("run periodic job").details(name);
        let put = self.recorded(
            &action,
            |put: &Option<_>| u64::from(put.is_some()),
            |conn| {
                let entry = self.store.crons(conn)?.into_iter().find(|entry| entry.cron.name == name);
                let Some(CronEntry { cron, .. }) = entry else { return Ok(None) };
                let expected_at = Some(When::At(self.store.now(conn)?));
                let job = NewJob { priority: cron.priority, expected_at, ..NewJob::new(cron.payload) };
                let task = job.payload.task().map(Arc::from);
                let put = self.store.put(conn, &cron.queue, &[job])?;
                Ok(put.first().map(|put| (put.id, cron.queue, task)))
            },
        )?;
        Ok(put.map(|(id, queue, task)| {
            self.count_jobs(&queue, task, 1);
            id
        }))
    }

    /// Removes a periodic job. Jobs that it has enqueued stay.
    ///
    /// Returns `false` if there is none of that name.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn remove_cron(&self, name: &str) -> Result<bool, S::Error> {
        let action = Action::new("remove periodic job").details(name);
        self.recorded(&action, |found| u64::from(*found), |conn| self.store.remove_cron(conn, name))
    }

    /// Pauses a periodic job. Ticks that pass meanwhile are skipped.
    ///
    /// Returns `false` if there is none of that name.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn pause_cron(&self, name: &str) -> Result<bool, S::Error> {
        let action = Action::new("pause periodic job").details(name);
        self.recorded(
            &action,
            |found| u64::from(*found),
            |conn| self.store.pause_cron(conn, name, true, None, self.actor()),
        )
    }

    /// Resumes a periodic job, from its next tick on the store's clock.
    ///
    /// Returns `false` if there is none of that name.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn resume_cron(&self, name: &str) -> Result<bool, S::Error> {
        let action = Action::new("resume periodic job").details(name);
        let resume = |conn: &mut S::Conn| {
            let entry = self.store.crons(conn)?.into_iter().find(|entry| entry.cron.name == name);
            let Some(entry) = entry else { return Ok(false) };
            let next = entry.cron.next_after(self.store.now(conn)?)?;
            self.store.pause_cron(conn, name, false, next, None)
        };
        self.recorded(&action, |found| u64::from(*found), |conn| self.store.transaction(conn, resume))
    }
}

impl<S: Store, T: Serialize> Queue<S, T> {
    /// Defines a periodic job of this queue, for [`Pq::set_cron`].
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSetting`] for an invalid name or expression. The errors of [`Queue::put`] for the payload.
    pub fn cron(&self, name: &str, expression: &str, data: &T) -> Result<Cron, Error> {
        Cron::new(name, expression, &self.name, self.encode_payload(data)?)
    }
}

impl<S: Store, A: Serialize> Task<S, A> {
    /// Defines a periodic call of this task, for [`Pq::set_cron`].
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::cron`].
    pub fn cron(&self, name: &str, expression: &str, arguments: &A) -> Result<Cron, Error> {
        let job = self.periodic(arguments)?;
        Ok(Cron::new(name, expression, self.queue().name(), job.payload)?.priority(job.priority))
    }
}
