//! `pq pause`.

use std::process::ExitCode;

use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::output;

/// Have nobody take jobs of a queue from now on. What is held already is not touched.
///
/// A Python pq knows nothing of it.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq pause mail"))]
pub(crate) struct Pause {
    /// The queue's name.
    queue: String,
}

impl Pause {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let changed = global.connect()?.queue::<()>(&self.queue)?.pause()?;
        output::print(if changed { "paused" } else { "it was paused already" })?;
        Ok(ExitCode::SUCCESS)
    }
}
