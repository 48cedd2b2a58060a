//! Durable steps of asynchronous handlers, and signals for jobs.

use std::time::Duration;

use diesel_async::AsyncPgConnection;
use pq_core::store::Keeping;
use pq_core::{Action, ChangeOutcome, JobId, JobRecord, Outcome, SentSignal, StepKind, StepRecord, StepRun};
use pq_diesel::Error;
use pq_diesel::store::{PgStore, SqlConnection};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::connection::OnAsync;
use crate::context::Context;
use crate::pq::Pq;
use crate::shared::{change_on_connection, on_connection, recorded};
use crate::transaction::AsyncFunc;

/// Signals and steps of jobs.
impl Pq {
    /// Sends a signal to a job that waits or runs. See [`pq_core::Pq::signal`].
    ///
    /// If the future is dropped, the signal was sent or not.
    ///
    /// # Errors
    ///
    /// See [`pq_core::Pq::signal`].
    pub async fn signal<T: Serialize + ?Sized>(&self, id: JobId, name: &str, value: &T) -> Result<(), Error> {
        let (store, value) = (self.shared.store(), self.blocking().encode_signal(name, value)?);
        let by = self.blocking().actor();
        let record = by.map(|by| Action::new("signal").job(id).details(name).record(by, 1));
        let sent = change_on_connection!(self.shared, |conn| recorded!(
            store,
            conn,
            by,
            store.signal_on(conn, id, name, &value),
            |sent| record.filter(|_| sent)
        ))?;
        if sent { Ok(()) } else { Err(pq_core::Error::not_live(id).into()) }
    }

    /// Sends a signal on the caller's connection, inside the caller's transaction. See [`pq_core::Pq::signal_on`].
    ///
    /// # Errors
    ///
    /// See [`pq_core::Pq::signal`].
    pub async fn signal_on<T: Serialize + ?Sized>(
        &self,
        conn: &mut AsyncPgConnection,
        id: JobId,
        name: &str,
        value: &T,
    ) -> Result<(), Error> {
        let value = self.blocking().encode_signal(name, value)?;
        let sent = self.shared.store().signal_on(&mut OnAsync::new(conn), id, name, &value).await?;
        if sent { Ok(()) } else { Err(pq_core::Error::not_live(id).into()) }
    }

    /// Returns the kept steps of a job. See [`pq_core::Pq::steps`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn steps(&self, job: &JobRecord) -> Result<Vec<StepRecord>, Error> {
        on_connection!(self.shared, |conn| self.shared.store().steps_on(conn, job))
    }

    /// Returns the first `count` signals of a job that are not delivered. See [`pq_core::Pq::signals`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn signals(&self, job: &JobRecord, count: usize) -> Result<Vec<SentSignal>, Error> {
        on_connection!(self.shared, |conn| self.shared.store().signals_on(conn, job, count))
    }

    /// Forgets a step of a job and all later ones, and makes the job due. See [`pq_core::Pq::retry_from_step`].
    ///
    /// # Errors
    ///
    /// See [`pq_core::Pq::retry_from_step`].
    pub async fn retry_from_step(&self, id: JobId, step: &str) -> Result<ChangeOutcome, Error> {
        let step = step.to_owned();
        self.in_thread(move |pq| pq.retry_from_step(id, &step)).await
    }
}

/// Durable steps. See [`pq_core::Context::step`].
///
/// If one of these futures is dropped at any await, its step is kept whole or not at all.
impl Context {
    /// Runs `work` once, and keeps its result. In later attempts returns the kept result, and does not run `work`.
    ///
    /// The result is committed before this returns. What `work` does outside of the database happens at least once;
    /// for writes in the database use [`Context::step_with`]. The steps of a handler run one after the other, in the
    /// same order in each attempt. See [`pq_core::Context::step`].
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # fn handlers(pq: &pq_diesel_async::Pq) -> Result<pq_diesel_async::Handler, pq_diesel_async::Error> {
    /// let order = pq.queue("orders")?.task::<i64>("order");
    /// let handler = order.leased_async(|context, job| async move {
    ///     let receipt = context.step("charge", async || Ok::<_, pq_diesel_async::Error>(job.data * 2)).await?;
    ///     context.sleep(Duration::from_secs(3_600)).await?;
    ///     let approved: Option<bool> = context.wait_for_signal("approved", Duration::from_secs(86_400)).await?;
    ///     println!("{receipt} {approved:?}");
    ///     Ok::<_, pq_diesel_async::Error>(())
    /// });
    /// # Ok(handler)
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// See [`pq_core::Context::step`].
    pub async fn step<T, E, F>(&self, name: &str, work: impl FnOnce() -> F + Send) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned + Send + Sync,
        E: From<Error>,
        F: Future<Output = Result<T, E>> + Send,
    {
        let step = self.context.begin_step(StepKind::Step, name).map_err(Error::from)?;
        if let Some(kept) = self.find_step(&step).await? {
            return Ok(step.replay(&kept).map_err(Error::from)?);
        }
        let result = work().await?;
        let new = step.with_result(&result).map_err(Error::from)?;
        let (store, job) = (self.shared.store(), self.context.job());
        let keeping = change_on_connection!(self.shared, |conn| store.keep_step_on(conn, job, &new))?;
        if let Some(refusal) = step.refusal(&keeping) {
            return Err(Error::from(refusal).into());
        }
        step.finish();
        Ok(result)
    }

    /// Runs `work` once on the caller's connection, and commits its writes together with its result: exactly once.
    ///
    /// Begins a transaction, or a nested one if the connection is in one already. If the job's lease is not held any
    /// more, all is rolled back. If the future is dropped before it has ended, the state of the connection is
    /// unknown: drop the connection. See [`pq_core::Context::step_with`].
    ///
    /// # Errors
    ///
    /// See [`pq_core::Context::step_with`].
    pub async fn step_with<T, E>(
        &self,
        conn: &mut AsyncPgConnection,
        name: &str,
        work: impl for<'c> AsyncFnOnce(&'c mut AsyncPgConnection) -> Result<T, E>
        + for<'c> AsyncFunc<(&'c mut AsyncPgConnection,), Result<T, E>>
        + Send,
    ) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned + Send + Sync,
        E: From<Error> + Send,
    {
        let step = self.context.begin_step(StepKind::Step, name).map_err(Error::from)?;
        if let Some(kept) = step.find().map_err(Error::from)? {
            return Ok(step.replay(&kept).map_err(Error::from)?);
        }
        let store = self.shared.store();
        let around = store.begin(&mut OnAsync::new(conn)).await?;
        // A transaction of its own would be one more commit.
        if step.needs_kept() {
            let mut conn = OnAsync::new(conn);
            let kept = match store.steps_on(&mut conn, self.context.job()).await {
                Ok(kept) => step.set_kept(kept).and_then(|()| step.find()).map_err(Error::from),
                Err(error) => Err(error),
            };
            if !matches!(kept, Ok(None))
                && let Some(kept) = store.end(&mut conn, around, kept).await?
            {
                return Ok(step.replay(&kept).map_err(Error::from)?);
            }
        }
        let result = match AsyncFunc::call(work, (&mut *conn,)).await {
            Ok(result) => result,
            Err(error) => {
                // A rollback fails only if the connection is lost, and then the server rolls back.
                let _ = OnAsync::new(conn).roll_back_to(around).await;
                return Err(error);
            }
        };
        let kept = self.keep_in_transaction(&mut OnAsync::new(conn), around, &step, &result).await?;
        if kept == Keeping::LeaseLost && !self.context.is_settled() && self.extend_lease().await.is_ok() {
            return Err(Error::from(step.elsewhere()).into());
        }
        if let Some(refusal) = step.refusal(&kept) {
            return Err(Error::from(refusal).into());
        }
        match around {
            0 => step.finish(),
            _ => step.finish_in_transaction(),
        }
        Ok(result)
    }

    /// Lets the job wait for this time, without a worker, and goes on after it in a new attempt.
    ///
    /// The handler must return the error. See [`pq_core::Context::sleep`].
    ///
    /// # Errors
    ///
    /// [`pq_core::Error::Suspended`] if the attempt ends here; else see [`pq_core::Context::sleep`].
    pub async fn sleep(&self, duration: Duration) -> Result<(), Error> {
        let step = self.context.begin_step(StepKind::Sleep, StepRecord::SLEEP)?;
        let (shared, store, job) = (&self.shared, self.shared.store(), self.context.job());
        let kept = self.find_step(&step).await?;
        let remaining = match kept.as_ref().and_then(|kept| kept.until) {
            Some(_) if step.is_followed() => Duration::ZERO,
            Some(until) => {
                let now = on_connection!(shared, |conn| store.now_on(conn))?;
                (until - now).to_std().unwrap_or_default()
            }
            None => duration,
        };
        if kept.is_some() && remaining.is_zero() {
            step.finish();
            return Ok(());
        }
        let mut lent = shared.begin().await?;
        let done = {
            let mut conn = lent.sql();
            let sleep = async {
                if kept.is_none() {
                    let keeping = store.keep_step_on(&mut conn, job, &step.lasting(duration)).await?;
                    if keeping != Keeping::Kept(None) {
                        return Ok(keeping);
                    }
                }
                self.leave(&mut conn, Some(remaining).filter(|remaining| !remaining.is_zero())).await
            };
            shared.within_limit(sleep).await
        };
        let keeping = shared.end(lent, done).await?;
        go_on(step, keeping)
    }

    /// Lets the job wait for a signal of this name, without a worker, and returns its value, or `None` after the
    /// timeout.
    ///
    /// The handler must return the error. See [`pq_core::Context::wait_for_signal`].
    ///
    /// # Errors
    ///
    /// [`pq_core::Error::Suspended`] if the attempt ends here; else see [`pq_core::Context::wait_for_signal`].
    pub async fn wait_for_signal<T: DeserializeOwned>(
        &self,
        name: &str,
        timeout: Duration,
    ) -> Result<Option<T>, Error> {
        let step = self.context.begin_step(StepKind::Waiting, name)?;
        let (shared, store, job) = (&self.shared, self.shared.store(), self.context.job());
        match self.find_step(&step).await? {
            Some(kept) if kept.kind == StepKind::Signal => return Ok(Some(step.replay(&kept)?)),
            Some(kept) if kept.kind == StepKind::Timeout => {
                return go_on(step, Keeping::Kept(None)).map(|()| None);
            }
            _ => {}
        }
        let mut lent = shared.begin().await?;
        let done = {
            let mut conn = lent.sql();
            let wait = async {
                match store.await_signal_on(&mut conn, job, &step.lasting(timeout)).await? {
                    Keeping::Waits(remaining) => self.leave(&mut conn, Some(remaining)).await,
                    keeping => {
                        if step.is_misfit::<T>(&keeping) {
                            store.forget_steps_on(&mut conn, job, step.position()).await?;
                        }
                        Ok(keeping)
                    }
                }
            };
            shared.within_limit(wait).await
        };
        let keeping = shared.end(lent, done).await?;
        let value = step.receive(&keeping)?;
        go_on(step, keeping)?;
        Ok(value)
    }

    /// Keeps the result of a step in the transaction of its writes, and commits both or rolls both back.
    async fn keep_in_transaction<T: Serialize + Sync>(
        &self,
        conn: &mut OnAsync<'_>,
        around: u32,
        step: &StepRun<'_, PgStore>,
        result: &T,
    ) -> Result<Keeping, Error> {
        let store = self.shared.store();
        let keep = async {
            let new = step.with_result(result)?;
            store.keep_step_on(conn, self.context.job(), &new).await
        };
        let keeping = keep.await;
        match keeping {
            Ok(keeping @ (Keeping::LeaseLost | Keeping::OutOfOrder)) => {
                conn.roll_back_to(around).await?;
                Ok(keeping)
            }
            keeping => store.end(conn, around, keeping).await,
        }
    }

    /// Returns the job to its queue for this time, if one is given.
    async fn leave(&self, conn: &mut OnAsync<'_>, remaining: Option<Duration>) -> Result<Keeping, Error> {
        let Some(remaining) = remaining else { return Ok(Keeping::Kept(None)) };
        self.settle_on(conn, Outcome::snooze(remaining)).await?;
        Ok(Keeping::Waits(remaining))
    }

    /// Returns the kept step, and reads the kept ones once.
    pub(crate) async fn find_step(&self, step: &StepRun<'_, PgStore>) -> Result<Option<StepRecord>, Error> {
        if step.needs_kept() {
            let (store, job) = (self.shared.store(), self.context.job());
            step.set_kept(on_connection!(self.shared, |conn| store.steps_on(conn, job))?)?;
        }
        Ok(step.find()?)
    }
}

/// Ends a step that was kept, or the attempt.
pub(crate) fn go_on(step: StepRun<'_, PgStore>, keeping: Keeping) -> Result<(), Error> {
    if let Some(refusal) = step.refusal(&keeping) {
        return Err(refusal.into());
    }
    if let Keeping::Waits(remaining) = keeping {
        return Err(step.suspend(Outcome::snooze(remaining)).into());
    }
    step.finish();
    Ok(())
}
