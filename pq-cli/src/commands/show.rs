//! `pq show`.

use std::process::ExitCode;

use pq_diesel::{
    AttemptEntry, Filter, JobId, JobRecord, JobState, Key, Pq, Predecessor, Progress, Reason, SentSignal,
    StepKind, StepRecord, StoredLine, WORKFLOWS, WorkflowJob,
};
use serde::Serialize;
use serde_json::Value;

use super::logs::LineJson;
use super::{examples, logs};
use crate::failure::Failure;
use crate::global::Global;
use crate::job_output::{self, JobJson};
use crate::output::{self, plural};

/// The maximum number of jobs with the same id that are counted.
const MAX_SAME_ID: usize = 100;

/// The maximum number of jobs for which a job waits that are shown.
const MAX_PREDECESSORS: usize = 100;

/// The maximum number of signals that are shown.
const MAX_SIGNALS: usize = 100;

/// Show a job, whether it waits, runs or is archived, and why it does not run.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq show 42\npq show 42 --log\npq show 42 --json | jq .payload\npq show 42 --tree\npq show 42 --dot | dot -Tsvg"))]
pub(crate) struct Show {
    /// Job id.
    #[arg(value_parser = job_output::parse_id, allow_negative_numbers = true)]
    id: i64,
    /// Print the log of the job, too.
    #[arg(long)]
    log: bool,
    /// Print the workflow of the job as a tree with the states of its jobs. Also takes the id of the workflow.
    #[arg(long, conflicts_with_all = ["log", "dot", "mermaid"])]
    tree: bool,
    /// Print the workflow of the job in DOT, for Graphviz.
    #[arg(long, conflicts_with_all = ["log", "json", "mermaid"])]
    dot: bool,
    /// Print the workflow of the job as a Mermaid flowchart.
    #[arg(long, conflicts_with_all = ["log", "json"])]
    mermaid: bool,
    /// Print JSON: an object.
    #[arg(long)]
    json: bool,
}

/// A job as JSON, with the reasons why it does not run.
#[derive(Serialize)]
struct Shown<'j> {
    #[serde(flatten)]
    job: JobJson<'j>,
    reasons: &'j [Reason],
    predecessors: &'j [Predecessor],
    followers: &'j [JobId],
    steps: &'j [StepRecord],
    /// The signals that are not delivered.
    signals: &'j [SentSignal],
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<&'j Progress>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<Vec<LineJson<'j>>>,
}

impl Show {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let pq = global.connect()?;
        if self.tree || self.dot || self.mermaid {
            return self.draw(&pq);
        }
        let same_id = pq.list(&Filter::id(JobId(self.id)), MAX_SAME_ID)?;
        let Some(job) = same_id.first() else {
            output::print_error(&format!("cannot show job {}: {}", self.id, job_output::NOT_FOUND));
            return Ok(ExitCode::from(1));
        };
        if same_id.len() > 1 {
            let older = plural(same_id.len() as u64 - 1, "older job");
            output::print_error(&format!(
                "{older} had the id {}, because the sequence of ids was restarted; `pq doctor` says how to advance it",
                self.id
            ));
        }
        let known = Known::read(&pq, job, self.log)?;
        if self.json {
            output::print_json(&known.as_json(self.log))?;
        } else {
            known.print(&pq)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What is known of a job.
struct Known<'j> {
    job: &'j JobRecord,
    reasons: Vec<Reason>,
    predecessors: Vec<Predecessor>,
    followers: Vec<JobId>,
    steps: Vec<StepRecord>,
    signals: Vec<SentSignal>,
    progress: Option<Progress>,
    log: Vec<StoredLine>,
}

impl<'j> Known<'j> {
    fn read(pq: &Pq, job: &'j JobRecord, with_log: bool) -> Result<Self, Failure> {
        Ok(Self {
            job,
            reasons: pq.explain(job.id)?,
            predecessors: pq.predecessors(job.id, MAX_PREDECESSORS)?,
            followers: pq.followers(job.id, MAX_PREDECESSORS)?,
            progress: pq.progress(&[job.id])?.pop().map(|noted| noted.progress),
            log: if with_log { pq.log(job.id)? } else { Vec::new() },
            steps: pq.steps(job)?,
            signals: pq.signals(job, MAX_SIGNALS)?,
        })
    }

    fn as_json(&self, with_log: bool) -> Shown<'_> {
        Shown {
            job: JobJson::of(self.job),
            reasons: &self.reasons,
            predecessors: &self.predecessors,
            followers: &self.followers,
            steps: &self.steps,
            signals: &self.signals,
            progress: self.progress.as_ref(),
            log: with_log.then(|| self.log.iter().map(LineJson::of).collect()),
        }
    }

    /// Returns the names and the values of the first lines. A line without a value is left out.
    fn rows(&self) -> [(&'static str, Option<String>); 26] {
        let job = self.job;
        let why = self.reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let text = |key: &Key| key.as_str().to_owned();
        let place = job.annotations.workflow();
        let batch =
            job.annotations.batch().filter(|batch| place.as_ref().is_none_or(|place| place.id != *batch));
        let workflow = place.map(|WorkflowJob { id, name, undoes }| {
            format!("{id}, {} {name:?}; `pq show {id} --tree`", if undoes { "undoes" } else { "as" })
        });
        let workflow = workflow
            .or_else(|| (job.queue.as_str() == WORKFLOWS).then(|| format!("`pq show {} --tree`", job.id)));
        let (tags, metadata) = (job.annotations.tags(), job.annotations.metadata());
        [
            ("id", Some(job.id.to_string())),
            ("queue", Some(job.queue.to_string())),
            ("state", Some(job.state.to_string())),
            ("why", (!job.state.is_ended()).then_some(why)),
            ("attempt", Some(job.attempt.to_string())),
            ("progress", self.progress.as_ref().map(ToString::to_string)),
            ("crashes", (job.crashes > 0).then(|| job.crashes.to_string())),
            ("priority", Some(job.priority.to_string())),
            ("put", Some(output::format_time_micros(job.enqueued_at))),
            ("schedule_at", job_output::due(job, output::format_time_micros)),
            ("expected_at", job.expected_at.map(output::format_time_micros)),
            ("serialization key", job.serialization_key.as_ref().map(text)),
            ("strict order", job.annotations.is_strict().then(|| "yes".to_owned())),
            ("unique key", job.unique_key.as_ref().map(text)),
            ("group", job.annotations.group()),
            ("cost", job.annotations.cost().map(|cost| cost.to_string())),
            ("workflow", workflow),
            ("batch of", batch.map(|follow_up| follow_up.to_string())),
            ("tags", (!tags.is_empty()).then(|| tags.join(", "))),
            ("metadata", (!metadata.is_empty()).then(|| Value::Object(metadata).to_string())),
            ("traceparent", job.annotations.trace().remove("traceparent")),
            ("leased until", job.lease_until.map(output::format_time_micros)),
            ("ended", job.ended_at.map(output::format_time_micros)),
            (if job.state.is_ended() { "error" } else { "earlier error" }, job.error.clone()),
            ("result", job.result.as_ref().map(|result| output::one_line(result.as_str()))),
            ("payload", Some(output::one_line(job.payload.as_str()))),
        ]
    }

    fn print(&self, pq: &Pq) -> Result<(), Failure> {
        for (name, value) in self.rows() {
            if let Some(value) = value {
                output::print(&format!("{name:18} {}", output::escape_with_breaks(&value)))?;
            }
        }
        for Predecessor { job, outcome, .. } in &self.predecessors {
            // One whose end is not noted yet may have ended. One that is not kept counts as done.
            let outcome = match outcome {
                Some(outcome) => *outcome,
                None => pq.find(*job)?.map_or(JobState::Done, |job| job.state),
            };
            output::print(&format!("{:18} job {job}: {outcome}", "after"))?;
        }
        for job in &self.followers {
            output::print(&format!("{:18} job {job}", "awaited by"))?;
        }
        for AttemptEntry { attempt, at, end, error } in &self.job.attempt_log {
            let ended = format!("attempt {attempt} {end} {}: {error}", output::format_time_micros(*at));
            output::print(&format!("{:18} {}", "attempt log", output::escape_with_breaks(&ended)))?;
        }
        for step in &self.steps {
            output::print(&format!("{:18} {}", "step", output::escape_with_breaks(&describe(step))))?;
        }
        for SentSignal { name, value } in &self.signals {
            let sent = format!("{name} is not delivered: {}", job_output::preview(value.as_str()));
            output::print(&format!("{:18} {}", "signal", output::escape_with_breaks(&sent)))?;
        }
        for stored in &self.log {
            output::print(&format!("{:18} {}", "log", logs::as_text(stored)))?;
        }
        Ok(())
    }
}

impl Show {
    /// Prints the workflow of the job.
    fn draw(&self, pq: &Pq) -> Result<ExitCode, Failure> {
        let Some(workflow) = pq.workflow(JobId(self.id))? else {
            let reason = match pq.find(JobId(self.id))? {
                Some(_) => "it belongs to no workflow that is kept",
                None => job_output::NOT_FOUND,
            };
            output::print_error(&format!("cannot show the workflow of job {}: {reason}", self.id));
            return Ok(ExitCode::from(1));
        };
        if self.json {
            output::print_json(&workflow)?;
            return Ok(ExitCode::SUCCESS);
        }
        let text = match (self.dot, self.mermaid) {
            (true, _) => workflow.dot(),
            (_, true) => workflow.mermaid(),
            _ => workflow.tree(),
        };
        for line in text.lines() {
            output::print(&output::escape_with_breaks(line))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Returns a line about a step: its label, what became of it and when.
fn describe(step: &StepRecord) -> String {
    let at = output::format_time_micros(step.at);
    let until = step.until.map(output::format_time_micros).unwrap_or_default();
    let what = match step.kind {
        StepKind::Step => format!("done {at}"),
        StepKind::Sleep => format!("sleeps until {until}, since {at}"),
        StepKind::Waiting => format!("waits for a signal until {until}"),
        StepKind::Signal => format!("signalled {at}"),
        StepKind::Timeout => format!("timed out {at}"),
    };
    let result = step.result.as_ref().map(|result| format!(": {}", job_output::preview(result.as_str())));
    format!("{} {what}{}", step.label(), result.unwrap_or_default())
}
