//! `pq show`.

use std::process::ExitCode;

use pq_diesel::{JobId, Key, Listed};

use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::{jobs, output};

/// Show all that is known of a job, wherever it is.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq show 42\npq show 42 --json | jq .payload"))]
pub(crate) struct Show {
    /// The job's number.
    #[arg(value_parser = jobs::number, allow_negative_numbers = true)]
    id: i64,
    /// Print JSON: an object.
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let Some(job) = global.connect()?.show(JobId(self.id))? else {
            output::complain(&format!(
                "job {} is done and nothing was kept of it, or was never there",
                self.id
            ));
            return Ok(ExitCode::from(1));
        };
        if self.json {
            output::print_json(&jobs::as_json(&job))?;
            return Ok(ExitCode::SUCCESS);
        }
        for (name, value) in rows(&job) {
            if let Some(value) = value {
                output::print(&format!("{name:18} {}", output::escaped(&value)))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn rows(job: &Listed) -> [(&'static str, Option<String>); 15] {
    let key = |key: &Option<Key>| key.as_ref().map(|key| key.as_str().to_owned());
    [
        ("id", Some(job.id.to_string())),
        ("queue", Some(job.queue.to_string())),
        ("state", Some(job.state.to_string())),
        ("payload", Some(output::one_line(job.payload.as_str()))),
        ("enqueued_at", Some(output::precise(job.enqueued_at))),
        ("schedule_at", job.schedule_at.map(output::precise)),
        ("expected_at", job.expected_at.map(output::precise)),
        ("priority", Some(job.priority.to_string())),
        ("attempt", Some(job.attempt.to_string())),
        ("serialization_key", key(&job.serialization_key)),
        ("unique_key", key(&job.unique_key)),
        ("error", job.error.clone()),
        ("result", job.result.as_ref().map(|result| output::one_line(result.as_str()))),
        ("lease_until", job.lease_until.map(output::precise)),
        ("ended_at", job.ended_at.map(output::precise)),
    ]
}
