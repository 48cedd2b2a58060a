//! `pq cancel`.

use std::process::ExitCode;

use pq_diesel::{Operation, WORKFLOWS};

use super::examples;
use crate::failure::Failure;
use crate::filtered::{HELD, Selection, Words};
use crate::global::Global;

/// Cancel jobs.
///
/// Waiting jobs are cancelled at once. The handler of a job that runs under a lease is asked to stop, and so is a
/// workflow: it ends when its running jobs have ended. Cancelled jobs are archived, and `pq retry` requeues them.
/// With --queue it cancels ready, blocked, scheduled and running jobs.
#[derive(Debug, clap::Args)]
#[command(after_help = examples(
    "pq cancel 42 43\npq cancel --queue mail --state scheduled --yes\npq cancel --queue mail --task newsletter --older-than 1d"
))]
pub(crate) struct Cancel {
    #[command(flatten)]
    jobs: Selection,
}

impl Cancel {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let pq = global.connect()?;
        let is_of_workflows = self.jobs.queue.as_deref() == Some(WORKFLOWS);
        let words = Words {
            verb: "cancel",
            past: if is_of_workflows { "asked to stop" } else { "cancelled" },
            note: String::new(),
            job: if is_of_workflows { "workflow" } else { "job" },
            passed: HELD.to_owned(),
        };
        self.jobs.change(&pq, &[], &Operation::Cancel, &words)
    }
}
