//! `pq delete`.

use std::process::ExitCode;

use pq_diesel::Operation;

use super::examples;
use crate::confirm::Confirmation;
use crate::failure::Failure;
use crate::filtered::{self, Conditions, HELD, Words};
use crate::global::Global;
use crate::job_output;

/// Delete jobs for good, waiting and archived ones.
///
/// Running jobs stay. Deleted jobs are not archived. `pq cancel` keeps them in the archive.
#[derive(Debug, clap::Args)]
#[command(after_help = examples(
    "pq delete 42 43 --yes\npq delete --queue mail --state dead --error timeout --older-than 7d"
))]
pub(crate) struct Delete {
    /// Job ids.
    #[arg(required_unless_present = "queue", value_parser = job_output::parse_id, allow_negative_numbers = true)]
    #[arg(conflicts_with = "Conditions")]
    ids: Vec<i64>,
    /// Delete jobs of this queue in any state but running.
    #[arg(long, value_name = "QUEUE", conflicts_with = "ids", required_unless_present = "ids")]
    queue: Option<String>,
    #[command(flatten)]
    conditions: Conditions,
    #[command(flatten)]
    yes: Confirmation,
}

impl Delete {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let pq = global.connect()?;
        let words = Words {
            verb: "delete",
            past: "deleted",
            note: " permanently".to_owned(),
            job: "job",
            passed: HELD.to_owned(),
        };
        let delete = Operation::Delete;
        if let Some(queue) = &self.queue {
            return filtered::operate(&pq, queue, &self.conditions, &[], &delete, &words, &self.yes);
        }
        let jobs = crate::output::plural(self.ids.len() as u64, "job");
        if !self.yes.confirm(&format!("deletes {jobs} permanently"))? {
            return Ok(ExitCode::from(1));
        }
        filtered::change_each(&pq, &self.ids, &delete, &words)
    }
}
