//! `pq-bench report`: writes the page of benchmarks, and its plots, from the files of runs.

mod axis;
mod bars;
mod hand;
mod lines;
mod merge;
mod page;
mod plots;
mod words;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use pq_bench::Results;

use hand::Hand;
use merge::Merged;

/// The page, and the folder of its plots beside it.
const PAGE: &str = "benchmarks.md";
const FOLDER: &str = "benchmarks";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A run, as `pq-bench run` keeps it; of several, the later ones win where both measured the same
    #[arg(long = "run", value_name = "FILE", default_value = "target/pq-bench.json")]
    runs: Vec<PathBuf>,
    /// Where the page and its plots are written
    #[arg(long, value_name = "FOLDER", default_value = "docs")]
    out: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let runs: Vec<Results> = arguments.runs.iter().map(|file| Results::read(file)).collect::<Result<_>>()?;
    let merged = Merged::of(runs);
    let file = arguments.out.join(PAGE);
    // What is written by hand is never lost: a page that cannot be understood stays as it is.
    let hand = Hand::of(&there_is(&file)?).with_context(|| format!("{} is left as it is", file.display()))?;
    let plots = plots::of(&merged)?;

    let folder = arguments.out.join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    for plot in &plots {
        write(&folder.join(&plot.file), &plot.svg)?;
    }
    remove_others(&folder, &plots)?;
    write(&file, &page::of(&merged, &plots, hand))?;
    println!("{} figures are in {}, with {} plots", merged.figures.len(), file.display(), plots.len());
    Ok(())
}

fn there_is(file: &Path) -> Result<String> {
    match fs::read_to_string(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        read => read.with_context(|| format!("{} cannot be read", file.display())),
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("{} cannot be written", file.display()))
}

/// Removes the plots of an earlier report that no page shows any more.
fn remove_others(folder: &Path, plots: &[plots::Plot]) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let is_plot = entry.path().extension().is_some_and(|extension| extension == "svg");
        if is_plot && !plots.iter().any(|plot| entry.file_name() == *plot.file) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
