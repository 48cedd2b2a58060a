//! `pq resume`.

use std::process::ExitCode;

use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::output;

/// Resume a paused queue.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq resume mail"))]
pub(crate) struct Resume {
    /// Queue name.
    queue: String,
}

impl Resume {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let changed = global.connect()?.queue::<()>(&self.queue)?.resume()?;
        output::print(if changed { "resumed" } else { "not paused" })?;
        Ok(ExitCode::SUCCESS)
    }
}
