//! `pq-bench gate`: checks the cost of puts and takes against thresholds.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use pq_bench::Bench;
use pq_bench::gate::{Check, CheckResult, CountedOperation, Group, Thresholds, child, measure};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Check only these groups [default: all]
    #[arg(long, value_name = "GROUP", num_args = 1..)]
    only: Vec<Group>,
    /// The thresholds file
    #[arg(long, value_name = "FILE", default_value = "pq-bench/gate.toml")]
    thresholds: PathBuf,
    /// Write the measured values to the thresholds file before the check
    #[arg(long)]
    write: bool,
    /// Fail if valgrind is missing and instructions cannot be counted
    #[arg(long)]
    require_callgrind: bool,
}

#[derive(clap::Args)]
pub(crate) struct ChildArguments {
    what: CountedOperation,
    times: usize,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { only, thresholds: path, write, require_callgrind } = arguments;
    let groups: Vec<Group> =
        Group::ALL.into_iter().filter(|group| only.is_empty() || only.contains(group)).collect();
    let mut thresholds = Thresholds::read(path)?;
    // Counts do not depend on the disk, and the ratios measure the client, so commits need not be durable.
    let bench = Bench::throwaway()?;
    println!("measured on: {}", bench.origin());
    let measured = measure(&bench, &groups, &std::env::current_exe()?)?;
    if *write {
        thresholds.update(&groups, &measured);
        std::fs::write(path, thresholds.text())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let checks = thresholds.check(&groups, &measured);
    println!("{}", Check::table(&checks, *require_callgrind));
    let failed = checks.iter().filter(|one| one.fails(*require_callgrind)).count();
    let can_tighten = checks.iter().any(|one| one.result == CheckResult::Improved);
    let update = update_command(path, only);
    if failed > 0 {
        println!(
            "\nIf the change is intended, update the thresholds, commit {} and explain the change:\n    {update}",
            path.display()
        );
        bail!("{failed} of {} figures fail", checks.len());
    }
    if can_tighten {
        println!("\nSome figures are better than their thresholds. To tighten the thresholds:\n    {update}");
    }
    Ok(())
}

/// Returns the command that updates the thresholds file.
fn update_command(path: &std::path::Path, only: &[Group]) -> String {
    use clap::ValueEnum;
    let names: Vec<_> = only.iter().filter_map(Group::to_possible_value).collect();
    let names: Vec<_> = names.iter().map(|name| name.get_name()).collect();
    let only = if names.is_empty() { String::new() } else { format!(" --only {}", names.join(" ")) };
    let release = if cfg!(debug_assertions) { "" } else { " --release" };
    format!(
        "cargo run -p pq-bench{release} --bin pq-bench -- gate --thresholds {}{only} --write",
        path.display()
    )
}

pub(crate) fn run_child(arguments: &ChildArguments) -> Result<()> {
    child(arguments.what, arguments.times)
}
