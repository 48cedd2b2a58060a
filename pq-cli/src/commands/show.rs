//! `pq show`.

use std::process::ExitCode;

use pq_diesel::JobId;
use serde_json::Value;

use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::{jobs, output};

/// Show all that is known of a job, wherever it is.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq show 42\npq show 42 --json | jq .payload"))]
pub(crate) struct Show {
    /// The job's number.
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
        let mut shown = jobs::as_json(&job);
        if self.json {
            output::print_json(&shown)?;
            return Ok(ExitCode::SUCCESS);
        }
        // The payload's own text, whose order of keys means something to people.
        shown["payload"] = Value::String(job.payload.as_str().to_owned());
        let rows = shown.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        for (name, value) in rows {
            output::print(&format!("{name:18} {}", output::visible(&text(value))))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
