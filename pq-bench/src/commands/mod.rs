//! The subcommands, a file or folder each.

mod million;
mod run;

use anyhow::Result;
use clap::Subcommand;

/// What `pq-bench` does.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Measures, and keeps what it found in a file
    Run(run::Arguments),
    /// Is the process whose memory the scenario `memory` measures
    #[command(hide = true)]
    Million(million::Arguments),
}

impl Command {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Run(arguments) => run::run(&arguments),
            Self::Million(arguments) => million::run(&arguments),
        }
    }
}
