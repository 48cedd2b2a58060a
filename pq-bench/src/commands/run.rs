//! `pq-bench run`: measures scenarios.

use std::path::PathBuf;

use anyhow::Result;
use pq_bench::{Bench, Results, count_statements, scenarios};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Scenarios to measure [default: all]
    scenarios: Vec<String>,
    /// Rounds per figure; at most 3 in the scenario `horizon`
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Factor that shortens times and numbers of jobs, to try a scenario
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Seconds of each run of the scenario `horizon`
    #[arg(long, default_value_t = 600.0)]
    horizon_seconds: f64,
    /// File to write the figures to, as JSON
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
        // Written after each scenario, so that an interrupted run keeps what it has measured.
        results.write(&arguments.out)?;
    }
    println!("wrote {}", arguments.out.display());
    Ok(())
}
