//! Calls of tasks for whose results a leased handler waits, without a worker.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::Context;
use super::steps::StepRun;
use crate::store::NewStep;
use crate::{After, CallOptions, Error, JobId, JobRecord, JobResult, Outcome, StepKind, Store, Task};

/// The number of characters of a task's name that are in the names of its steps.
const MAX_NAME_CHARS: usize = 28;

impl<S: Store> Context<S> {
    /// Calls a task, lets the job wait until that call has ended, without a worker, and returns what became of it.
    ///
    /// The first call commits at once that the other job is put and that this one waits for it, and fails with
    /// [`Error::Suspended`]. The handler must return that error, as that of [`Context::sleep`]. When the other job
    /// has ended, this one runs again as the same attempt, and its steps return their kept results. So the other job
    /// is put once, whatever crashes, and what became of it is kept: also a failure, which is for the handler to
    /// judge.
    ///
    /// It takes two steps of the job, `call NAME` and `result NAME`. If this job is cancelled, the other one goes on.
    ///
    /// ```
    /// # use pq_core::{JobResult, Outcome, Pq, Worker, memory::MemoryStore};
    /// # let pq = Pq::new(MemoryStore::new());
    /// let queue = pq.queue("trips")?;
    /// let (book, price) = (queue.task::<u32>("book"), queue.task::<u32>("price"));
    /// book.call(&7)?;
    /// let asked = price.clone();
    /// let books = book.leased(move |context, job| {
    ///     let price = context.call_and_wait::<_, u32>(&asked, &job.data)?;
    ///     assert_eq!(price, JobResult::Done(70));
    ///     Ok::<_, pq_core::Error>(())
    /// });
    /// let prices = price.leased(|_, job| Outcome::result(&(10 * job.data)));
    /// assert_eq!(Worker::new(&pq).serve(books).serve(prices).run_jobs(3)?.done, 2);
    /// # Ok::<_, pq_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Suspended`] if the attempt ends here; [`Error::InvalidResult`] if the result is not an `R`; the
    /// errors of [`Task::call`]; else see [`Context::step`].
    pub fn call_and_wait<A: Serialize, R: DeserializeOwned>(
        &self,
        task: &Task<S, A>,
        arguments: &A,
    ) -> Result<JobResult<R>, S::Error> {
        self.call_and_wait_with(task, arguments, &CallOptions::new())
    }

    /// Calls a task with options and waits for its end, as [`Context::call_and_wait`] does.
    ///
    /// # Errors
    ///
    /// See [`Context::call_and_wait`] and [`Task::call_with`].
    pub fn call_and_wait_with<A: Serialize, R: DeserializeOwned>(
        &self,
        task: &Task<S, A>,
        arguments: &A,
        options: &CallOptions,
    ) -> Result<JobResult<R>, S::Error> {
        let store = self.access.pq.store();
        let [call, result] = Self::call_steps(task.name());
        let step = self.begin_step(StepKind::Step, &call)?;
        let called = match self.find_step(&step)? {
            Some(kept) => step.replay::<JobId>(&kept)?,
            None => {
                let held = self.transaction(|conn| {
                    let id = task.on(conn).call_with(arguments, &options.clone().awaited())?.id;
                    let keeping = store.keep_step(conn, &self.job, &step.with_result(&id)?)?;
                    if let Some(refusal) = step.refusal(&keeping) {
                        return Err(S::Error::from(refusal));
                    }
                    self.wait_for_call(conn, id)
                })?;
                return Err(step.suspend(Outcome::snooze(held)).into());
            }
        };
        let step = self.begin_step(StepKind::Step, &result)?;
        if let Some(kept) = self.find_step(&step)? {
            return Ok(step.replay(&kept)?);
        }
        let ended = store.with_connection(|conn| store.look(conn, called))?;
        if ended.as_ref().is_some_and(|job| !job.state.is_ended()) {
            // The job was made due by hand.
            let held = self.transaction(|conn| self.wait_for_call(conn, called))?;
            return Err(step.suspend(Outcome::snooze(held)).into());
        }
        let (answer, new) = step.with_answer(ended.as_ref())?;
        let keeping = store.with_connection(|conn| store.keep_step(conn, &self.job, &new))?;
        self.go_on(step, keeping)?;
        Ok(answer)
    }

    /// Lets the job wait for another one, in the transaction of the connection. Returns for how long at most.
    fn wait_for_call(&self, conn: &mut S::Conn, called: JobId) -> Result<Duration, S::Error> {
        let store = self.access.pq.store();
        store.wait_for_job(conn, self.job.id, called)?;
        let held = Self::held_from(store.now(conn)?);
        self.settle_with(conn, Outcome::snooze(held))?;
        Ok(held)
    }

    /// Returns how long a job is held from now that waits for others, for a crate with connections of another kind.
    #[must_use]
    pub fn held_from(now: chrono::DateTime<chrono::Utc>) -> Duration {
        (After::HELD_UNTIL - now).to_std().unwrap_or_default()
    }

    /// Returns the names of the steps of an awaited call, for a crate with connections of another kind.
    #[must_use]
    pub fn call_steps(task: &str) -> [String; 2] {
        let name: String =
            task.chars().filter(|char| !['#', '\0'].contains(char)).take(MAX_NAME_CHARS).collect();
        [format!("call {name}"), format!("result {name}")]
    }
}

impl<S: Store> StepRun<'_, S> {
    /// Returns what became of an awaited call, and the step with it, to be kept.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidResult`]; the errors of [`StepRun::with_result`].
    pub fn with_answer<R: DeserializeOwned>(
        &self,
        ended: Option<&JobRecord>,
    ) -> Result<(JobResult<R>, NewStep<'_>), Error> {
        let answer = JobResult::of(ended)?;
        Ok((answer, self.with_result(&JobResult::<Box<RawValue>>::of(ended)?)?))
    }
}
