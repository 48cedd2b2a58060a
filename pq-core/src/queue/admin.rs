//! Operating a store and its queues: listing, counting, cancelling, pausing and moving jobs, and workers.

use chrono::{DateTime, Utc};

use super::audit::describe_ids;
use super::{Pq, Queue};
use crate::audit::Action;
use crate::{
    CancelOutcome, Filter, JobId, JobRecord, JobState, PausedQueue, Predecessor, QueueCounts, Reason,
    StopMode, Store, TaskCounters, WorkerId, WorkerInfo,
};

impl<S: Store> Pq<S> {
    /// Counts the jobs of every queue by state, ordered by the queues' names.
    ///
    /// Includes each queue that has a job, waiting or archived, or that is paused or limited. Reads all jobs.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn overview(&self) -> Result<Vec<QueueCounts>, S::Error> {
        self.store.with_connection(|conn| self.store.overview(conn))
    }

    /// Lists the paused queues, ordered by their names. Reads no jobs.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn paused_queues(&self) -> Result<Vec<PausedQueue>, S::Error> {
        self.store.with_connection(|conn| self.store.paused(conn))
    }

    /// Returns what became of jobs, by queue and task, since the table was created. See [`crate::Counters`].
    ///
    /// Workers add what they have counted with their heartbeats, so a crash of a worker loses what it has counted
    /// since.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn counters(&self) -> Result<Vec<TaskCounters>, S::Error> {
        self.store.with_connection(|conn| self.store.counted(conn))
    }

    /// Lists the jobs of all queues that the filter matches, in order of their ids: at most `count`.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn list(&self, filter: &Filter, count: usize) -> Result<Vec<JobRecord>, S::Error> {
        self.store.with_connection(|conn| self.store.list(conn, filter, count))
    }

    /// Finds a job of any queue by its id.
    ///
    /// Returns `None` if there was no such job, or if it ended and was not kept. If several jobs had the id, because
    /// the sequence of ids was restarted, returns the one that waits or runs, or else the one that ended last.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn find(&self, id: JobId) -> Result<Option<JobRecord>, S::Error> {
        Ok(self.list(&Filter::id(id), 1)?.pop())
    }

    /// Explains why a job does not run, or what runs it: all reasons, the most important first.
    ///
    /// Takes no lock. Workers are known by their heartbeats, which are up to two seconds old. Programs that get jobs
    /// without a worker are not known.
    ///
    /// ```
    /// # use pq_core::{Pq, PutOptions, Reason, memory::MemoryStore};
    /// # let pq = Pq::new(MemoryStore::new());
    /// let id = pq.queue::<u32>("mail")?.put_with(&1, &PutOptions::new().schedule_at("1h"))?.id;
    /// assert!(matches!(pq.explain(id)?[..], [Reason::NotDue { .. }, Reason::NoWorker]));
    /// # Ok::<(), pq_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn explain(&self, id: JobId) -> Result<Vec<Reason>, S::Error> {
        self.store.with_connection(|conn| self.explain_on(conn, id))
    }

    /// Returns the jobs for which a job waits or has waited, by id: at most `count`. See [`crate::PutOptions::after`].
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn predecessors(&self, follow_up: JobId, count: usize) -> Result<Vec<Predecessor>, S::Error> {
        self.store.with_connection(|conn| self.store.predecessors(conn, follow_up, count))
    }

    /// Returns the jobs that wait for the end of a job, by id: at most `count`.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn followers(&self, job: JobId, count: usize) -> Result<Vec<JobId>, S::Error> {
        self.store.with_connection(|conn| self.store.followers(conn, job, count))
    }

    /// Explains why a job does not run on the caller's connection, as [`Pq::explain`] does.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn explain_on(&self, conn: &mut S::Conn, id: JobId) -> Result<Vec<Reason>, S::Error> {
        let job = self.store.list(conn, &Filter::id(id), 1)?.pop();
        let circumstances = self.store.circumstances(conn, id)?;
        let workers = self.store.workers(conn)?;
        let last_step = match &job {
            Some(job) if job.state == JobState::Scheduled => self.store.steps(conn, job)?.pop(),
            _ => None,
        };
        Ok(Reason::all(job.as_ref(), last_step.as_ref(), circumstances, &workers))
    }

    /// Reads the store's clock, which decides what is due.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn now(&self) -> Result<DateTime<Utc>, S::Error> {
        self.store.with_connection(|conn| self.store.now(conn))
    }

    /// Lists the live workers of all hosts: those with a heartbeat within [`WorkerInfo::FORGOTTEN_AFTER`].
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn workers(&self) -> Result<Vec<WorkerInfo>, S::Error> {
        self.store.with_connection(|conn| self.store.workers(conn))
    }

    /// Requests that a worker stops, on any host. It learns of this at its next heartbeat, within seconds.
    ///
    /// Returns `false` if there is no such worker.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn stop_worker(&self, worker: WorkerId, mode: StopMode) -> Result<bool, S::Error> {
        let action = Action::stop_worker(worker, mode);
        self.recorded(&action, |known| u64::from(*known), |conn| self.store.stop_worker(conn, worker, mode))
    }
}

impl<S: Store, T> Queue<S, T> {
    /// Counts the queue's jobs by state. Takes no lock and waits for none.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn counts(&self) -> Result<QueueCounts, S::Error> {
        self.store().with_connection(|conn| self.on(conn).counts())
    }

    /// Lists the jobs of the queue that the filter matches, in order of their ids: at most `count`.
    ///
    /// Ignores the filter's own queue. [`Pq::list`] lists the jobs of all queues.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn list(&self, filter: &Filter, count: usize) -> Result<Vec<JobRecord>, S::Error> {
        self.store().with_connection(|conn| self.on(conn).list(filter, count))
    }

    /// Finds a job of the queue by its id.
    ///
    /// Returns `None` if there was no such job, or if it ended and was not kept. If several jobs had the id, because
    /// the sequence of ids was restarted, returns the one that waits or runs, or else the one that ended last.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn find(&self, id: JobId) -> Result<Option<JobRecord>, S::Error> {
        self.store().with_connection(|conn| self.on(conn).find(id))
    }

    /// Cancels a job: a waiting job at once, and a leased job by a request to its handler.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn cancel(&self, id: JobId) -> Result<CancelOutcome, S::Error> {
        self.pq.operation(|conn| self.on(conn).cancel(id))
    }

    /// Deletes all jobs of the queue that are not held, including scheduled ones, and returns their number.
    ///
    /// # Errors
    ///
    /// The store's errors; no job was deleted then.
    pub fn clear(&self) -> Result<u64, S::Error> {
        self.pq.operation(|conn| self.on(conn).clear())
    }

    /// Pauses the queue: no job of it is taken until [`Queue::resume`]. Held jobs continue.
    ///
    /// Returns `false` if the queue was paused already. Python's `pq` ignores the pause.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn pause(&self) -> Result<bool, S::Error> {
        self.set_paused(true)
    }

    /// Resumes a paused queue. Returns `false` if it was not paused.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn resume(&self) -> Result<bool, S::Error> {
        self.set_paused(false)
    }

    fn set_paused(&self, paused: bool) -> Result<bool, S::Error> {
        let action = self.action(if paused { "pause" } else { "resume" });
        let (store, by) = (self.store(), self.pq.actor());
        self.pq.recorded(
            &action,
            |changed| u64::from(*changed),
            |conn| store.pause(conn, &self.name, paused, by),
        )
    }

    /// Moves jobs that are not held to another queue, and returns their number.
    ///
    /// Moves the jobs with these ids, or all if `ids` is `None`. They keep their ids, times, priorities and keys. A job
    /// whose unique key is in use in the other queue stays.
    ///
    /// # Errors
    ///
    /// The store's errors; no job was moved then.
    pub fn move_to<U>(&self, to: &Queue<S, U>, ids: Option<&[JobId]>) -> Result<u64, S::Error> {
        let details = ids.map_or_else(String::new, |ids| format!(": {}", describe_ids(ids)));
        let action = self.action("move").details(format!("to {}{details}", to.name));
        self.pq.recorded(
            &action,
            |moved| *moved,
            |conn| self.store().move_jobs(conn, &self.name, &to.name, ids),
        )
    }
}
