//! `pq-bench gate`: whether a put and a take still cost what they should.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use pq_bench::Bench;
use pq_bench::gate::{Check, CheckResult, CountedOperation, Group, Thresholds, child, measure};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Looks at these alone
    #[arg(long, value_name = "GROUP", num_args = 1..)]
    only: Vec<Group>,
    /// The committed thresholds
    #[arg(long, value_name = "FILE", default_value = "pq-bench/gate.toml")]
    thresholds: PathBuf,
    /// Writes what was measured into the thresholds' file, instead of holding it against it
    #[arg(long)]
    write: bool,
    /// Fails where there is no valgrind to count instructions with
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
    // A disk that is slow or shared says nothing of the queue, and the ratios are of the client's work.
    let bench = Bench::throwaway()?;
    println!("measured on: {}", bench.origin());
    let measured = measure(&bench, &groups, &std::env::current_exe()?)?;
    if *write {
        thresholds.update(&groups, &measured);
        std::fs::write(path, thresholds.text())
            .with_context(|| format!("{} cannot be written", path.display()))?;
    }
    let checks = thresholds.check(&groups, &measured);
    println!("{}", Check::table(&checks, *require_callgrind));
    let failed = checks.iter().filter(|one| one.fails(*require_callgrind)).count();
    let tighter = checks.iter().any(|one| one.result == CheckResult::Improved);
    let again = again(path, only);
    if failed > 0 {
        println!(
            "\nWhere that is meant to be so, take it for the threshold from now on, commit {}, and say why:\n    {again}",
            path.display()
        );
        bail!("{failed} of {} figures fail", checks.len());
    }
    if tighter {
        println!(
            "\nSome figures have become better than their thresholds guard. To hold what was won:\n    {again}"
        );
    }
    Ok(())
}

/// How the file is written anew.
fn again(path: &std::path::Path, only: &[Group]) -> String {
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
