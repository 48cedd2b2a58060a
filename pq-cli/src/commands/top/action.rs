//! Actions: what the user can change from the view.

use pq_diesel::admin::WorkerId;
use pq_diesel::{CancelOutcome, Error, JobId, Pq, QueueName, StopMode};

use crate::output;

/// A change to a queue, a job or a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Pause(QueueName),
    Resume(QueueName),
    Retry(QueueName, JobId),
    RetryAllDead(QueueName),
    /// The queue name is unchecked: it comes from a worker's heartbeat.
    Cancel(String, JobId),
    Stop(WorkerId, StopMode),
}

impl Action {
    /// Runs the action and describes the result.
    pub(super) fn run(&self, pq: &Pq) -> Result<String, Error> {
        let queue = |name: &str| pq.queue::<()>(name);
        Ok(match self {
            Self::Pause(name) => match queue(name.as_str())?.pause()? {
                true => format!("{name}: paused"),
                false => format!("{name}: already paused"),
            },
            Self::Resume(name) => match queue(name.as_str())?.resume()? {
                true => format!("{name}: resumed"),
                false => format!("{name}: not paused"),
            },
            Self::Retry(name, id) => match queue(name.as_str())?.retry(*id)? {
                true => format!("{id}: requeued in {name}"),
                false => format!("cannot retry job {id}: it is no longer dead, or its unique key is in use"),
            },
            Self::RetryAllDead(name) => {
                let requeued = queue(name.as_str())?.retry_all_dead()?;
                format!("{name}: {} requeued", output::plural(requeued, "dead job"))
            }
            Self::Cancel(name, id) => match queue(name)?.cancel(*id)? {
                CancelOutcome::Cancelled => format!("{id}: cancelled"),
                CancelOutcome::Requested => format!("{id}: running; it is asked to stop"),
                CancelOutcome::Held => format!("cannot cancel job {id}: a transaction holds it"),
                CancelOutcome::NotFound => format!("cannot cancel job {id}: it has ended"),
            },
            Self::Stop(worker, mode) => match pq.stop_worker(*worker, *mode)? {
                true => format!("worker {worker}: asked to stop ({mode}) at its next heartbeat"),
                false => format!("worker {worker}: no longer registered"),
            },
        })
    }
}
