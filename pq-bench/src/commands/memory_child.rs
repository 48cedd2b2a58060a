//! `pq-bench memory-child`: puts and works jobs, and prints its memory. The scenario `memory` runs it.

use anyhow::{Context, Result};
use pq_bench::scenarios::{DATABASE, put_and_work};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Number of jobs
    #[arg(long, default_value_t = 1_000_000)]
    jobs: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let url = std::env::var(DATABASE).with_context(|| format!("{DATABASE} is not set"))?;
    put_and_work(&url, arguments.jobs, |sample| {
        println!("{}", serde_json::to_string(sample)?);
        Ok(())
    })
}
