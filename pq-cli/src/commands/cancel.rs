//! `pq cancel`.

use std::process::ExitCode;

use pq_diesel::Operation;

use super::examples;
use crate::failure::Failure;
use crate::filtered::{HELD, Selection, Words};
use crate::global::Global;

/// Cancel jobs.
///
/// Waiting jobs are cancelled at once. The handler of a job that runs under a lease is asked to stop. Cancelled jobs
/// are archived, and `pq retry` requeues them. With --queue it cancels ready, blocked, scheduled and running jobs.
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
        let words = Words {
            verb: "cancel",
            past: "cancelled",
            note: String::new(),
            job: "job",
            passed: HELD.to_owned(),
        };
        self.jobs.change(&pq, &[], &Operation::Cancel, &words)
    }
}
