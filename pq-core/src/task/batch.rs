//! Batches of jobs that one job waits for.

use serde::Serialize;

use super::{BoundTask, Task};
use crate::{Batch, CallOptions, Error, JobId, NewJob, Store};

impl<S: Store, A: Serialize> Task<S, A> {
    /// Enqueues a call that waits until all jobs have ended that `fill` puts into the batch, in one transaction.
    ///
    /// `fill` puts them with [`Batch::call_options`] or [`crate::PutOptions::in_batch`] on the connection that it
    /// gets, in any queues. Each of them can add more jobs to its own batch while it runs, see
    /// [`crate::Annotations::batch`]. The call is due once, within a second after the last of them has ended,
    /// whatever their outcomes; its handler finds their counts in [`crate::Annotations::ended`]. If no job was added,
    /// it is due at once.
    ///
    /// ```
    /// use pq_core::{Pq, Worker, memory::MemoryStore};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pq = Pq::new(MemoryStore::new());
    /// let queue = pq.queue("images")?;
    /// let (resize, report) = (queue.task::<u32>("resize"), queue.task::<String>("report"));
    /// report.batch(&"holiday".to_owned(), |conn, batch| {
    ///     for image in 0..3 {
    ///         resize.on(conn).call_with(&image, &batch.call_options())?;
    ///     }
    ///     Ok::<_, pq_core::Error>(())
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The errors of [`Task::call`] and of `fill`. Nothing was put then.
    pub fn batch<R, E: From<S::Error>>(
        &self,
        arguments: &A,
        fill: impl FnOnce(&mut S::Conn, &Batch) -> Result<R, E>,
    ) -> Result<(JobId, R), E> {
        self.queue.transaction(|conn| self.on(conn).batch(arguments, fill))
    }

    /// Encodes a call that waits for a batch. For a crate that puts jobs on connections of its own.
    ///
    /// # Errors
    ///
    /// The errors of [`Task::encode`].
    pub fn encode_open_batch(&self, arguments: &A) -> Result<NewJob, Error> {
        self.encode(arguments, &CallOptions::new().open())
    }
}

impl<S: Store, A: Serialize> BoundTask<'_, S, A> {
    /// Enqueues a call that waits for a batch in this transaction, as [`Task::batch`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Task::batch`].
    pub fn batch<R, E: From<S::Error>>(
        &mut self,
        arguments: &A,
        fill: impl FnOnce(&mut S::Conn, &Batch) -> Result<R, E>,
    ) -> Result<(JobId, R), E> {
        let task = self.task;
        self.queue.transaction(|conn| {
            let batch = Batch::new(task.on(conn).queue.put_one(|| task.encode_open_batch(arguments))?.id);
            let filled = fill(conn, &batch)?;
            task.queue.store().release(conn, batch.id())?;
            Ok((batch.id(), filled))
        })
    }
}
