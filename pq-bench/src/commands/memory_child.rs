//! `pq-bench million`: puts and works jobs, and prints how much memory that takes. The scenario `memory` starts it.

use anyhow::{Context, Result};
use pq_bench::scenarios::{DATABASE, put_and_work};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How many jobs
    #[arg(long, default_value_t = 1_000_000)]
    jobs: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let url = std::env::var(DATABASE).with_context(|| format!("{DATABASE} names no database"))?;
    put_and_work(&url, arguments.jobs, |sample| {
        println!("{}", serde_json::to_string(sample)?);
        Ok(())
    })
}
