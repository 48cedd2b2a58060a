//! `pq-bench run`: measures the scenarios that are named, or all.

use std::path::PathBuf;

use anyhow::Result;
use pq_bench::{Bench, Results, count_statements, scenarios};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What to measure; all that there is unless said
    scenarios: Vec<String>,
    /// How many rounds each figure is the median of; of the scenario `horizon` three at the most
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Shortens everything that is measured by time to this part of it, to try out a scenario
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// How many seconds each run of the scenario `horizon` takes
    #[arg(long, default_value_t = 600.0)]
    horizon_seconds: f64,
    /// Where to keep what was found, as JSON
    #[arg(long, value_name = "FILE", default_value = "target/pq-bench.json")]
    out: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let plan = scenarios::Plan {
        rounds: arguments.rounds.max(1),
        scale: arguments.scale,
        horizon: arguments.horizon_seconds,
    };
    let wanted = scenarios::named(&arguments.scenarios)?;
    count_statements()?;
    let bench = Bench::start()?;
    let mut results = Results::about(&bench)?;
    eprintln!("measured on: {}", results.server);
    for scenario in wanted {
        eprintln!("{}: {}", scenario.name, scenario.about);
        for figure in (scenario.run)(&bench, &plan)? {
            println!("{}", figure.line());
            results.figures.push(figure);
        }
        // Whoever interrupts a long run keeps what it had.
        results.write(&arguments.out)?;
    }
    println!("kept in {}", arguments.out.display());
    Ok(())
}
