//! `pq resume`.

use std::process::ExitCode;

use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::output;

/// Have a paused queue go on.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq resume mail"))]
pub(crate) struct Resume {
    /// The queue's name.
    queue: String,
}

impl Resume {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let changed = global.connect()?.queue::<()>(&self.queue)?.resume()?;
        output::print(if changed { "goes on" } else { "it was not paused" })?;
        Ok(ExitCode::SUCCESS)
    }
}
