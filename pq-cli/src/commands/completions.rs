//! `pq completions` and `pq man`: made from the words themselves.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use super::examples;
use crate::Args;
use crate::failure::Failure;

/// Print what completes pq's words in a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq completions bash > /etc/bash_completion.d/pq"))]
pub(crate) struct Completions {
    /// The shell.
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

/// The words without the commands that are not for people, which some shells would be told of.
fn shown(all: &clap::Command) -> clap::Command {
    clap::Command::new("pq")
        .version(env!("CARGO_PKG_VERSION"))
        .args(all.get_arguments().cloned())
        .subcommands(all.get_subcommands().filter(|command| !command.is_hide_set()).cloned())
}

/// Write man pages, one for each command, into a folder.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq man /usr/local/share/man/man1"))]
pub(crate) struct Man {
    /// The folder.
    folder: PathBuf,
}

impl Man {
    pub(crate) fn run(&self) -> Result<ExitCode, Failure> {
        let failed = |error: io::Error| {
            Failure::Io(format!("the pages cannot be written to {}: {error}", self.folder.display()))
        };
        std::fs::create_dir_all(&self.folder).map_err(failed)?;
        clap_mangen::generate_to(Args::command(), &self.folder).map_err(failed)?;
        Ok(ExitCode::SUCCESS)
    }
}
