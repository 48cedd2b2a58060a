//! What the job of a workflow stores: its graph, and how far a failure has been handled.

use serde::{Deserialize, Serialize};

use super::{Edge, OnFailure};
use crate::{Annotations, Error, JobId, Key, NewJob, Payload, PayloadLimits, QueueName};

/// The payload of the job of a workflow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) workflow: String,
    pub(crate) on_failure: OnFailure,
    pub(crate) jobs: Vec<PlannedJob>,
    /// Whether the workflow ends as cancelled.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_cancelled: bool,
    /// Whether the calls that undo jobs have been put.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_undone: bool,
    /// Whether all jobs run again when the calls that undo them have ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) runs_again: bool,
    /// The running jobs that were asked to end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) asked: Vec<JobId>,
    /// The jobs that were dead when another one was requeued. They do not stop the workflow once more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) stays_dead: Vec<String>,
}

/// A job of a workflow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlannedJob {
    pub(crate) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) task: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) after: Vec<Edge>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) undo: Option<Undo>,
}

/// A call that undoes a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Undo {
    pub(crate) task: Option<String>,
    pub(super) queue: String,
    /// The payload as text, so that it is stored byte for byte, however deep it is.
    data: String,
    #[serde(default)]
    priority: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<String>,
}

impl Undo {
    pub(super) fn new(queue: QueueName, job: &NewJob) -> Result<Self, Error> {
        if job.unique.is_some() || job.schedule_at.is_some() || !job.links.is_empty() {
            return Err(Error::InvalidSetting(
                "invalid undo of a job of a workflow: its call must not have a time, a unique key or other jobs to wait for"
                    .to_owned(),
            ));
        }
        Ok(Self {
            task: job.task.as_deref().map(str::to_owned),
            queue: queue.to_string(),
            data: job.payload.as_str().to_owned(),
            priority: job.priority,
            key: job.serialization_key.as_ref().map(|key| key.as_str().to_owned()),
            annotations: job.annotations.as_json().map(str::to_owned),
        })
    }

    /// Returns the call, and its queue.
    pub(super) fn job(&self) -> Result<(QueueName, NewJob), Error> {
        let job = NewJob {
            priority: self.priority,
            serialization_key: self.key.clone().map(Key::new).transpose()?,
            annotations: Annotations::from_stored(self.annotations.clone()),
            task: self.task.as_deref().map(Into::into),
            ..NewJob::new(Payload::from_stored(self.data.clone()))
        };
        Ok((QueueName::new(&self.queue)?, job))
    }
}

impl Plan {
    pub(crate) fn new(workflow: String, on_failure: OnFailure, jobs: Vec<PlannedJob>) -> Self {
        Self {
            workflow,
            on_failure,
            jobs,
            is_cancelled: false,
            is_undone: false,
            runs_again: false,
            asked: Vec::new(),
            stays_dead: Vec::new(),
        }
    }

    /// Reads the payload of the job of a workflow.
    pub(crate) fn read(payload: &Payload) -> Option<Self> {
        serde_json::from_str(payload.as_str()).ok()
    }

    pub(crate) fn payload(&self) -> Result<Payload, Error> {
        let json = serde_json::to_string(self)
            .map_err(|found| Error::Encode(crate::CodecError::new(found.to_string())))?;
        // Each call has the limits of the handle.
        Payload::written(json, PayloadLimits { max_bytes: MAX_BYTES, ..PayloadLimits::default() })
    }

    /// Returns whether a failure of this job fails the workflow.
    pub(crate) fn is_needed(&self, name: &str) -> bool {
        !self.jobs.iter().flat_map(|job| &job.after).any(|edge| edge.name == name && !edge.only_done)
    }

    /// Returns this job and all that come after it.
    pub(crate) fn from(&self, name: &str) -> Vec<&str> {
        let mut found: Vec<&str> = Vec::new();
        // The jobs are sorted: those before a job come first.
        for job in &self.jobs {
            if job.name == name || job.after.iter().any(|edge| found.contains(&&*edge.name)) {
                found.push(&job.name);
            }
        }
        found
    }
}

/// The maximum size of the payload of a workflow: with the calls that undo jobs.
const MAX_BYTES: usize = 64 << 20;
