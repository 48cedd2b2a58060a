//! `pq jobs`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use pq_diesel::{JobId, JobRecord, Key, Progress};
use serde::Serialize;

use super::examples;
use crate::failure::Failure;
use crate::filtered::Conditions;
use crate::global::Global;
use crate::job_output::{self, JobJson};
use crate::output;

/// List the jobs of a queue in the order of their ids.
#[derive(Debug, clap::Args)]
#[command(after_help = examples(
    "pq jobs mail --state dead --state cancelled\npq jobs mail --state dead --error mailbox --older-than 1d\npq jobs mail --after 1200 --limit 50 --json"
))]
pub(crate) struct Jobs {
    /// Queue name.
    queue: String,
    /// Only jobs with this serialization key.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    #[command(flatten)]
    conditions: Conditions,
    /// Only jobs with a greater id: the last id of the previous page.
    #[arg(long, value_name = "ID", value_parser = job_output::parse_id, allow_negative_numbers = true)]
    after: Option<i64>,
    /// Maximum number of jobs.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Print JSON: an array of objects.
    #[arg(long)]
    json: bool,
}

impl Jobs {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let pq = global.connect()?;
        let mut filter = self.conditions.filter(&pq, &self.queue)?;
        if let Some(key) = &self.key {
            filter = filter.serialization_key(Key::new(key)?);
        }
        if let Some(id) = self.after {
            filter = filter.after(JobId(id));
        }
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let mut found = pq.list(&filter, limit.saturating_add(1))?;
        let more = found.len() > limit;
        found.truncate(limit);
        let ids: Vec<JobId> = found.iter().map(|job| job.id).collect();
        let progress: BTreeMap<JobId, Progress> =
            pq.progress(&ids)?.into_iter().map(|noted| (noted.id, noted.progress)).collect();
        if self.json {
            let listed = |job| Listed { job: JobJson::of(job), progress: progress.get(&job.id) };
            output::print_json(&found.iter().map(listed).collect::<Vec<_>>())?;
        } else {
            let mut header =
                vec!["ID", "STATE", "PRIORITY", "ATTEMPT", "PUT", "DUE", "KEY", "TAGS", "PAYLOAD", "ERROR"];
            // Few jobs have any.
            let has_progress = !progress.is_empty();
            if has_progress {
                header.push("PROGRESS");
            }
            let rows = found.iter().map(|job| {
                let noted = progress.get(&job.id).map(|progress| job_output::preview(&progress.to_string()));
                let mut row = as_row(job);
                row.extend(has_progress.then(|| noted.unwrap_or_default()));
                row
            });
            output::print(&output::format_table(&header, rows))?;
            if let Some(last) = found.last().filter(|_| more) {
                output::print_status(&format!("more jobs follow; continue with --after {}", last.id));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A job as JSON, with its progress.
#[derive(Serialize)]
struct Listed<'j> {
    #[serde(flatten)]
    job: JobJson<'j>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<&'j Progress>,
}

fn as_row(job: &JobRecord) -> Vec<String> {
    let key = job.serialization_key.as_ref().map(|key| key.as_str().to_owned());
    vec![
        job.id.to_string(),
        job.state.to_string(),
        job.priority.to_string(),
        job.attempt.to_string(),
        output::format_time(job.enqueued_at),
        job_output::due(job, output::format_time).unwrap_or_default(),
        key.unwrap_or_default(),
        job_output::preview(&job.annotations.tags().join(", ")),
        job_output::preview(job.payload.as_str()),
        job_output::preview(&job_output::error(job).unwrap_or_default()),
    ]
}
