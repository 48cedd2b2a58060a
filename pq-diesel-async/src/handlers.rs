//! Asynchronous handlers of tasks and queues.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use diesel_async::AsyncPgConnection;
use pq_core::{Job, Outcome};
use pq_diesel::{Error, Handler};
use serde::de::DeserializeOwned;

use crate::context::Context;
use crate::pool::{BoxFuture, Lent};
use crate::queue::Queue;
use crate::shared::Shared;
use crate::task::Task;
use crate::transaction::AsyncFunc;

/// The delay before a job runs again whose transaction was refused for a reason that may pass.
const RUN_AGAIN_AFTER: Duration = Duration::from_secs(1);

impl<A: DeserializeOwned + Send + 'static> Task<A> {
    /// Creates an asynchronous handler that runs under a lease, while no transaction is open.
    ///
    /// A [`crate::Worker`] runs many at the same time. The job runs at least once: after a crash it is requeued when the lease
    /// has expired. The handler must therefore be safe to repeat, or complete the job together with its writes by
    /// [`Context::complete_with`]. See [`pq_core::Task::leased_async`].
    ///
    /// ```no_run
    /// # fn handlers(pq: &pq_diesel_async::Pq) -> Result<pq_diesel_async::Handler, pq_diesel_async::Error> {
    /// let greet = pq.queue("greetings")?.task::<String>("greet");
    /// let handler = greet.leased_async(|_context, job| async move {
    ///     println!("hello, {}", job.data);
    ///     Ok::<_, std::io::Error>(())
    /// });
    /// # Ok(handler)
    /// # }
    /// ```
    #[must_use]
    pub fn leased_async<R, E, F>(
        &self,
        handler: impl Fn(Context, Job<A>) -> F + Send + Sync + 'static,
    ) -> Handler
    where
        R: Into<Outcome>,
        E: fmt::Display,
        F: Future<Output = Result<R, E>> + Send + 'static,
    {
        let (shared, handler) = (Arc::clone(&self.queue.shared), Arc::new(handler));
        // The handler is called inside its future, so that it runs in the runtime.
        self.task.leased_async(move |context, job| {
            let (handler, context) = (Arc::clone(&handler), Context::new(&shared, context));
            async move { handler(context, job).await }
        })
    }

    /// Creates an asynchronous handler that runs in a transaction, on the connection that it receives.
    ///
    /// The handler's writes on that connection and the job's completion commit together, or not at all: exactly once, for
    /// effects in the database. While the handler runs, the job is under a lease. If the lease is lost, nothing is
    /// committed. After a crash everything is rolled back, and the job is requeued when the lease has expired.
    ///
    /// Each running handler has a connection of the handle's pool. Limit them by [`pq_core::Handler::concurrency`] to fewer than
    /// the pool has. An error of the handler rolls back its writes and fails the attempt. If the connection is lost, or the
    /// pool lends none, the job runs again after a second, and the attempt is not counted. The handler must not commit or
    /// roll back the transaction itself.
    ///
    /// ```no_run
    /// # use diesel_async::RunQueryDsl;
    /// # fn handlers(pq: &pq_diesel_async::Pq) -> Result<pq_diesel_async::Handler, pq_diesel_async::Error> {
    /// let pay = pq.queue("orders")?.task::<i64>("pay");
    /// let handler = pay.transactional_async(async |conn, job| {
    ///     diesel::sql_query("UPDATE orders SET paid = true WHERE id = $1")
    ///         .bind::<diesel::sql_types::BigInt, _>(job.data)
    ///         .execute(conn)
    ///         .await
    ///         .map(drop)
    /// });
    /// # Ok(handler)
    /// # }
    /// ```
    #[must_use]
    pub fn transactional_async<H, R, E>(&self, handler: H) -> Handler
    where
        H: for<'c> AsyncFnOnce(&'c mut AsyncPgConnection, Job<A>) -> Result<R, E>
            + for<'c> AsyncFunc<(&'c mut AsyncPgConnection, Job<A>), Result<R, E>>
            + Clone
            + Send
            + Sync
            + 'static,
        R: Into<Outcome> + Send + 'static,
        E: fmt::Display + Send + 'static,
    {
        let shared = Arc::clone(&self.queue.shared);
        self.task.leased_async(move |context, job| {
            let context = Context::new(&shared, context);
            run_in_transaction(Arc::clone(&shared), context, handler.clone(), job)
        })
    }
}

impl<T: DeserializeOwned + Send + 'static> Queue<T> {
    /// Creates an asynchronous leased handler of all jobs of the queue. See [`Task::leased_async`].
    ///
    /// A failed job is archived as dead. See [`pq_core::Handler::max_retries`].
    #[must_use]
    pub fn leased_async<R, E, F>(
        &self,
        handler: impl Fn(Context, Job<T>) -> F + Send + Sync + 'static,
    ) -> Handler
    where
        R: Into<Outcome>,
        E: fmt::Display,
        F: Future<Output = Result<R, E>> + Send + 'static,
    {
        let (shared, handler) = (Arc::clone(&self.shared), Arc::new(handler));
        self.queue.leased_async(move |context, job| {
            let (handler, context) = (Arc::clone(&handler), Context::new(&shared, context));
            async move { handler(context, job).await }
        })
    }
}

/// Runs a transactional handler under a lease. Its writes and its job's outcome commit together.
async fn run_in_transaction<H, A, R, E>(
    shared: Arc<Shared>,
    context: Context,
    handler: H,
    job: Job<A>,
) -> Result<Outcome, String>
where
    H: for<'c> AsyncFunc<(&'c mut AsyncPgConnection, Job<A>), Result<R, E>>,
    R: Into<Outcome>,
    E: fmt::Display,
{
    let mut lent = match shared.begin().await {
        Ok(lent) => lent,
        Err(error) => return ended_by(&context, &error),
    };
    let returned = handler.call((lent.connection(), job)).await;
    let returned = returned.map(Into::into).map_err(|error| format!("{error:#}"));
    settle_and_end(&shared, &context, lent, returned).await
}

/// Settles the job in the handler's transaction and commits, or rolls back after an error.
fn settle_and_end<'a>(
    shared: &'a Shared,
    context: &'a Context,
    mut lent: Lent,
    returned: Result<Outcome, String>,
) -> BoxFuture<'a, Result<Outcome, String>> {
    Box::pin(async move {
        let outcome = match returned {
            Ok(Outcome::RolledBack(outcome)) => {
                // The worker settles the job.
                return match shared.roll_back(lent).await {
                    Ok(()) => Ok(*outcome),
                    Err(error) => Ok(run_again(context, &error)),
                };
            }
            Ok(outcome) => outcome,
            Err(failure) => {
                // The handler may have failed because the connection was lost. The rollback fails then, too.
                return match shared.roll_back(lent).await {
                    Ok(()) => Err(failure),
                    Err(error) => Ok(run_again(context, &error)),
                };
            }
        };
        let settled_as = context.outcome_of(outcome.clone());
        let settled = shared.within_limit(context.settle_with(lent.connection(), settled_as)).await;
        match shared.end(lent, settled.map(|()| outcome)).await {
            Ok(outcome) => Ok(outcome),
            Err(error) => ended_by(context, &error),
        }
    })
}

/// Returns how an attempt ends whose transaction ended by an error of the handle's own calls.
fn ended_by(context: &Context, error: &Error) -> Result<Outcome, String> {
    if error.is_passing() && !error.is_conflict() {
        Ok(run_again(context, error))
    } else {
        Err(format!("cannot keep the handler's writes: {error}"))
    }
}

/// Returns the outcome of a job that runs again, without counting the attempt.
///
/// If the commit has succeeded although its answer was lost, the store refuses this outcome.
fn run_again(context: &Context, error: &Error) -> Outcome {
    tracing::warn!(job_id = %context.job().id, %error, "transaction was refused; the job will run again");
    Outcome::snooze(RUN_AGAIN_AFTER)
}
