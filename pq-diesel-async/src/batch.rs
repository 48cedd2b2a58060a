//! Batches of jobs that one job waits for.

use diesel_async::AsyncPgConnection;
use pq_core::{Batch, JobId};
use pq_diesel::Error;
use serde::Serialize;

use crate::bound::BoundTask;
use crate::task::Task;
use crate::transaction::AsyncFunc;

impl<A: Serialize + Sync> Task<A> {
    /// Enqueues a call that waits until all jobs have ended that `fill` puts into the batch, in one transaction. See
    /// [`pq_core::Task::batch`].
    ///
    /// If the future is dropped, nothing was put, unless the commit is in progress.
    ///
    /// # Errors
    ///
    /// The errors of [`Task::call`] and of `fill`. Nothing was put then.
    pub async fn batch<R, E>(
        &self,
        arguments: &A,
        fill: impl for<'c> AsyncFnOnce(&'c mut AsyncPgConnection, Batch) -> Result<R, E>
        + for<'c> AsyncFunc<(&'c mut AsyncPgConnection, Batch), Result<R, E>>
        + Send,
    ) -> Result<(JobId, R), E>
    where
        R: Send,
        E: From<Error> + Send,
    {
        let mut lent = self.queue.shared.begin().await?;
        let done = async {
            let batch = self.on(lent.connection()).open_batch(arguments).await?;
            let filled = AsyncFunc::call(fill, (lent.connection(), batch)).await?;
            self.on(lent.connection()).close_batch(batch).await?;
            Ok((batch.id(), filled))
        }
        .await;
        self.queue.shared.end(lent, done).await
    }
}

impl<A: Serialize> BoundTask<'_, A> {
    /// Enqueues a call in this transaction that waits for the jobs of a batch.
    ///
    /// Put them in this transaction, with [`Batch::call_options`] or [`pq_core::PutOptions::in_batch`], and then call
    /// [`BoundTask::close_batch`]: a batch without jobs waits until that.
    ///
    /// # Errors
    ///
    /// The errors of [`Task::call`].
    pub async fn open_batch(&mut self, arguments: &A) -> Result<Batch, Error> {
        let task = self.task.blocking();
        let put = self.queue.put_job(|| task.encode_open_batch(arguments)).await?;
        Ok(Batch::new(put.id))
    }

    /// Makes the call of a batch due if no job was added to it.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn close_batch(&mut self, batch: Batch) -> Result<(), Error> {
        self.queue.release(batch.id()).await
    }
}
