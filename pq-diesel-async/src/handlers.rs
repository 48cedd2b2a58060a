//! Asynchronous handlers of tasks and queues.

use std::fmt;
use std::sync::Arc;

use diesel_async::AsyncPgConnection;
use pq_core::{Job, Outcome};
use pq_diesel::Handler;
use serde::de::DeserializeOwned;

use crate::context::Context;
use crate::queue::Queue;
use crate::task::Task;
use crate::transaction::AsyncFunc;
use crate::transactional::{OnConnection, outcome_of, run_attempt, run_under_lease};

impl<A: DeserializeOwned + Send + 'static> Task<A> {
    /// Creates an asynchronous handler that runs under a lease, while no transaction is open.
    ///
    /// A [`crate::Worker`] runs many at the same time. The job runs at least once: after a crash it is requeued when
    /// the lease has expired. The handler must therefore be safe to repeat, or complete the job together with its
    /// writes by [`Context::complete_with`]. See [`pq_core::Task::leased_async`].
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
    /// The take, the handler's writes on that connection and the job's completion are one commit, or nothing of them
    /// happened: exactly once, for effects in the database. After a crash everything is rolled back, and the job is
    /// ready again as soon as the server notices. The next attempt runs under a lease, so that a job that kills its
    /// worker is found: its writes and its completion then commit together in a transaction of their own. So do those
    /// of a queue that has leased handlers, too.
    ///
    /// Each running handler has a connection of the handle's pool. Default of [`pq_core::Handler::concurrency`]: the
    /// size of a deadpool pool, else no limit. Set it to fewer, so that connections are left for the rest of the
    /// application. The smallest limit of the tasks of a queue is that of the queue.
    ///
    /// An error of the handler rolls back its writes and fails the attempt. At a timeout its statement is cancelled,
    /// and the connection is closed. After a conflict with another transaction the handler is run again at once,
    /// three times at most, if its error is diesel's or this crate's, or if the commit conflicts. If the connection
    /// is lost, or the pool lends none, the job runs again, and the attempt is not counted. The handler must not
    /// commit or roll back the transaction itself.
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
        let (shared, task) = (Arc::clone(&self.queue.shared), self.task.clone());
        let connections = shared.pool_size().unwrap_or(usize::MAX);
        let handler: Arc<OnConnection> = Arc::new(Box::new(move |conn, claim, conflicts| {
            let (handler, job) = (handler.clone(), task.decode(claim)?);
            Ok(Box::pin(async move { outcome_of(handler.call((conn, job)).await, conflicts) }))
        }));
        let (on_lease, of_attempts) = (Arc::clone(&handler), Arc::clone(&shared));
        self.task
            .leased_async(move |context, _job| {
                run_under_lease(Arc::clone(&shared), Context::new(&shared, context), Arc::clone(&on_lease))
            })
            .in_transactions(handler, move |attempt| run_attempt(Arc::clone(&of_attempts), attempt))
            .concurrency(connections)
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
