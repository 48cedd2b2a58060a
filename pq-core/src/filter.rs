//! Which jobs are listed or changed.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

use crate::annotations::contains_members;
use crate::{JobId, JobRecord, JobState};

/// Selects the jobs of a listing or of an operation. A filter without conditions selects all jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Filter {
    /// Selects jobs in any of these states. Default: any state.
    pub states: Vec<JobState>,
    /// Selects jobs with this serialization key.
    pub serialization_key: Option<String>,
    /// Selects the job with this id, in any queue.
    pub id: Option<JobId>,
    /// Selects jobs of this queue.
    pub queue: Option<String>,
    /// Selects jobs with higher ids than this, which is the last of the previous page.
    pub after: Option<JobId>,
    /// Selects calls of the task with this name.
    ///
    /// It is read from JSON as the library and Python's `pq` write it. In a call that contains `\u` escapes it is found
    /// only at the beginning of the payload, where both write it.
    pub task: Option<String>,
    /// Selects jobs whose error contains this text.
    pub error: Option<String>,
    /// Selects jobs that were put at this instant or before, and archived jobs that ended by then.
    pub until: Option<DateTime<Utc>>,
    /// Selects jobs with all of these tags.
    pub tags: Vec<String>,
    /// Selects jobs whose metadata has all of these members.
    ///
    /// In an object within it members can be missing as well, and in an array items, as for PostgreSQL's `@>`.
    pub metadata: Map<String, Value>,
    /// Selects jobs of this group. See [`crate::PutOptions::group`].
    pub group: Option<String>,
    /// Selects the jobs of this workflow.
    pub workflow: Option<JobId>,
    /// Of the jobs of a workflow, selects the one with this name, and those that undo it.
    pub workflow_job: Option<String>,
}

impl Filter {
    /// Selects the jobs of a queue.
    pub fn queue(queue: impl AsRef<str>) -> Self {
        Self { queue: Some(queue.as_ref().to_owned()), ..Self::default() }
    }

    /// Selects the job with this id.
    pub fn id(id: JobId) -> Self {
        Self { id: Some(id), ..Self::default() }
    }

    /// Selects only jobs in this state, or in one that was added before.
    pub fn state(mut self, state: JobState) -> Self {
        self.states.push(state);
        self
    }

    /// Selects only jobs with higher ids than this.
    pub fn after(mut self, id: JobId) -> Self {
        self.after = Some(id);
        self
    }

    /// Selects only jobs with this serialization key.
    pub fn serialization_key(mut self, key: impl AsRef<str>) -> Self {
        self.serialization_key = Some(key.as_ref().to_owned());
        self
    }

    /// Selects only calls of the task with this name.
    pub fn task(mut self, name: impl AsRef<str>) -> Self {
        self.task = Some(name.as_ref().to_owned());
        self
    }

    /// Selects only jobs whose error contains this text.
    pub fn error(mut self, text: impl AsRef<str>) -> Self {
        self.error = Some(text.as_ref().to_owned());
        self
    }

    /// Selects only jobs that were put, or have ended, at this instant or before. [`crate::Pq::now`] reads the clock.
    pub fn until(mut self, instant: DateTime<Utc>) -> Self {
        self.until = Some(instant);
        self
    }

    /// Selects only jobs with this tag, and with those that were added before.
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// Selects only jobs whose metadata has these members. See [`Filter::metadata`](field@Filter::metadata).
    pub fn metadata(mut self, members: Map<String, Value>) -> Self {
        self.metadata = members;
        self
    }

    /// Selects only jobs of this group.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Selects only the jobs of the workflow with this id.
    pub fn workflow(mut self, id: JobId) -> Self {
        self.workflow = Some(id);
        self
    }

    /// Selects only the job of a workflow with this name, and those that undo it. See [`crate::Workflow`].
    pub fn workflow_job(mut self, workflow: JobId, name: impl Into<String>) -> Self {
        self.workflow_job = Some(name.into());
        self.workflow(workflow)
    }

    /// Returns the annotations that a job must contain as JSON, or `None` if there is no condition on them.
    #[must_use]
    pub fn annotations(&self) -> Option<String> {
        let mut wanted = Map::new();
        if !self.tags.is_empty() {
            wanted.insert("tags".to_owned(), json!(self.tags));
        }
        if !self.metadata.is_empty() {
            wanted.insert("metadata".to_owned(), Value::Object(self.metadata.clone()));
        }
        if let Some(group) = &self.group {
            wanted.insert("group".to_owned(), json!(group));
        }
        if let Some(workflow) = self.workflow {
            let named = self.workflow_job.as_ref().map(|name| json!({ "id": workflow, "name": name }));
            wanted.insert("workflow".to_owned(), named.unwrap_or_else(|| json!({ "id": workflow })));
        }
        (!wanted.is_empty()).then(|| Value::Object(wanted).to_string())
    }

    /// Returns whether the filter selects the job.
    #[must_use]
    pub fn matches(&self, job: &JobRecord) -> bool {
        let key = job.serialization_key.as_ref().map(|key| key.as_str());
        (self.states.is_empty() || self.states.contains(&job.state))
            && self.serialization_key.as_deref().is_none_or(|wanted| key == Some(wanted))
            && self.id.is_none_or(|id| job.id == id)
            && self.queue.as_deref().is_none_or(|queue| job.queue.as_str() == queue)
            && self.after.is_none_or(|after| job.id > after)
            && self.task.as_ref().is_none_or(|task| job.payload.task().as_ref() == Some(task))
            && self.error.as_deref().is_none_or(|text| job.error.as_deref().is_some_and(|e| e.contains(text)))
            && self.until.is_none_or(|until| job.ended_at.unwrap_or(job.enqueued_at) <= until)
            && (self.tags.is_empty() || self.has_tags(job))
            && (self.metadata.is_empty() || contains_members(&job.annotations.metadata(), &self.metadata))
            && (self.group.is_none() || self.group == job.annotations.group())
            && self.workflow.is_none_or(|id| {
                let is_named = |name: &str| self.workflow_job.as_ref().is_none_or(|wanted| wanted == name);
                job.annotations.workflow().is_some_and(|place| place.id == id && is_named(&place.name))
            })
    }

    fn has_tags(&self, job: &JobRecord) -> bool {
        let tags = job.annotations.tags();
        self.tags.iter().all(|tag| tags.contains(tag))
    }
}
