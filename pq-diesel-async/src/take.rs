//! Taking a job for a caller that may drop its future at any time.
//!
//! A take that commits completes its jobs, so a job must not be on its way to a future that no longer exists. A task
//! of its own takes the jobs in a transaction, and commits only while the caller still waits. If the caller has gone
//! when the commit is confirmed, the jobs are put again.

use std::sync::Arc;

use pq_core::{Claim, Isolation, NewJob, OnConflict, QueueName, Scan, Taken, When};
use pq_diesel::Error;
use pq_diesel::store::SqlConnection;
use tokio::sync::oneshot;

use crate::connection::OnAsync;
use crate::shared::{Shared, finish};

/// Jobs whose take has committed. They are put again when this is dropped before [`Delivery::accept`].
pub(crate) struct Delivery {
    shared: Arc<Shared>,
    queue: QueueName,
    taken: Taken,
    is_accepted: bool,
}

impl Delivery {
    /// Returns the jobs, which are still to be accepted.
    pub(crate) fn taken(&self) -> Taken {
        self.taken.clone()
    }

    /// Leaves the jobs to the caller.
    pub(crate) fn accept(&mut self) {
        self.is_accepted = true;
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if self.is_accepted || self.taken.jobs.is_empty() {
            return;
        }
        let (shared, queue) = (Arc::clone(&self.shared), self.queue.clone());
        let jobs = std::mem::take(&mut self.taken.jobs);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move { put_again(&shared, &queue, &jobs).await })),
            Err(_) => jobs.iter().for_each(|job| {
                tracing::error!(%queue, job_id = %job.id, "job lost: its call was dropped outside of a runtime");
            }),
        }
    }
}

/// Takes up to `count` jobs and commits. No job is lost if the future is dropped.
pub(crate) async fn take_and_commit(
    shared: &Arc<Shared>,
    queue: &QueueName,
    count: usize,
    scan: Scan,
) -> Result<Delivery, Error> {
    let (deliver, delivered) = oneshot::channel();
    tokio::spawn(take_for(Arc::clone(shared), queue.clone(), count, scan, deliver));
    let panicked = || Error::Unavailable("the task that took the jobs panicked".to_owned());
    delivered.await.unwrap_or_else(|_| Err(panicked()))
}

async fn take_for(
    shared: Arc<Shared>,
    queue: QueueName,
    count: usize,
    scan: Scan,
    deliver: oneshot::Sender<Result<Delivery, Error>>,
) {
    let taken = take(&shared, &queue, count, scan, &deliver).await;
    let delivery = taken.map(|taken| Delivery { shared, queue, taken, is_accepted: false });
    // What cannot be sent is dropped, and so is what was sent and never received.
    drop(deliver.send(delivery));
}

async fn take(
    shared: &Shared,
    queue: &QueueName,
    count: usize,
    scan: Scan,
    deliver: &oneshot::Sender<Result<Delivery, Error>>,
) -> Result<Taken, Error> {
    let mut lent = shared.lend().await?;
    let done =
        shared.within_limit(take_in_transaction(shared, &mut lent.sql(), queue, count, scan, deliver)).await;
    finish(lent, done)
}

async fn take_in_transaction(
    shared: &Shared,
    conn: &mut OnAsync<'_>,
    queue: &QueueName,
    count: usize,
    scan: Scan,
    deliver: &oneshot::Sender<Result<Delivery, Error>>,
) -> Result<Taken, Error> {
    conn.begin(0, Isolation::ReadCommitted).await?;
    let taken = shared.store().take_on(conn, queue, count, scan).await;
    // A take without jobs commits, too: it may have to notify others.
    if taken.is_err() || deliver.is_closed() {
        conn.roll_back_to(0).await?;
        return taken.map(|taken| Taken { jobs: Vec::new(), ..taken });
    }
    let committed = conn.commit(0).await.map_err(|error| shared.store().error(error).unless_committed());
    match committed {
        Ok(()) => taken,
        Err(error) => {
            drop(conn.roll_back_to(0).await);
            Err(error)
        }
    }
}

/// Puts jobs again whose take was committed for a caller that has gone. They get new ids.
async fn put_again(shared: &Shared, queue: &QueueName, jobs: &[Arc<Claim>]) {
    let again: Vec<NewJob> = jobs.iter().map(|job| as_new(job)).collect();
    match crate::group_put::put_alone(shared, queue, &again).await {
        Ok(_) => {
            tracing::info!(%queue, jobs = jobs.len(), "a call was dropped while its take was committed; its jobs were put again")
        }
        Err(error) => {
            for job in jobs {
                tracing::error!(%queue, job_id = %job.id, %error, "job lost: its call was dropped while its take was committed");
            }
        }
    }
}

fn as_new(job: &Claim) -> NewJob {
    let mut new = NewJob::new(job.payload.clone());
    new.schedule_at = job.schedule_at.map(When::At);
    new.expected_at = job.expected_at.map(When::At);
    new.priority = job.priority;
    new.serialization_key.clone_from(&job.serialization_key);
    new.annotations.clone_from(&job.annotations);
    new.unique = job.unique_key.clone().map(|key| (key, OnConflict::Keep));
    new
}
