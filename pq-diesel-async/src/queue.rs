//! Queues on the handle's own connections.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use diesel_async::AsyncPgConnection;
use pq_core::store::Extension;
use pq_core::{
    CancellationToken, Codec, Error as Refused, Extended, Isolation, Job, NewJob, Outcome, Put, PutOptions,
    QueueName, Settlement, SpanInfo, Taken, Wait,
};
use pq_diesel::Error;
use pq_diesel::store::{SqlConnection, may_be_shared};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bound::BoundQueue;
use crate::group_put::{put_alone, put_grouped};
use crate::pool::{BoxFuture, Lent};
use crate::shared::{Shared, change_on_connection, finish, on_connection};
use crate::stream::JobStream;
use crate::take::take_and_commit;
use crate::task::Task;
use crate::transaction::AsyncFunc;
use crate::wait::{Polled, Subscribe, poll_and_wait};

/// A job and the connection whose transaction holds it, if one was ready.
type HeldJob<T> = Result<Option<(Lent, Job<T>)>, Error>;

/// A queue of jobs with payloads of type `T`. Created by [`crate::Pq::queue`].
///
/// Cheap to clone, and usable from many tasks at once. Its methods use connections of the handle. [`Queue::on`] gives
/// the same methods on the caller's connection, inside the caller's transaction.
///
/// The future of each method can be dropped at any time: see [the crate's documentation](crate#dropping-futures).
pub struct Queue<T> {
    pub(crate) shared: Arc<Shared>,
    /// The queue of the handle that blocks: it encodes and decodes.
    pub(crate) queue: pq_diesel::Queue<T>,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), queue: self.queue.clone() }
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("name", self.name()).finish_non_exhaustive()
    }
}

impl<T> Queue<T> {
    pub(crate) fn new(shared: Arc<Shared>, queue: pq_diesel::Queue<T>) -> Self {
        Self { shared, queue }
    }

    /// Returns the queue's name.
    #[must_use]
    pub fn name(&self) -> &QueueName {
        self.queue.name()
    }

    /// Returns the same queue for threads: its methods block, so they must not be called in an asynchronous task.
    ///
    /// Its handlers can serve in the same worker as asynchronous ones.
    #[must_use]
    pub fn blocking(&self) -> &pq_diesel::Queue<T> {
        &self.queue
    }

    /// Replaces the codec of the payloads. Default: the handle's.
    #[must_use]
    pub fn with_codec(mut self, codec: Arc<dyn Codec>) -> Self {
        self.queue = self.queue.with_codec(codec);
        self
    }

    /// Sets a token that ends the queue's waits with [`pq_core::Error::Stopped`]. Default: the handle's.
    #[must_use]
    pub fn with_cancellation_token(mut self, token: &CancellationToken) -> Self {
        self.queue = self.queue.with_cancellation_token(token);
        self
    }

    /// Binds the queue to a connection: its calls are part of the transaction that the connection is in.
    ///
    /// They commit or roll back with the caller's own writes.
    pub fn on<'a>(&'a self, conn: &'a mut AsyncPgConnection) -> BoundQueue<'a, T> {
        BoundQueue::new(self, conn)
    }

    pub(crate) fn token(&self) -> Option<&CancellationToken> {
        self.queue.pq().cancellation_token()
    }

    /// Encodes jobs, and puts them on a connection of the handle.
    pub(crate) async fn put_jobs(
        &self,
        encode: impl FnOnce() -> Result<Vec<NewJob>, Refused>,
    ) -> Result<Vec<Put>, Error> {
        let puts = self.queue.in_put_span_async(encode, |jobs| self.put_encoded(jobs)).await?;
        self.shared.store_put_counts_regularly();
        Ok(puts)
    }

    /// Puts encoded jobs.
    #[doc(hidden)]
    #[allow(clippy::missing_errors_doc)]
    pub async fn put_encoded(&self, jobs: Vec<NewJob>) -> Result<Vec<Put>, Error> {
        if may_be_shared(&jobs) {
            put_grouped(&self.shared, self.name(), jobs).await
        } else {
            put_alone(&self.shared, self.name(), &jobs).await
        }
    }

    /// Takes jobs without decoding them, for the conformance tests.
    #[doc(hidden)]
    #[allow(clippy::missing_errors_doc)]
    pub async fn take_encoded(&self, count: usize, scan: pq_core::Scan) -> Result<Taken, Error> {
        let mut delivery = take_and_commit(&self.shared, self.name(), count, scan).await?;
        delivery.accept();
        Ok(delivery.taken())
    }

    pub(crate) async fn put_job(
        &self,
        encode: impl FnOnce() -> Result<NewJob, Refused>,
    ) -> Result<Put, Error> {
        let put = self.put_jobs(|| encode().map(|job| vec![job])).await?;
        put.into_iter().next().ok_or_else(|| Error::OutcomeUnknown("a trigger skipped the job".to_owned()))
    }
}

/// Enqueueing.
impl<T: Serialize> Queue<T> {
    /// Enqueues a job.
    ///
    /// The job is committed when this returns. Tasks that put at the same time share a statement and a commit. To
    /// enqueue in a transaction of your own, use [`Queue::on`]. If the future is dropped, the job may have been
    /// added.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if the payload is refused; nothing was sent then. The database's own. If the connection was
    /// lost during the commit, the outcome is unknown, and the error says so.
    pub async fn put<Q: Serialize + ?Sized>(&self, data: &Q) -> Result<Put, Error>
    where
        T: Borrow<Q>,
    {
        self.put_job(|| self.queue.encode(data, &PutOptions::new())).await
    }

    /// Enqueues a job with options, as [`Queue::put`] does.
    ///
    /// With a unique key the job may exist already: [`Put::outcome`] says what was done.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put`], and [`Error::Refused`] for an invalid option.
    pub async fn put_with<Q: Serialize + ?Sized>(&self, data: &Q, options: &PutOptions) -> Result<Put, Error>
    where
        T: Borrow<Q>,
    {
        self.put_job(|| self.queue.encode(data, options)).await
    }

    /// Enqueues many jobs in one round trip, all or none, and returns their ids in the same order.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put`]; no job was added then.
    pub async fn put_many(&self, data: impl IntoIterator<Item = impl Borrow<T>>) -> Result<Vec<Put>, Error> {
        self.put_jobs(|| self.queue.encode_each(data).collect()).await
    }

    /// Enqueues many jobs, each with its own options, as [`Queue::put_many`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put_with`]; no job was added then.
    pub async fn put_many_with(
        &self,
        jobs: impl IntoIterator<Item = (impl Borrow<T>, impl Borrow<PutOptions>)>,
    ) -> Result<Vec<Put>, Error> {
        self.put_jobs(|| self.queue.encode_each_with(jobs).collect()).await
    }
}

/// Taking.
impl<T: DeserializeOwned + Send> Queue<T> {
    /// Takes the next job, waiting for one if necessary. Returns `None` if the wait ended without a job.
    ///
    /// **At most once**: the take is committed before this returns, so a crash afterwards loses the job. If that
    /// matters, use [`Queue::get_with`], [`Queue::lease`], or [`Queue::on`] in a transaction. If the future is
    /// dropped while the take commits, the job is put again, with a new id.
    ///
    /// No thread waits. A job whose payload is not a `T` is archived as dead, and the next job is taken instead.
    ///
    /// # Errors
    ///
    /// [`pq_core::Error::Stopped`] if a [`CancellationToken`] ended the wait; the database's own.
    pub async fn get(&self, wait: Wait) -> Result<Option<Job<T>>, Error> {
        Ok(self.get_many(1, wait).await?.pop())
    }

    /// Takes up to `count` jobs in queue order, waiting for the first one if necessary.
    ///
    /// Returns an empty list if the wait ended without a job. **At most once**, as [`Queue::get`]. A list with fewer
    /// jobs does not mean that no more are ready, see [`pq_core::Queue::get_many`].
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::get`].
    pub async fn get_many(&self, count: usize, wait: Wait) -> Result<Vec<Job<T>>, Error> {
        let found = poll_and_wait(
            &self.shared,
            Subscribe::Puts(self.name()),
            wait,
            self.token(),
            |scan| async move {
                loop {
                    // If this future is dropped before the jobs are returned, they are put again.
                    let span = self.queue.take_span(count);
                    let taking = take_and_commit(&self.shared, self.name(), count, scan);
                    let mut delivery = span.run_async(taking).await?;
                    let taken = delivery.taken();
                    span.describe(|| SpanInfo::Taken(&taken.jobs));
                    drop(span);
                    let found = self.queue.decode(taken);
                    if !found.dead.is_empty() {
                        on_connection!(self.shared, |conn| self
                            .shared
                            .store()
                            .move_to_dead_on(conn, &found.dead))?;
                    }
                    delivery.accept();
                    if !found.jobs.is_empty() {
                        return Ok(Polled::Found(found.jobs));
                    }
                    if found.dead.is_empty() {
                        return Ok(Polled::Nothing { next_due: found.next_due });
                    }
                }
            },
        );
        Ok(found.await?.unwrap_or_default())
    }

    /// Takes the next job and runs `work` on it, in one transaction.
    ///
    /// The take, what `work` writes on the connection, and the job's completion commit together or not at all. Returns
    /// `None` if the wait ended without a job. No transaction is open during the wait.
    ///
    /// **Exactly once**, for effects in the database: an error, a crash or a dropped future returns the job to the
    /// queue.
    ///
    /// # Errors
    ///
    /// The error of `work`; [`pq_core::Error::Stopped`]; the database's own.
    pub async fn get_with<R, E>(
        &self,
        wait: Wait,
        work: impl for<'c> AsyncFnOnce(&'c mut AsyncPgConnection, Job<T>) -> Result<R, E>
        + for<'c> AsyncFunc<(&'c mut AsyncPgConnection, Job<T>), Result<R, E>>
        + Send,
    ) -> Result<Option<R>, E>
    where
        R: Send,
        E: From<Error> + Send,
    {
        let Some((mut lent, job)) = self.take_and_hold(wait).await? else { return Ok(None) };
        let done = AsyncFunc::call(work, (lent.connection(), job)).await;
        self.shared.end(lent, done).await.map(Some)
    }

    /// Takes a job in a transaction, and returns both.
    fn take_and_hold(&self, wait: Wait) -> BoxFuture<'_, HeldJob<T>> {
        Box::pin(poll_and_wait(
            &self.shared,
            Subscribe::Puts(self.name()),
            wait,
            self.token(),
            move |scan| async move {
                let mut lent = self.shared.lend().await?;
                let done = self.shared.within_limit(self.take_in_transaction(&mut lent.sql(), scan)).await;
                match done {
                    Ok(Polled::Found(job)) => Ok(Polled::Found((lent, job))),
                    Ok(Polled::Nothing { next_due }) => finish(lent, Ok(Polled::Nothing { next_due })),
                    Err(error) => Err(error),
                }
            },
        ))
    }

    /// Begins a transaction and takes a job in it. Rolls back if there is none.
    async fn take_in_transaction(
        &self,
        conn: &mut impl SqlConnection,
        scan: pq_core::Scan,
    ) -> Result<Polled<Job<T>>, Error> {
        let store = self.shared.store();
        loop {
            conn.begin(0, Isolation::ReadCommitted).await?;
            let taking = store.take_on(conn, self.name(), 1, scan);
            let found = self.queue.decode(self.queue.in_take_span_async(1, taking).await?);
            if let Some(job) = found.jobs.into_iter().next() {
                return Ok(Polled::Found(job));
            }
            store.move_to_dead_on(conn, &found.dead).await?;
            conn.commit(0).await.map_err(|error| store.error(error).unless_committed())?;
            if found.dead.is_empty() {
                return Ok(Polled::Nothing { next_due: found.next_due });
            }
        }
    }

    /// Takes up to `count` jobs under a lease, waiting for the first one if necessary.
    ///
    /// Returns an empty list if the wait ended without a job. The jobs are held for `lease`, or until they are
    /// settled by [`Queue::settle`]. [`Queue::extend`] extends the lease. **At least once**: after a crash, or if the
    /// future is dropped, the lease expires, and the jobs are requeued. See [`pq_core::Queue::lease`].
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::get`].
    pub async fn lease(&self, count: usize, lease: Duration, wait: Wait) -> Result<Vec<Job<T>>, Error> {
        let store = self.shared.store();
        let found = poll_and_wait(
            &self.shared,
            Subscribe::Puts(self.name()),
            wait,
            self.token(),
            |scan| async move {
                loop {
                    let taking = async {
                        on_connection!(self.shared, |conn| {
                            store.lease_on(conn, self.name(), count, lease, scan)
                        })
                    };
                    let taken: Taken = self.queue.in_take_span_async(count, taking).await?;
                    let found = self.queue.decode(taken);
                    if !found.dead.is_empty() {
                        let outcome = |reason: &String| Outcome::Dead { error: reason.clone() };
                        let dead: Vec<Settlement<'_>> = found
                            .dead
                            .iter()
                            .map(|dead| Settlement { job: &dead.job, outcome: outcome(&dead.reason) })
                            .collect();
                        // If it is refused, the lease has expired, and the next take of the job archives it.
                        let _ = on_connection!(self.shared, |conn| store.settle_on(conn, &dead))?;
                    }
                    if !found.jobs.is_empty() {
                        return Ok(Polled::Found(found.jobs));
                    }
                    if found.dead.is_empty() {
                        return Ok(Polled::Nothing { next_due: found.next_due });
                    }
                }
            },
        );
        Ok(found.await?.unwrap_or_default())
    }

    /// Returns a stream of jobs, each taken as by [`Queue::get`]: **at most once**.
    ///
    /// The stream waits without limit, and ends when the queue's [`CancellationToken`] is cancelled. After an error,
    /// which is an item, it goes on.
    #[must_use]
    pub fn stream(&self) -> JobStream<T>
    where
        T: 'static,
    {
        JobStream::new(self.clone())
    }
}

/// Settling.
impl<T> Queue<T> {
    /// Settles a leased job with its outcome. Committed when this returns.
    ///
    /// # Errors
    ///
    /// [`pq_core::Error::LeaseLost`] if the lease has been lost; nothing was changed then. The database's own.
    pub async fn settle(&self, job: &Job<T>, outcome: Outcome) -> Result<(), Error> {
        let settlements = [Settlement { job, outcome }];
        let parts = settlements.iter().map(Settlement::parts);
        let span = self.queue.pq().settle_span(self.name(), parts);
        let settling = async {
            change_on_connection!(self.shared, |conn| self.shared.store().settle_on(conn, &settlements))
        };
        let accepted = span.run_async(settling).await?;
        if accepted.all() { Ok(()) } else { Err(Refused::lease_lost(job.id).into()) }
    }

    /// Extends the lease of the job, and of all jobs taken with it, to expire `lease` from now.
    ///
    /// # Errors
    ///
    /// [`pq_core::Error::LeaseLost`] if the lease has been lost. [`pq_core::Error::LeaseLocked`] if an open transaction
    /// settles the jobs of the lease and does not end within half a second. The database's own.
    pub async fn extend(&self, job: &Job<T>, lease: Duration) -> Result<Extended, Error> {
        const TRIES: usize = 25;
        const PAUSE: Duration = Duration::from_millis(20);
        let Some(token) = job.lease() else { return Err(Refused::lease_lost(job.id).into()) };
        let tokens = [token];
        for _ in 0..TRIES {
            let answers = change_on_connection!(self.shared, |conn| self
                .shared
                .store()
                .extend_on(conn, &tokens, lease))?;
            match answers.into_iter().next() {
                Some(Extension::Extended(extended)) => return Ok(extended),
                Some(Extension::Locked(_)) => tokio::time::sleep(PAUSE).await,
                None => return Err(Refused::lease_lost(job.id).into()),
            }
        }
        Err(Refused::lease_locked(job.id).into())
    }
}

impl Queue<()> {
    /// Returns the task of this name, whose jobs are in this queue.
    #[must_use]
    pub fn task<A>(&self, name: &str) -> Task<A> {
        Task::new(self.clone(), self.queue.task(name))
    }
}
