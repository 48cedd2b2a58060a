//! Handlers of tasks.

use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::Task;
use crate::envelope::Envelope;
use crate::handler::{Incoming, Run, erase_types};
use crate::{Claim, Context, Failure, Handler, Job, Outcome, Store};

impl<S: Store, A: DeserializeOwned + 'static> Task<S, A> {
    /// Creates a handler that runs in the transaction that takes its job, on the connection that it receives.
    ///
    /// The handler's writes on that connection and the job's completion commit together, or not at all. Use it for work
    /// that lives in the database.
    ///
    /// The transaction is at [`crate::Isolation::ReadCommitted`], see [`Task::isolation`]. If the handler sends a
    /// statement, it is the only one of its transaction that does, see [`Task::share_transaction`]. Handlers that send
    /// nothing share a transaction.
    ///
    /// `Ok` of any outcome commits what the handler wrote. An error or a panic rolls it back, and the attempt has
    /// failed. [`Outcome::rolled_back`] rolls it back without a failure.
    ///
    /// After a conflict with another transaction, a deadlock or a serialization failure, the handler is run again at
    /// once, three times at most, within the same attempt. After a crash everything is rolled back, the job is ready
    /// again as soon as the server notices, and the attempt is not counted. The next attempt runs under a lease, in a
    /// transaction of its own, so that it counts.
    ///
    /// The handler must not commit or roll back the transaction.
    #[must_use]
    pub fn transactional<R: Into<Outcome>, E: fmt::Display>(
        &self,
        handler: impl Fn(&mut S::Conn, Job<A>) -> Result<R, E> + Send + Sync + 'static,
    ) -> Handler<S> {
        self.handler(Run::Transactional(Box::new(move |conn, incoming| {
            erase_types(handler(conn, decode_call(incoming)?))
        })))
    }

    /// Creates a handler that runs under a lease, while no transaction is open.
    ///
    /// The worker extends the lease while the handler runs. Use it for work that lives outside of the database.
    ///
    /// The job runs at least once. After a crash it is requeued when the lease has expired. The handler must
    /// therefore be safe to repeat, or complete the job together with its writes by [`Context::complete_with`].
    #[must_use]
    pub fn leased<R: Into<Outcome>, E: fmt::Display>(
        &self,
        handler: impl Fn(&Context<S>, Job<A>) -> Result<R, E> + Send + Sync + 'static,
    ) -> Handler<S> {
        self.handler(Run::Leased(Box::new(move |context, incoming| {
            context.conclude(erase_types(handler(context, decode_call(incoming)?)))
        })))
    }

    /// Creates an asynchronous handler that runs under a lease, while no transaction is open.
    ///
    /// The worker runs many at the same time, see [`crate::Worker::concurrency`], on an [`crate::Executor`], and
    /// needs no thread for each. It extends the leases while the futures run. A future that exceeds the task's
    /// timeout is dropped, and the attempt has failed. A panic fails the attempt.
    ///
    /// The job runs at least once, as by [`Task::leased`]. The handler learns through [`Context::cancellation_token`]
    /// that it should end.
    #[must_use]
    pub fn leased_async<R, E, F>(
        &self,
        handler: impl Fn(Arc<Context<S>>, Job<A>) -> F + Send + Sync + 'static,
    ) -> Handler<S>
    where
        R: Into<Outcome>,
        E: fmt::Display,
        F: Future<Output = Result<R, E>> + Send + 'static,
    {
        self.handler(Run::Asynchronous(Box::new(move |context, incoming| {
            let future = handler(Arc::clone(context), decode_call(incoming)?);
            let context = Arc::clone(context);
            Ok(Box::pin(async move { context.conclude(erase_types(future.await)) }))
        })))
    }

    /// Decodes a job of this task, for a crate that runs its handlers by [`Handler::in_transactions`].
    ///
    /// # Errors
    ///
    /// [`Failure::Undecodable`].
    pub fn decode(&self, claim: &Arc<Claim>) -> Result<Job<A>, Failure> {
        let call = self.queue.json_of(claim).and_then(|json| Envelope::read(&json));
        let envelope = Some(call.map_err(Failure::Undecodable)?);
        decode_call(&Incoming { claim: Arc::clone(claim), envelope })
    }

    fn handler(&self, run: Run<S>) -> Handler<S> {
        Handler {
            queue: self.queue.clone(),
            task: Some(self.name.to_string()),
            run,
            in_transaction: None,
            policy: self.policy.clone(),
        }
    }
}

fn decode_call<A: DeserializeOwned>(incoming: &Incoming) -> Result<Job<A>, Failure> {
    let envelope = incoming.envelope.as_ref();
    let arguments = envelope.ok_or_else(|| "invalid task payload".to_owned()).and_then(Envelope::arguments);
    let data = arguments.map_err(Failure::Undecodable)?;
    Ok(Job { data, claim: Arc::clone(&incoming.claim) })
}
