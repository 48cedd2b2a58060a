//! `pq completions` and `pq man`: generated from the definitions of the options.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use super::examples;
use crate::Args;
use crate::failure::Failure;

/// Print a completion script for a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq completions bash > /etc/bash_completion.d/pq"))]
pub(crate) struct Completions {
    /// Shell.
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(&self) -> Result<ExitCode, Failure> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut shown(&Args::command()), "pq", &mut text);
        crate::output::print(String::from_utf8_lossy(&text).trim_end())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Returns the command without its hidden subcommands, because some shells would complete them.
fn shown(all: &clap::Command) -> clap::Command {
    clap::Command::new("pq")
        .version(env!("CARGO_PKG_VERSION"))
        .args(all.get_arguments().cloned())
        .subcommands(all.get_subcommands().filter(|command| !command.is_hide_set()).cloned())
}

/// Write the man pages, one per command, into a directory.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq man /usr/local/share/man/man1"))]
pub(crate) struct Man {
    /// Target directory, created if it is missing.
    folder: PathBuf,
}

impl Man {
    pub(crate) fn run(&self) -> Result<ExitCode, Failure> {
        let failed = |error: io::Error| {
            Failure::Io(format!("cannot write the man pages to {}: {error}", self.folder.display()))
        };
        std::fs::create_dir_all(&self.folder).map_err(failed)?;
        clap_mangen::generate_to(Args::command(), &self.folder).map_err(failed)?;
        Ok(ExitCode::SUCCESS)
    }
}
