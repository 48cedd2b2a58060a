//! Operations on jobs by their ids, and on all jobs that options select.

use std::process::ExitCode;
use std::time::Duration;

use clap::ArgGroup;
use pq_diesel::{ChangeOutcome, Filter, JobId, JobState, Operation, Pq};

use crate::confirm::Confirmation;
use crate::failure::Failure;
use crate::job_output;
use crate::output::{self, plural};
use crate::values;

/// The number up to which jobs are counted before an operation.
const MAX_COUNTED: usize = 1_000_000;

/// Options that select jobs of a queue.
#[derive(Debug, clap::Args)]
pub(crate) struct Conditions {
    /// Only jobs in this state; dequeued means taken by the Python pq. Can be repeated.
    #[arg(long, value_name = "STATE", value_parser = values::state())]
    state: Vec<JobState>,
    /// Only calls of this task.
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
    /// Only jobs whose error contains this text.
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
    /// Only jobs of this group.
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Only jobs with this tag. Can be repeated: the jobs have all of them.
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// Only jobs whose metadata contains these members: a JSON object.
    #[arg(long, value_name = "JSON", value_parser = values::json_object)]
    metadata: Option<values::Members>,
    /// Only jobs that were put, or have ended, longer ago than this duration, such as 12h or 30d.
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    older_than: Option<Duration>,
}

impl Conditions {
    /// Returns whether no state is named.
    pub(crate) fn is_for_default_state(&self) -> bool {
        self.state.is_empty()
    }

    /// Returns the filter for what an operation can change in a queue. Without an option for the state it selects jobs
    /// in one of `default`.
    fn filter_for(
        &self,
        pq: &Pq,
        queue: &str,
        operation: &Operation,
        default: &[JobState],
    ) -> Result<Filter, Failure> {
        let allowed = operation.states();
        if let Some(state) = self.state.iter().find(|state| !allowed.contains(state)) {
            let allowed: Vec<&str> = allowed.iter().map(|state| state.as_str()).collect();
            let (last, others) = allowed.split_last().map_or(("", &[][..]), |(last, others)| (last, others));
            let or = if others.is_empty() { "" } else { " or " };
            return Err(Failure::Usage(format!(
                "invalid state {state} for {}: expected {}{or}{last}",
                operation.name(),
                others.join(", ")
            )));
        }
        let mut filter = self.filter(pq, queue)?;
        if self.state.is_empty() {
            filter.states = default.to_vec();
        }
        Ok(filter)
    }

    /// Returns the filter for a queue.
    pub(crate) fn filter(&self, pq: &Pq, queue: &str) -> Result<Filter, Failure> {
        let mut filter = Filter::queue(pq.queue::<()>(queue)?.name());
        filter.states.clone_from(&self.state);
        (filter.task, filter.error) = (self.task.clone(), self.error.clone());
        filter.group.clone_from(&self.group);
        filter.tags.clone_from(&self.tag);
        filter.metadata = self.metadata.clone().unwrap_or_default();
        if let Some(age) = self.older_than {
            let age = chrono::TimeDelta::from_std(age).ok();
            let oldest = Some(chrono::DateTime::<chrono::Utc>::UNIX_EPOCH);
            let now = pq.now()?;
            filter.until = age.and_then(|age| now.checked_sub_signed(age)).or(oldest).max(oldest);
        }
        Ok(filter)
    }

    /// Describes what the options select among the jobs of a queue, such as ` with error "no mailbox"`. The states are
    /// left out.
    fn describe(&self) -> String {
        let quoted =
            |name: &str, value: &Option<String>| value.as_ref().map(|value| format!("{name} {value:?}"));
        let given = [("task", &self.task), ("error", &self.error), ("group", &self.group)];
        let mut all: Vec<String> =
            given.into_iter().filter_map(|(name, value)| quoted(name, value)).collect();
        all.extend(self.tag.iter().map(|tag| format!("tag {tag:?}")));
        let members = self.metadata.as_ref().and_then(|members| serde_json::to_string(members).ok());
        all.extend(members.map(|members| format!("metadata {members}")));
        all.extend(self.older_than.map(|age| format!("an age over {}", output::format_duration(age))));
        if all.is_empty() { String::new() } else { format!(" with {}", all.join(", ")) }
    }
}

/// The jobs of a command: single ones, or those of a queue that the conditions select.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("which").args(["ids", "queue"]).required(true))]
pub(crate) struct Selection {
    /// Job ids.
    #[arg(value_parser = job_output::parse_id, allow_negative_numbers = true, conflicts_with = "Conditions")]
    pub(crate) ids: Vec<i64>,
    /// All jobs of this queue that the command changes, or those that the options select.
    #[arg(long, value_name = "QUEUE")]
    pub(crate) queue: Option<String>,
    #[command(flatten)]
    pub(crate) conditions: Conditions,
    #[command(flatten)]
    pub(crate) yes: Confirmation,
}

impl Selection {
    /// Changes the jobs: those of a queue after confirmation. Without an option for the state it changes those of a
    /// queue in one of the states `default`, or all if there is none.
    pub(crate) fn change(
        &self,
        pq: &Pq,
        default: &[JobState],
        operation: &Operation,
        words: &Words,
    ) -> Result<ExitCode, Failure> {
        match &self.queue {
            Some(queue) => operate(pq, queue, &self.conditions, default, operation, words, &self.yes),
            None => change_each(&self.ids, words, |id| pq.change(id, operation)),
        }
    }
}

/// How an operation is described: `cancels 2 jobs of "mail"`, `2 jobs cancelled`.
pub(crate) struct Words {
    /// `cancel`.
    pub(crate) verb: &'static str,
    /// `cancelled`.
    pub(crate) past: &'static str,
    /// The end of the question, such as `permanently`.
    pub(crate) note: String,
    /// What a job is called, such as `dead job`.
    pub(crate) job: &'static str,
    /// Why jobs may have been passed.
    pub(crate) passed: String,
}

/// Changes all jobs of the queue that the conditions select, after confirmation.
pub(crate) fn operate(
    pq: &Pq,
    queue: &str,
    conditions: &Conditions,
    default: &[JobState],
    operation: &Operation,
    words: &Words,
    yes: &Confirmation,
) -> Result<ExitCode, Failure> {
    let filter = conditions.filter_for(pq, queue, operation, default)?;
    let found = output::with_spinner("counting", || pq.preview(operation, &filter, MAX_COUNTED))?;
    if found == 0 {
        output::print(&format!("{} {}", plural(0, words.job), words.past))?;
        return Ok(ExitCode::SUCCESS);
    }
    let more = if found == MAX_COUNTED as u64 { "at least " } else { "" };
    let Words { verb, note, job, .. } = words;
    let selected = conditions.describe();
    let what = format!("{verb}s {more}{} of {queue:?}{selected}{note}", plural(found, job));
    if !yes.confirm(&what)? {
        return Ok(ExitCode::from(1));
    }
    let bar = output::progress_bar(found, "{wide_bar} {pos}/{len} jobs, {eta} left");
    let done = pq.operate(operation, &filter, |report| bar.set_position(report.changed + report.skipped));
    bar.finish_and_clear();
    let report = done?;
    output::print(&format!("{} {}", plural(report.changed, words.job), words.past))?;
    if report.skipped > 0 {
        let passed = plural(report.skipped, "job");
        output::print_error(&format!("{passed} not {}: {}", words.past, words.passed));
        return Ok(ExitCode::from(1));
    }
    Ok(ExitCode::SUCCESS)
}

/// Changes the jobs with these ids, and prints a line for each.
pub(crate) fn change_each(
    ids: &[i64],
    words: &Words,
    change: impl Fn(JobId) -> Result<ChangeOutcome, pq_diesel::Error>,
) -> Result<ExitCode, Failure> {
    let mut all = true;
    for id in ids {
        match change(JobId(*id))? {
            ChangeOutcome::Changed => output::print(&format!("{id}: {}", words.past))?,
            ChangeOutcome::Requested => {
                output::print(&format!("{id}: running; it is asked to stop"))?;
            }
            refused => {
                all = false;
                output::print_error(&format!("cannot {} job {id}: {refused}", words.verb));
            }
        }
    }
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// The end of the text for jobs that were passed because a transaction holds them.
pub(crate) const HELD: &str = "a transaction holds them; try again when it has ended";
