//! `pq run-now`.

use std::process::ExitCode;

use pq_diesel::Operation;

use super::examples;
use crate::confirm::Confirmation;
use crate::failure::Failure;
use crate::filtered::{self, Conditions, HELD, Words};
use crate::global::Global;
use crate::job_output;

/// Make scheduled jobs due now, also those that wait between attempts.
///
/// They join the order of their queue at once, and waiting workers take them.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq run-now 42\npq run-now --queue mail --error 'connection refused' --yes"))]
pub(crate) struct RunNow {
    /// Job ids.
    #[arg(required_unless_present = "queue", value_parser = job_output::parse_id, allow_negative_numbers = true)]
    #[arg(conflicts_with = "Conditions")]
    ids: Vec<i64>,
    /// Make the scheduled jobs of this queue due.
    #[arg(long, value_name = "QUEUE", conflicts_with = "ids", required_unless_present = "ids")]
    queue: Option<String>,
    #[command(flatten)]
    conditions: Conditions,
    #[command(flatten)]
    yes: Confirmation,
}

impl RunNow {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let pq = global.connect()?;
        let words = Words {
            verb: "run",
            past: "due now",
            note: " now".to_owned(),
            job: "job",
            passed: HELD.to_owned(),
        };
        let run_now = Operation::RunNow;
        match &self.queue {
            Some(queue) => filtered::operate(&pq, queue, &self.conditions, &[], &run_now, &words, &self.yes),
            None => filtered::change_each(&pq, &self.ids, &run_now, &words),
        }
    }
}
