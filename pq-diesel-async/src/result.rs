//! The results of jobs, and waiting for their end.

use std::sync::{Mutex, PoisonError};

use diesel_async::AsyncPgConnection;
use pq_core::store::next_look;
use pq_core::{
    Answer, CallOptions, CancellationToken, Error as Refused, JobId, JobProgress, JobResult, Scan,
    StoredLine, Wait,
};
use pq_diesel::Error;
use pq_diesel::store::SqlConnection;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::connection::OnAsync;
use crate::pq::Pq;
use crate::shared::{Shared, change_on_connection, on_connection};
use crate::task::Task;
use crate::wait::{FIRST_RETRY, Polled, Subscribe, poll_and_wait};

impl Pq {
    /// Returns what became of a job of any queue, without waiting. See [`pq_core::Pq::result`].
    ///
    /// # Errors
    ///
    /// [`Refused::InvalidResult`] if the result is not an `R`; the database's own.
    pub async fn result<R: DeserializeOwned>(&self, id: JobId) -> Result<JobResult<R>, Error> {
        let job = on_connection!(self.shared, |conn| self.shared.store().look_on(conn, id))?;
        Ok(JobResult::of(job.as_ref())?)
    }

    /// Returns what became of a job on the caller's connection, as [`Pq::result`] does. A transaction sees what it
    /// has done itself.
    ///
    /// # Errors
    ///
    /// The errors of [`Pq::result`].
    pub async fn result_on<R: DeserializeOwned>(
        &self,
        conn: &mut AsyncPgConnection,
        id: JobId,
    ) -> Result<JobResult<R>, Error> {
        let job = self.shared.store().look_on(&mut OnAsync::new(conn), id).await?;
        Ok(JobResult::of(job.as_ref())?)
    }

    /// Waits until a job of any queue has ended, and returns what became of it. After `wait` it returns the job's
    /// state. See [`pq_core::Pq::wait_for`].
    ///
    /// The future holds no connection while it sleeps, and can be dropped at any await. The job stays awaited then.
    ///
    /// # Errors
    ///
    /// [`Refused::InvalidResult`] if the result is not an `R`; [`Refused::WaitInTransaction`] if the connections of
    /// the pool are in a transaction, as in a test; [`Refused::Stopped`]; the database's own.
    pub async fn wait_for<R: DeserializeOwned>(&self, id: JobId, wait: Wait) -> Result<JobResult<R>, Error> {
        wait_for(&self.shared, self.blocking().as_ref().cancellation_token(), id, wait).await
    }
}

/// The progress and the logs of jobs.
impl Pq {
    /// Returns how far handlers have come with these jobs, of those that have any progress. See
    /// [`pq_core::Pq::progress`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn progress(&self, jobs: &[JobId]) -> Result<Vec<JobProgress>, Error> {
        on_connection!(self.shared, |conn| self.shared.store().progress_on(conn, jobs))
    }

    /// Returns the log of a job, the oldest line first. See [`pq_core::Pq::log`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn log(&self, job: JobId) -> Result<Vec<StoredLine>, Error> {
        let lines = on_connection!(self.shared, |conn| self.shared.store().log_on(conn, job, None))?;
        Ok(StoredLine::keep_newest(lines))
    }
}

impl<A: Serialize> Task<A> {
    /// Enqueues a call and waits until its job has ended. After `wait` the answer is the job's state. See
    /// [`pq_core::Task::call_and_wait`].
    ///
    /// If the future is dropped, the call has been put or not, and its result can be read later if it has.
    ///
    /// # Errors
    ///
    /// The errors of [`Task::call`] and [`Pq::wait_for`]. After an error of the wait the job has been put.
    pub async fn call_and_wait<R: DeserializeOwned>(
        &self,
        arguments: &A,
        wait: Wait,
    ) -> Result<Answer<R>, Error> {
        self.call_and_wait_with(arguments, &CallOptions::new(), wait).await
    }

    /// Enqueues a call with options and waits until its job has ended, as [`Task::call_and_wait`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Task::call_with`] and [`Task::call_and_wait`].
    pub async fn call_and_wait_with<R: DeserializeOwned>(
        &self,
        arguments: &A,
        options: &CallOptions,
        wait: Wait,
    ) -> Result<Answer<R>, Error> {
        let id = self.call_with(arguments, &options.clone().awaited()).await?.id;
        let token = self.queue.token();
        Ok(Answer { id, result: wait_for(&self.queue.shared, token, id, wait).await? })
    }
}

async fn wait_for<R: DeserializeOwned>(
    shared: &Shared,
    token: Option<&CancellationToken>,
    id: JobId,
    wait: Wait,
) -> Result<JobResult<R>, Error> {
    let state = &Mutex::new((None, FIRST_RETRY));
    let found = poll_and_wait(shared, Subscribe::End(id), wait, token, |scan| async move {
        let look = on_connection!(shared, |conn| async {
            if wait != Wait::No && conn.depth()? > 0 {
                return Err(Refused::wait_in_transaction(id).into());
            }
            shared.store().look_on(conn, id).await
        });
        let job = match look? {
            Some(job) if !job.state.is_ended() => job,
            ended => return Ok(Polled::Found(ended)),
        };
        let is_marked = if job.annotations.is_awaited() || scan == Scan::Full {
            None
        } else {
            Some(change_on_connection!(shared, |conn| shared.store().mark_awaited_on(conn, id))?)
        };
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = Some(job);
        Ok(Polled::Nothing { next_due: next_look(is_marked, &mut state.1) })
    })
    .await?;
    let last = || state.lock().unwrap_or_else(PoisonError::into_inner).0.take();
    Ok(JobResult::of(found.unwrap_or_else(last).as_ref())?)
}
