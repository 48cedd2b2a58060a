//! `pq-bench compare`: compares the runs of two revisions; see `ci/bench-compare`.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use pq_bench::{FigureChange, Results, compare};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Runs of the base, as written by `pq-bench run`
    #[arg(required = true)]
    base: Vec<PathBuf>,
    /// As many runs of the other revision, in the same order
    #[arg(long, value_name = "RUN", required = true, num_args = 1..)]
    with: Vec<PathBuf>,
}

pub(crate) fn run(Arguments { base, with }: &Arguments) -> Result<()> {
    ensure!(
        base.len() == with.len(),
        "cannot compare {} runs with {}; pass as many runs to --with",
        base.len(),
        with.len()
    );
    let read = |paths: &[PathBuf]| paths.iter().map(|path| Results::read(path)).collect::<Result<Vec<_>>>();
    let (base, with) = (read(base)?, read(with)?);
    let compared = compare(&base, &with);
    ensure!(!compared.is_empty(), "cannot compare the runs: they have no figure in common");
    let revision = |runs: &[Results]| runs.first().map_or(String::new(), |run| run.revision.clone());
    println!("base: {}; with: {}; {} rounds", revision(&base), revision(&with), base.len());
    println!("{}", FigureChange::table(&compared));
    Ok(())
}
