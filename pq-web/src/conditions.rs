//! The conditions of a list of jobs, as they are in its URL.

use chrono::{DateTime, Utc};
use pq_diesel::{Error, Filter, JobId, JobState, When};

use crate::guard::Fields;
use crate::html::with_query;

/// The conditions, as texts.
pub(crate) struct Conditions<'f> {
    pub(crate) queue: &'f str,
    pub(crate) states: Vec<&'f str>,
    pub(crate) task: &'f str,
    pub(crate) error: &'f str,
    pub(crate) older: &'f str,
    pub(crate) key: &'f str,
    pub(crate) group: &'f str,
    pub(crate) tags: Vec<&'f str>,
    pub(crate) job: &'f str,
    pub(crate) workflow: &'f str,
    pub(crate) after: &'f str,
}

/// A filter whose age is not known yet, because the database has the clock.
pub(crate) struct AgedFilter {
    filter: Filter,
    older: Option<When>,
}

/// A filter without an age.
impl From<Filter> for AgedFilter {
    fn from(filter: Filter) -> Self {
        Self { filter, older: None }
    }
}

impl AgedFilter {
    /// Returns the filter. Reads the clock of the database if it is needed.
    pub(crate) fn read(self, now: impl FnOnce() -> Result<DateTime<Utc>, Error>) -> Result<Filter, Error> {
        Ok(match self.older {
            None => self.filter,
            Some(When::At(instant)) => self.filter.until(instant),
            Some(When::In(age)) => {
                let now = now()?;
                self.filter.until(now.checked_sub_signed(age).unwrap_or(DateTime::<Utc>::MIN_UTC))
            }
        })
    }
}

impl<'f> Conditions<'f> {
    pub(crate) fn read(fields: &'f Fields) -> Self {
        Self {
            queue: fields.get("queue"),
            states: fields.all("state").filter(|state| !state.is_empty()).collect(),
            task: fields.get("task"),
            error: fields.get("error"),
            older: fields.get("older").trim(),
            key: fields.get("key"),
            group: fields.get("group"),
            tags: fields.all("tag").filter(|tag| !tag.is_empty()).collect(),
            job: fields.get("job").trim(),
            workflow: fields.get("workflow").trim(),
            after: fields.get("after"),
        }
    }

    /// Returns the filter, or what is wrong with a condition.
    pub(crate) fn filter(&self) -> Result<AgedFilter, String> {
        let number = |text: &str, what: &str| match text {
            "" => Ok(None),
            text => text
                .parse()
                .map(|id| Some(JobId(id)))
                .map_err(|_| format!("invalid {what} {text:?}: it must be a number")),
        };
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let states: Result<Vec<JobState>, _> = self.states.iter().map(|state| state.parse()).collect();
        let older = given(self.older).map(|older| When::parse(&older)).transpose();
        let filter = Filter {
            states: states.map_err(|error: pq_diesel::pq_core::Error| error.to_string())?,
            serialization_key: given(self.key),
            group: given(self.group),
            id: number(self.job, "job id")?,
            workflow: number(self.workflow, "workflow")?,
            queue: given(self.queue),
            after: number(self.after, "page")?,
            task: given(self.task),
            error: given(self.error),
            tags: self.tags.iter().map(|tag| (*tag).to_owned()).collect(),
            ..Filter::default()
        };
        Ok(AgedFilter { filter, older: older.map_err(|error| error.to_string())? })
    }

    /// Returns the fields of the conditions, without the page.
    fn fields(&self) -> Vec<(&'static str, &'f str)> {
        let mut fields = vec![
            ("queue", self.queue),
            ("task", self.task),
            ("error", self.error),
            ("older", self.older),
            ("key", self.key),
            ("group", self.group),
            ("job", self.job),
            ("workflow", self.workflow),
        ];
        fields.extend(self.tags.iter().map(|tag| ("tag", *tag)));
        fields.extend(self.states.iter().map(|state| ("state", *state)));
        fields
    }

    /// Returns the path of the page after this job, or of the first.
    pub(crate) fn path(&self, after: Option<JobId>) -> String {
        let after = after.map(|id| id.to_string()).unwrap_or_default();
        let mut fields: Vec<(&str, &str)> = self.fields();
        fields.push(("after", &after));
        with_query("/jobs", &fields)
    }

    /// Returns the path of the action on jobs of these conditions.
    ///
    /// The conditions are in the query, because browsers change line breaks in the fields of a form.
    pub(crate) fn action_path(&self) -> String {
        with_query("/jobs/bulk", &self.fields())
    }

    /// Returns the conditions as a text for people.
    pub(crate) fn describe(&self) -> String {
        let given = self.fields().into_iter().filter(|(_, value)| !value.is_empty());
        let all: Vec<String> = given.map(|(name, value)| format!("{name} {value:?}")).collect();
        if all.is_empty() { "all jobs of all queues".to_owned() } else { all.join(", ") }
    }
}
