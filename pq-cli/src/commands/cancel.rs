//! `pq cancel`.

use std::process::ExitCode;

use pq_diesel::Operation;

use super::examples;
use crate::confirm::Confirmation;
use crate::failure::Failure;
use crate::filtered::{self, Conditions, HELD, Words};
use crate::global::Global;
use crate::job_output;

/// Cancel jobs.
///
/// Waiting jobs are cancelled at once. The handler of a job that runs under a lease is asked to stop. Cancelled jobs
/// are archived, and `pq retry` requeues them.
#[derive(Debug, clap::Args)]
#[command(after_help = examples(
    "pq cancel 42 43\npq cancel --queue mail --state scheduled --yes\npq cancel --queue mail --task newsletter --older-than 1d"
))]
pub(crate) struct Cancel {
    /// Job ids.
    #[arg(required_unless_present = "queue", value_parser = job_output::parse_id, allow_negative_numbers = true)]
    #[arg(conflicts_with = "Conditions")]
    ids: Vec<i64>,
    /// Cancel the ready, blocked, scheduled and running jobs of this queue.
    #[arg(long, value_name = "QUEUE", conflicts_with = "ids", required_unless_present = "ids")]
    queue: Option<String>,
    #[command(flatten)]
    conditions: Conditions,
    #[command(flatten)]
    yes: Confirmation,
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
        let cancel = Operation::Cancel;
        match &self.queue {
            Some(queue) => filtered::operate(&pq, queue, &self.conditions, &[], &cancel, &words, &self.yes),
            None => filtered::change_each(&pq, &self.ids, &cancel, &words),
        }
    }
}
