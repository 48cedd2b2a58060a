//! `pq migrate`.

use std::process::ExitCode;

use super::examples;
use crate::failure::Failure;
use crate::global::Global;

/// Create the table, or bring it up to date; safe at any time, from any number of processes.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq migrate --schema app --table work"))]
pub(crate) struct Migrate {}

impl Migrate {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        global.connect()?.migrate()?;
        Ok(ExitCode::SUCCESS)
    }
}
