//! `pq audit`.

use std::process::ExitCode;

use pq_diesel::admin::AuditEntry;

use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::output;

/// List the audit log: which operator did what, the latest operation first.
///
/// Operations of the command and of the dashboard are recorded, and those of applications that name an actor. Workers
/// delete entries after 90 days.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq audit\npq audit --limit 10 --json | jq '.[].actor'"))]
pub(crate) struct Audit {
    /// Only entries with a lower id: the last id of the previous page.
    #[arg(long, value_name = "ID")]
    before: Option<i64>,
    /// Maximum number of entries.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Print JSON: an array of objects.
    #[arg(long)]
    json: bool,
}

impl Audit {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let entries = global.connect()?.audit(self.before, limit)?;
        if self.json {
            output::print_json(&entries)?;
        } else {
            let header = ["ID", "AT", "ACTOR", "ACTION", "QUEUE", "JOB", "COUNT", "DETAILS"];
            output::print(&output::format_table(&header, entries.into_iter().map(as_row)))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn as_row(AuditEntry { id, at, record }: AuditEntry) -> Vec<String> {
    vec![
        id.to_string(),
        output::format_time(at),
        record.actor,
        record.action,
        record.queue.unwrap_or_default(),
        record.job.map(|job| job.to_string()).unwrap_or_default(),
        record.count.to_string(),
        record.details.unwrap_or_default(),
    ]
}
