//! `pq-bench memory-child`: works jobs, and prints its memory. The scenarios `memory` and `async` run it.

use anyhow::{Context, Result};
use pq_bench::scenarios::{DATABASE, Sample, nap, put_and_work};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Number of jobs
    #[arg(long, default_value_t = 1_000_000)]
    jobs: u64,

    /// Work jobs that are there by asynchronous handlers that sleep, instead of putting and working
    #[arg(long)]
    naps: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let url = std::env::var(DATABASE).with_context(|| format!("{DATABASE} is not set"))?;
    let print = |sample: &Sample| {
        println!("{}", serde_json::to_string(sample)?);
        Ok(())
    };
    if arguments.naps { nap(&url, arguments.jobs, print) } else { put_and_work(&url, arguments.jobs, print) }
}
