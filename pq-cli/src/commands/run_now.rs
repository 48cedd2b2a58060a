//! `pq run-now`.

use std::process::ExitCode;

use pq_diesel::Operation;

use super::examples;
use crate::failure::Failure;
use crate::filtered::{HELD, Selection, Words};
use crate::global::Global;

/// Make scheduled jobs due now, also those that wait between attempts.
///
/// They join the order of their queue at once, and waiting workers take them. A job that waits for other jobs does
/// not wait for them any more.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq run-now 42\npq run-now --queue mail --error 'connection refused' --yes"))]
pub(crate) struct RunNow {
    #[command(flatten)]
    jobs: Selection,
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
        self.jobs.change(&pq, &[], &Operation::RunNow, &words)
    }
}
