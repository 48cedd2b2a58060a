//! Which jobs are listed.

use crate::{JobId, JobRecord, JobState};

/// Selects the jobs of a listing. A filter without conditions selects all jobs.
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

    /// Returns whether the filter selects the job.
    #[must_use]
    pub fn matches(&self, job: &JobRecord) -> bool {
        let key = job.serialization_key.as_ref().map(|key| key.as_str());
        (self.states.is_empty() || self.states.contains(&job.state))
            && self.serialization_key.as_deref().is_none_or(|wanted| key == Some(wanted))
            && self.id.is_none_or(|id| job.id == id)
            && self.queue.as_deref().is_none_or(|queue| job.queue.as_str() == queue)
            && self.after.is_none_or(|after| job.id > after)
    }
}
