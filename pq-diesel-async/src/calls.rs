//! Calls of tasks for whose results an asynchronous handler waits, without a worker.

use std::time::Duration;

use pq_core::{CallOptions, JobId, JobResult, Outcome, StepKind};
use pq_diesel::Error;
use pq_diesel::store::PgStore;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::connection::OnAsync;
use crate::context::Context;
use crate::shared::{change_on_connection, on_connection};
use crate::steps::go_on;
use crate::task::Task;

type Blocking = pq_core::Context<PgStore>;

impl Context {
    /// Calls a task, lets the job wait until that call has ended, without a worker, and returns what became of it. See
    /// [`pq_core::Context::call_and_wait`].
    ///
    /// The handler must return the error. If the future is dropped, the call was put and the job waits for it, or
    /// neither.
    ///
    /// # Errors
    ///
    /// See [`pq_core::Context::call_and_wait`].
    pub async fn call_and_wait<A: Serialize + Sync, R: DeserializeOwned>(
        &self,
        task: &Task<A>,
        arguments: &A,
    ) -> Result<JobResult<R>, Error> {
        self.call_and_wait_with(task, arguments, &CallOptions::new()).await
    }

    /// Calls a task with options and waits for its end, as [`Context::call_and_wait`] does.
    ///
    /// # Errors
    ///
    /// See [`pq_core::Context::call_and_wait_with`].
    pub async fn call_and_wait_with<A: Serialize + Sync, R: DeserializeOwned>(
        &self,
        task: &Task<A>,
        arguments: &A,
        options: &CallOptions,
    ) -> Result<JobResult<R>, Error> {
        let (shared, store, job) = (&self.shared, self.shared.store(), self.context.job());
        let [call, result] = Blocking::call_steps(task.name());
        let step = self.context.begin_step(StepKind::Step, &call)?;
        let called = match self.find_step(&step).await? {
            Some(kept) => step.replay::<JobId>(&kept)?,
            None => {
                let options = options.clone().awaited();
                let mut lent = shared.begin().await?;
                let done = shared
                    .within_limit(async {
                        let id = task.on(lent.connection()).call_with(arguments, &options).await?.id;
                        let mut conn = lent.sql();
                        let keeping = store.keep_step_on(&mut conn, job, &step.with_result(&id)?).await?;
                        if let Some(refusal) = step.refusal(&keeping) {
                            return Err(refusal.into());
                        }
                        self.wait_for_call(&mut conn, id).await
                    })
                    .await;
                let held = shared.end(lent, done).await?;
                return Err(step.suspend(Outcome::snooze(held)).into());
            }
        };
        let step = self.context.begin_step(StepKind::Step, &result)?;
        if let Some(kept) = self.find_step(&step).await? {
            return Ok(step.replay(&kept)?);
        }
        let ended = on_connection!(shared, |conn| store.look_on(conn, called))?;
        if ended.as_ref().is_some_and(|job| !job.state.is_ended()) {
            // The job was made due by hand.
            let mut lent = shared.begin().await?;
            let done = {
                let mut conn = lent.sql();
                shared.within_limit(self.wait_for_call(&mut conn, called)).await
            };
            let held = shared.end(lent, done).await?;
            return Err(step.suspend(Outcome::snooze(held)).into());
        }
        let (answer, new) = step.with_answer(ended.as_ref())?;
        let keeping = change_on_connection!(shared, |conn| store.keep_step_on(conn, job, &new))?;
        go_on(step, keeping)?;
        Ok(answer)
    }

    /// Lets the job wait for another one, in the transaction of the connection. Returns for how long at most.
    async fn wait_for_call(&self, conn: &mut OnAsync<'_>, called: JobId) -> Result<Duration, Error> {
        let store = self.shared.store();
        store.wait_for_job_on(conn, self.context.job().id, called).await?;
        let held = Blocking::held_from(store.now_on(conn).await?);
        self.settle_on(conn, Outcome::snooze(held)).await?;
        Ok(held)
    }
}
