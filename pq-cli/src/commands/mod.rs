//! The commands: a file each, with its words and what it does.

mod demo;
mod doctor;
mod get;
mod migrate;
mod put;
mod schema;

use std::process::ExitCode;

use clap::Subcommand;

use crate::failure::{EXIT_CODES, Failure};
use crate::global::Global;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Migrate(migrate::Migrate),
    Schema(schema::Schema),
    #[command(visible_alias = "produce")]
    Put(put::Put),
    #[command(visible_alias = "consume")]
    Get(get::Get),
    Doctor(doctor::Doctor),
    Demo(demo::Demo),
    #[command(hide = true)]
    DemoWorker,
}

impl Command {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        match self {
            Self::Migrate(command) => command.run(global),
            Self::Schema(command) => command.run(global),
            Self::Put(command) => command.run(global),
            Self::Get(command) => command.run(global),
            Self::Doctor(command) => command.run(global),
            Self::Demo(command) => command.run(global),
            Self::DemoWorker => demo::work(),
        }
    }
}

/// What a command's help ends with: how it is called, and what its exit status says.
fn examples(lines: &str) -> String {
    let word = if lines.contains('\n') { "Examples" } else { "Example" };
    format!("{word}:\n  {}\n\n{EXIT_CODES}", lines.replace('\n', "\n  "))
}
