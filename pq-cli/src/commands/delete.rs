//! `pq delete`.

use std::process::ExitCode;

use pq_diesel::Operation;

use super::examples;
use crate::failure::Failure;
use crate::filtered::{HELD, Selection, Words};
use crate::global::Global;
use crate::output::plural;

/// Delete jobs for good, waiting and archived ones.
///
/// Running jobs stay, also with --queue. Deleted jobs are not archived, and jobs that wait for them go on as if they
/// were done. `pq cancel` keeps them in the archive. The id of a workflow that has ended deletes its jobs, too. One
/// that has not ended stays; cancel it first.
#[derive(Debug, clap::Args)]
#[command(after_help = examples(
    "pq delete 42 43 --yes\npq delete --queue mail --state dead --error timeout --older-than 7d"
))]
pub(crate) struct Delete {
    #[command(flatten)]
    jobs: Selection,
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
        if self.jobs.queue.is_none() {
            let jobs = plural(self.jobs.ids.len() as u64, "job");
            if !self.jobs.yes.confirm(&format!("deletes {jobs} permanently"))? {
                return Ok(ExitCode::from(1));
            }
        }
        self.jobs.change(&pq, &[], &Operation::Delete, &words)
    }
}
