//! What can be done from the view.

use pq_diesel::{Cancelled, Error, JobId, Pq, QueueName, StopMode, WorkerId};

/// Something that the user wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Pause(QueueName),
    Resume(QueueName),
    Retry(QueueName, JobId),
    RetryAllDead(QueueName),
    /// The queue is as a worker told it.
    Cancel(String, JobId),
    Stop(WorkerId, StopMode),
}

impl Action {
    /// Does it, and says what came of it.
    pub(super) fn run(&self, pq: &Pq) -> Result<String, Error> {
        let queue = |name: &str| pq.queue::<()>(name);
        Ok(match self {
            Self::Pause(name) => match queue(name.as_str())?.pause()? {
                true => format!("{name}: paused"),
                false => format!("{name}: was paused already"),
            },
            Self::Resume(name) => match queue(name.as_str())?.resume()? {
                true => format!("{name}: goes on"),
                false => format!("{name}: was not paused"),
            },
            Self::Retry(name, id) => match queue(name.as_str())?.retry(*id)? {
                true => format!("{id}: back in the line of {name}"),
                false => format!("{id}: is not dead any more, or its unique key is in use"),
            },
            Self::RetryAllDead(name) => {
                format!("{name}: {} dead jobs are back in the line", queue(name.as_str())?.retry_all_dead()?)
            }
            Self::Cancel(name, id) => match queue(name)?.cancel(*id)? {
                Cancelled::Done => format!("{id}: cancelled"),
                Cancelled::Asked => format!("{id}: runs; its handler is told"),
                Cancelled::Held => format!("{id}: a transaction holds it; it can be cancelled after that"),
                Cancelled::NotFound => format!("{id}: has ended"),
            },
            Self::Stop(worker, mode) => match pq.stop_worker(*worker, *mode)? {
                true => format!("worker {worker}: told to stop ({mode}) at its next beat"),
                false => format!("worker {worker}: is gone"),
            },
        })
    }
}
