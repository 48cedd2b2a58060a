//! Options of a put.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::annotations::Noted;
use crate::{
    After, Annotations, Error, IntoWhen, JobId, Key, Links, NewJob, OnConflict, Payload, TimeError, Trace,
    When,
};

/// The options of a put: times, priority, keys, tags, metadata, and what limits count.
///
/// An invalid value is kept and refused by the put, before anything is sent. [`PutOptions::check`] refuses it earlier.
///
/// ```
/// use pq_core::PutOptions;
/// let options = PutOptions::new().schedule_at("5m").priority(3);
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct PutOptions {
    schedule_at: Option<Result<When, TimeError>>,
    expected_at: Option<Result<When, TimeError>>,
    priority: Option<i32>,
    serialization_key: Option<String>,
    unique: Option<(String, OnConflict)>,
    tags: Option<Vec<String>>,
    metadata: Option<Result<Map<String, Value>, String>>,
    awaited: bool,
    group: Option<String>,
    cost: Option<u32>,
    strict: bool,
    links: Links,
}

impl PutOptions {
    /// Creates options for a job that is due at once, with priority 0, and without keys, tags and metadata.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the earliest time to take the job, on the store's clock. Default: at once.
    pub fn schedule_at(mut self, when: impl IntoWhen) -> Self {
        self.schedule_at = Some(when.into_when());
        self
    }

    /// Sets the time by which the job should run. Default: none.
    ///
    /// Orders the jobs of the same priority: earlier times first, then jobs without one. It is not a deadline.
    pub fn expected_at(mut self, when: impl IntoWhen) -> Self {
        self.expected_at = Some(when.into_when());
        self
    }

    /// Sets the priority. Jobs of higher priority are taken first. Default: 0.
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Sets the serialization key, of 1 to 1024 bytes. Default: none.
    ///
    /// At most one of the queue's jobs with the same key runs at any time.
    pub fn serialization_key(mut self, key: impl Into<String>) -> Self {
        self.serialization_key = Some(key.into());
        self
    }

    /// Sets the unique key, of 1 to 1024 bytes. Default: none.
    ///
    /// At most one of the queue's jobs with the same key waits or runs at any time. If there is one, it is kept and
    /// nothing is put. [`crate::Put::outcome`] says which.
    pub fn unique(self, key: impl Into<String>) -> Self {
        self.unique_or(key, OnConflict::Keep)
    }

    /// Sets the unique key, and what to do if a job with it is waiting or running.
    ///
    /// For an event that a handler must see, choose [`OnConflict::KeepWaiting`].
    pub fn unique_or(mut self, key: impl Into<String>, on_conflict: OnConflict) -> Self {
        self.unique = Some((key.into(), on_conflict));
        self
    }

    /// Sets the tags: at most 16, of 1 to 128 bytes each. Default: none.
    ///
    /// They do not change how the job runs. Operators find jobs by them ([`crate::Filter::tag`]), and the handler
    /// reads them by [`crate::Annotations::tags`]. They are kept with the archived job.
    ///
    /// ```
    /// # use pq_core::{Filter, Pq, PutOptions, memory::MemoryStore};
    /// # let pq = Pq::new(MemoryStore::new());
    /// # let mail = pq.queue::<u32>("mail")?;
    /// mail.put_with(&7_u32, &PutOptions::new().tags(["newsletter", "customer 7"]))?;
    /// assert_eq!(pq.list(&Filter::default().tag("customer 7"), 10)?[0].annotations.tags().len(), 2);
    /// # Ok::<(), pq_core::Error>(())
    /// ```
    pub fn tags(mut self, tags: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.tags = Some(tags.into_iter().map(Into::into).collect());
        self
    }

    /// Sets the metadata: a JSON object of at most 4 KiB. Default: none.
    ///
    /// Like tags it does not change how the job runs. See [`crate::Filter::metadata()`] and
    /// [`crate::Annotations::metadata`].
    pub fn metadata(mut self, metadata: impl Serialize) -> Self {
        self.metadata = Some(match serde_json::to_value(metadata) {
            Ok(Value::Object(members)) => Ok(members),
            Ok(_) => Err("invalid metadata: it must be a JSON object".to_owned()),
            Err(error) => Err(format!("invalid metadata: it must be JSON: {error}")),
        });
        self
    }

    /// Sets the group by which the limits of the queue count the job, of 1 to 1024 bytes. Default: none.
    ///
    /// See [`crate::Limits::running_per_group`] and [`crate::Limits::rate_per_group`].
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Sets how many tokens the job takes of the rates of the queue and of its group: 1 to 1,000,000. Default: 1.
    ///
    /// If a bucket holds fewer, the job is taken when the bucket is full. See [`crate::Rate`].
    pub fn cost(mut self, tokens: u32) -> Self {
        self.cost = Some(tokens);
        self
    }

    /// Lets the job keep its serialization key while it waits for a retry. Default: the next job of the key is taken
    /// meanwhile.
    ///
    /// So the jobs of a key end in their order: one that has failed is tried until it is done or dead, and the others
    /// wait. State it for all jobs of the key. It has no effect without a serialization key.
    pub fn strict_order(mut self) -> Self {
        self.strict = true;
        self
    }

    /// Keeps the job in the archive when it is done, and notifies callers that wait for its end. Default: it is kept
    /// if its handler keeps it.
    ///
    /// Set it for a job whose result is read by [`crate::Pq::result`] or awaited by [`crate::Pq::wait_for`] later.
    /// [`crate::Task::call_and_wait`] sets it. A put that keeps or reschedules another job does not change that job.
    pub fn awaited(mut self) -> Self {
        self.awaited = true;
        self
    }

    /// Adds jobs that must be done before this one is due. Default: none.
    ///
    /// The job waits until all of them have ended. If one is dead or cancelled, it is cancelled. A job that a get
    /// took, or that was deleted, counts as done, and so does an id that no job has. So name jobs that were put in
    /// the same transaction, or whose put has committed.
    ///
    /// Such a job has no time and no unique key.
    pub fn after(self, jobs: impl IntoIterator<Item = JobId>) -> Self {
        self.after_each(jobs, true)
    }

    /// Adds jobs that must have ended before this one is due, whatever their outcomes. See [`PutOptions::after`].
    pub fn after_any_outcome(self, jobs: impl IntoIterator<Item = JobId>) -> Self {
        self.after_each(jobs, false)
    }

    fn after_each(mut self, jobs: impl IntoIterator<Item = JobId>, only_done: bool) -> Self {
        self.links.after.extend(jobs.into_iter().map(|job| After { job, only_done }));
        self
    }

    /// Adds the job to the batch that this job waits for. See [`crate::Task::batch`].
    ///
    /// The put is refused with [`Error::BatchEnded`] if that job waits no more.
    pub fn in_batch(mut self, follow_up: JobId) -> Self {
        self.links.batch = Some(follow_up);
        self
    }

    /// Lets the job wait for the jobs that are added to its batch.
    pub(crate) fn open(mut self) -> Self {
        self.links.is_open = true;
        self
    }

    /// Checks the options, as a put does.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidTime`], [`Error::InvalidKey`] or [`Error::InvalidAnnotation`] for the first invalid option.
    pub fn check(&self) -> Result<(), Error> {
        self.job(Payload::from_stored(String::new()), Trace::new()).map(drop)
    }

    /// Returns these options, completed by `others` where they are not set.
    pub(crate) fn or(&self, others: &Self) -> Self {
        Self {
            schedule_at: self.schedule_at.clone().or_else(|| others.schedule_at.clone()),
            expected_at: self.expected_at.clone().or_else(|| others.expected_at.clone()),
            priority: self.priority.or(others.priority),
            serialization_key: self.serialization_key.clone().or_else(|| others.serialization_key.clone()),
            unique: self.unique.clone().or_else(|| others.unique.clone()),
            tags: self.tags.clone().or_else(|| others.tags.clone()),
            metadata: self.metadata.clone().or_else(|| others.metadata.clone()),
            awaited: self.awaited || others.awaited,
            group: self.group.clone().or_else(|| others.group.clone()),
            cost: self.cost.or(others.cost),
            strict: self.strict || others.strict,
            links: Links {
                after: match self.links.after.is_empty() {
                    true => others.links.after.clone(),
                    false => self.links.after.clone(),
                },
                batch: self.links.batch.or(others.links.batch),
                fails_batch: false,
                is_open: self.links.is_open || others.links.is_open,
            },
        }
    }

    /// Builds the job that is put with these options in a trace context.
    pub(crate) fn job(&self, payload: Payload, trace: Trace) -> Result<NewJob, Error> {
        let metadata =
            self.metadata.clone().transpose().map_err(Error::InvalidAnnotation)?.unwrap_or_default();
        let waits = self.links.waits();
        if waits && (self.schedule_at.is_some() || self.unique.is_some()) {
            return Err(Error::InvalidSetting(
                "cannot put a job that waits for others with a time or a unique key: it is due when the others have \
                 ended; remove one"
                    .to_owned(),
            ));
        }
        if let Some(batch) = self.links.batch
            && self.links.after.iter().any(|after| after.job == batch)
        {
            return Err(Error::InvalidSetting(format!(
                "cannot put a job into the batch of job {batch} that waits for that job: they would wait for each other"
            )));
        }
        Ok(NewJob {
            payload,
            schedule_at: match waits {
                true => Some(When::At(After::HELD_UNTIL)),
                false => self.schedule_at.clone().transpose()?,
            },
            expected_at: self.expected_at.clone().transpose()?,
            priority: self.priority.unwrap_or_default(),
            serialization_key: self.serialization_key.clone().map(Key::new).transpose()?,
            unique: match &self.unique {
                Some((key, on_conflict)) => Some((Key::new(key.clone())?, *on_conflict)),
                None => None,
            },
            annotations: Annotations::new(Noted {
                trace,
                tags: self.tags.clone().unwrap_or_default(),
                metadata,
                group: self.group.clone(),
                cost: self.cost,
                strict: self.strict,
                notify: self.awaited,
                batch: self.links.batch,
                ended: None,
                workflow: None,
                wake: None,
            })?,
            links: self.links.clone(),
            task: None,
        })
    }
}
