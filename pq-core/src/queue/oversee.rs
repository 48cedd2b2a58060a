//! Looking after all queues of a store: their numbers, their workers, and what is put periodically.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{Pq, Queue};
use crate::{
    Cron, CronEntry, Error, Filter, JobId, Listed, Overview, StopMode, Store, Task, WorkerId, WorkerInfo,
};

impl<S: Store> Pq<S> {
    /// The numbers of every queue that has a job, live or kept, or that is paused, by name. Reads all jobs.
    ///
    /// # Errors
    ///
    /// The store's own.
    pub fn overview(&self) -> Result<Vec<Overview>, S::Error> {
        self.store.with_connection(|conn| self.store.overview(conn))
    }

    /// Jobs with all that is known of them, by number: the first `count` that the filter lets through.
    ///
    /// # Errors
    ///
    /// The store's own.
    pub fn list(&self, filter: &Filter, count: usize) -> Result<Vec<Listed>, S::Error> {
        self.store.with_connection(|conn| self.store.list(conn, filter, count))
    }

    /// The job of this number, whatever its queue; `None` where it is done and nothing was kept, or was never there.
    ///
    /// # Errors
    ///
    /// The store's own.
    pub fn show(&self, id: JobId) -> Result<Option<Listed>, S::Error> {
        Ok(self.list(&Filter::id(id), 1)?.pop())
    }

    /// The store's clock: what decides what is due.
    ///
    /// # Errors
    ///
    /// The store's own.
    pub fn now(&self) -> Result<DateTime<Utc>, S::Error> {
        self.store.with_connection(|conn| self.store.now(conn))
    }

    /// The workers that are known: those that were heard of in the last minute or so, on whichever host.
    ///
    /// # Errors
    ///
    /// The store's own.
    pub fn workers(&self) -> Result<Vec<WorkerInfo>, S::Error> {
        self.store.with_connection(|conn| self.store.workers(conn))
    }

    /// Has a worker stop, on whichever host: it is told at its next beat, a few seconds from now at most. `false`
    /// where no such worker is known.
    ///
    /// # Errors
    ///
    /// The store's own.
    pub fn stop_worker(&self, worker: WorkerId, mode: StopMode) -> Result<bool, S::Error> {
        self.store.with_connection(|conn| self.store.stop_worker(conn, worker, mode))
    }

    /// Sets a periodic job, in place of the one of its name; `false` where there was one. Its first tick is the
    /// next on the store's clock.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSetting`] where there is no tick to come; the store's own.
    pub fn set_cron(&self, cron: &Cron) -> Result<bool, S::Error> {
        self.transaction(|conn| {
            let next = cron.next_after(self.store.now(conn)?)?;
            if next.is_none() {
                let wrong = format!("{:?} has no tick to come", cron.expression);
                return Err(Error::InvalidSetting(wrong).into());
            }
            self.store.set_cron(conn, cron, next)
        })
    }

    /// The periodic jobs, by name.
    ///
    /// # Errors
    ///
    /// The store's own.
    pub fn crons(&self) -> Result<Vec<CronEntry>, S::Error> {
        self.store.with_connection(|conn| self.store.crons(conn))
    }

    /// Removes a periodic job; `false` where there is none of the name. Jobs that it has put stay.
    ///
    /// # Errors
    ///
    /// The store's own.
    pub fn remove_cron(&self, name: &str) -> Result<bool, S::Error> {
        self.store.with_connection(|conn| self.store.remove_cron(conn, name))
    }

    /// Pauses a periodic job: its ticks pass and are not missed. `false` where there is none of the name.
    ///
    /// # Errors
    ///
    /// The store's own.
    pub fn pause_cron(&self, name: &str) -> Result<bool, S::Error> {
        self.store.with_connection(|conn| self.store.pause_cron(conn, name, true, None))
    }

    /// Has a periodic job go on, with the next tick from now. `false` where there is none of the name.
    ///
    /// # Errors
    ///
    /// The store's own.
    pub fn resume_cron(&self, name: &str) -> Result<bool, S::Error> {
        self.transaction(|conn| {
            let entry = self.store.crons(conn)?.into_iter().find(|entry| entry.cron.name == name);
            let Some(entry) = entry else { return Ok(false) };
            let next = entry.cron.next_after(self.store.now(conn)?)?;
            self.store.pause_cron(conn, name, false, next)
        })
    }
}

impl<S: Store, T> Queue<S, T> {
    /// Has nobody take jobs of the queue from now on; what is held already is not touched. `false` where it was
    /// paused already. Python's `pq` knows nothing of it.
    ///
    /// # Errors
    ///
    /// The store's own.
    pub fn pause(&self) -> Result<bool, S::Error> {
        self.store().with_connection(|conn| self.store().pause(conn, &self.name, true))
    }

    /// Has a paused queue go on. `false` where it was not paused.
    ///
    /// # Errors
    ///
    /// The store's own.
    pub fn resume(&self) -> Result<bool, S::Error> {
        self.store().with_connection(|conn| self.store().pause(conn, &self.name, false))
    }

    /// Moves jobs that nobody holds to another queue, with all they have: those of these ids, or where none are
    /// given all. One whose unique key is in use there stays. Says how many went.
    ///
    /// # Errors
    ///
    /// The store's own; none went then.
    pub fn move_to<U>(&self, to: &Queue<S, U>, ids: Option<&[JobId]>) -> Result<u64, S::Error> {
        self.store().with_connection(|conn| self.store().move_jobs(conn, &self.name, &to.name, ids))
    }
}

impl<S: Store, T> Queue<S, T> {
    /// Lists the jobs of the queue that the filter matches, in order of their ids: at most `count`.
    ///
    /// The filter's own queue is ignored. [`Pq::list`] lists the jobs of all queues.
    ///
    /// # Errors
    ///
    /// The store's own.
    pub fn list(&self, filter: &Filter, count: usize) -> Result<Vec<Listed>, S::Error> {
        self.store().with_connection(|conn| self.on(conn).list(filter, count))
    }
}

impl<S: Store, T: Serialize> Queue<S, T> {
    /// A periodic job of this queue, to be set by [`Pq::set_cron`].
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSetting`] for a name or an expression that cannot be used; those of a put for a payload.
    pub fn cron(&self, name: &str, expression: &str, data: &T) -> Result<Cron, Error> {
        Cron::new(name, expression, &self.name, self.encode_payload(data)?)
    }
}

impl<S: Store, A: Serialize> Task<S, A> {
    /// A periodic call of this task, to be set by [`Pq::set_cron`].
    ///
    /// # Errors
    ///
    /// As [`Queue::cron`].
    pub fn cron(&self, name: &str, expression: &str, arguments: &A) -> Result<Cron, Error> {
        let job = self.periodic(arguments)?;
        Ok(Cron::new(name, expression, self.queue().name(), job.payload)?.priority(job.priority))
    }
}
