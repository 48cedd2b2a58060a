//! The `pq` command: put and get jobs, look after the schema, and see it all work.

mod args;
mod demo;
mod failure;
mod get;
mod input;
mod migrate;
mod output;
mod put;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command};
use crate::failure::Failure;

fn main() -> ExitCode {
    let args = Args::parse();
    if args.global.debug {
        tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
            .init();
    }
    match run(&args) {
        Ok(code) => code,
        Err(failure) => {
            output::complain(&failure.to_string());
            failure.exit_code()
        }
    }
}

fn run(args: &Args) -> Result<ExitCode, Failure> {
    match &args.command {
        Command::Migrate => migrate::migrate(&args.global),
        Command::Schema => migrate::schema(&args.global),
        Command::Put(put) => put::put(&args.global, put),
        Command::Get(get) => get::get(&args.global, get),
        Command::Demo(demo) => demo::demo(&args.global, demo),
        Command::DemoWorker => demo::work(),
    }
}
