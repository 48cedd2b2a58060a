//! `pq pause`.

use std::process::ExitCode;

use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::output;

/// Pause a queue: workers take no more jobs from it. Running jobs continue.
///
/// The Python pq ignores the pause.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq pause mail"))]
pub(crate) struct Pause {
    /// Queue name.
    queue: String,
}

impl Pause {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let changed = global.connect()?.queue::<()>(&self.queue)?.pause()?;
        output::print(if changed { "paused" } else { "already paused" })?;
        Ok(ExitCode::SUCCESS)
    }
}
