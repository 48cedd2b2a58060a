//! What operators do to jobs: to one, or to all that a filter selects.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::store::Source;
use crate::{Filter, JobId, JobState, Payload, QueueName, When};

/// An operation on jobs that wait, run or have ended. See [`crate::Pq::change`] and [`crate::Pq::operate`].
///
/// A job that an open transaction holds is never changed, and never waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Cancels waiting jobs at once, and asks the handlers of leased ones to end, as [`crate::Queue::cancel`] does.
    Cancel,
    /// Requeues dead and cancelled jobs: due at once, with their attempts counted from 0, as [`crate::Queue::retry`].
    Retry,
    /// Deletes jobs that are not held, for good: waiting ones, those that a Python `pq` took, and archived ones.
    ///
    /// A workflow is deleted when it has ended, by its id together with its jobs.
    Delete,
    /// Moves waiting jobs to another queue, with all their attributes, as [`crate::Queue::move_to`] does.
    Move {
        /// The other queue.
        to: QueueName,
    },
    /// Makes scheduled jobs due now, also those that wait between attempts. Wakes waiting workers.
    RunNow,
    /// Replaces the time at which waiting jobs fall due.
    Reschedule {
        /// The new time. A delay begins now, on the store's clock.
        to: When,
    },
    /// Replaces the priority of waiting jobs. Wakes waiting workers.
    SetPriority {
        /// The new priority. Higher ones are taken first.
        to: i32,
    },
    /// Replaces the payload of waiting jobs whose payload is still the one that was read, byte for byte.
    EditPayload {
        /// The payload that was read.
        from: Payload,
        /// The new payload.
        to: Payload,
    },
}

impl Operation {
    const WAITING: &[JobState] = &[JobState::Ready, JobState::Blocked, JobState::Scheduled];

    /// Returns the name of the operation, as it is in the audit log: `cancel`, `run now` and so on.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Retry => "retry",
            Self::Delete => "delete",
            Self::Move { .. } => "move",
            Self::RunNow => "run now",
            Self::Reschedule { .. } => "reschedule",
            Self::SetPriority { .. } => "set priority",
            Self::EditPayload { .. } => "edit payload",
        }
    }

    /// Returns the states of the jobs that the operation can change.
    #[must_use]
    pub fn states(&self) -> &'static [JobState] {
        match self {
            Self::Cancel => &[JobState::Ready, JobState::Blocked, JobState::Scheduled, JobState::Running],
            Self::Retry => &[JobState::Dead, JobState::Cancelled],
            Self::Delete => &[
                JobState::Ready,
                JobState::Blocked,
                JobState::Scheduled,
                JobState::Dequeued,
                JobState::Dead,
                JobState::Cancelled,
                JobState::Done,
            ],
            Self::RunNow => &[JobState::Scheduled],
            Self::Move { .. }
            | Self::Reschedule { .. }
            | Self::SetPriority { .. }
            | Self::EditPayload { .. } => Self::WAITING,
        }
    }

    /// Returns what the operation was given, without payloads. Empty if it was given nothing.
    #[must_use]
    pub fn details(&self) -> String {
        match self {
            Self::Move { to } => format!("to {to}"),
            Self::Reschedule { to: When::At(at) } => format!("to {at}"),
            Self::Reschedule { to: When::In(delay) } => {
                format!("to {} seconds from now", delay.num_seconds())
            }
            Self::SetPriority { to } => format!("to {to}"),
            _ => String::new(),
        }
    }

    /// Returns the filter for the jobs that the operation can change. `None` if it selects none.
    pub fn selection(&self, filter: &Filter) -> Option<Filter> {
        let is_wanted = |state: &JobState| filter.states.is_empty() || filter.states.contains(state);
        let states: Vec<JobState> = self.states().iter().copied().filter(is_wanted).collect();
        (!states.is_empty()).then(|| Filter { states, ..filter.clone() })
    }
}

/// What an operation has done to the jobs that it selected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct OperationReport {
    /// Jobs that were changed, and running ones that are asked to end.
    pub changed: u64,
    /// Jobs that were passed: an open transaction held them, their unique key was in use, or they had just changed.
    pub skipped: u64,
}

/// What became of an operation on one job. Its text says why nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ChangeOutcome {
    /// The job was changed.
    Changed,
    /// The job runs under a lease, and its handler learns that it should end. Or it is a workflow, whose jobs are
    /// cancelled, and which ends when they have ended.
    Requested,
    /// An open transaction holds the job. Ask again when that has ended.
    Held,
    /// The unique key of the job is in use by another one, or an open transaction holds the job or the key.
    KeyInUse,
    /// The payload is not the one that was read.
    PayloadChanged,
    /// The job is in a state in which the operation cannot change it.
    WrongState(JobState),
    /// There is no job with this id.
    NotFound,
}

impl ChangeOutcome {
    /// Returns whether the job was changed, or is asked to end.
    #[must_use]
    pub fn is_accepted(self) -> bool {
        matches!(self, Self::Changed | Self::Requested)
    }
}

impl fmt::Display for ChangeOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Changed => "changed",
            Self::Requested => "it is running, and is asked to stop",
            Self::Held => "a transaction holds it; try again when the transaction has ended",
            Self::KeyInUse => "its unique key is in use, or a transaction holds it",
            Self::PayloadChanged => "its payload has changed since it was read; read it again",
            Self::WrongState(state) => return write!(f, "it is {state}"),
            Self::NotFound => "no such job; it may have completed without history",
        })
    }
}

/// Returns the sources that have jobs in one of these states, in the order in which an operation changes them.
pub(crate) fn sources(states: &[JobState]) -> impl Iterator<Item = Source> + use<> {
    let has = |source: Source| states.iter().any(|state| Source::of(*state) == source);
    let found = [Source::Queue, Source::Leases, Source::Archive].map(|source| has(source).then_some(source));
    found.into_iter().flatten()
}

/// Returns the text of a filter for the audit log, without its queue and its id.
pub(crate) fn describe_filter(filter: &Filter) -> String {
    let Filter {
        workflow_job: _,
        states,
        serialization_key,
        id: _,
        queue: _,
        after,
        task,
        error,
        until,
        tags,
        metadata,
        group,
        workflow,
    } = filter;
    let states: Vec<&str> = states.iter().map(|state| state.as_str()).collect();
    let parts = [
        (!states.is_empty()).then(|| format!("state {}", states.join(" or "))),
        serialization_key.as_ref().map(|key| format!("serialization key {key:?}")),
        after.map(|JobId(id)| format!("id above {id}")),
        task.as_ref().map(|task| format!("task {task:?}")),
        error.as_ref().map(|error| format!("error with {error:?}")),
        until.map(|until| format!("until {until}")),
        (!tags.is_empty()).then(|| format!("tags {tags:?}")),
        group.as_ref().map(|group| format!("group {group:?}")),
        workflow.map(|JobId(id)| format!("workflow {id}")),
        (!metadata.is_empty()).then(|| format!("metadata {}", Value::Object(metadata.clone()))),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
