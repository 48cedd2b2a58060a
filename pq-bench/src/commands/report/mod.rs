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

use anyhow::{Context, Result, ensure};
use pq_bench::{Results, scenarios};

use hand::Hand;
use merge::Merged;

/// The page, and the folder beside it with its plots and the runs that it was made of.
const PAGE: &str = "benchmarks.md";
const FOLDER: &str = "benchmarks";
const RUNS: &str = "runs.json";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A run, as `pq-bench run` keeps it; of several, the later ones win where both measured the same, and all of
    /// them win against those that the page was made of before
    #[arg(long = "run", value_name = "FILE", default_value = "target/pq-bench.json")]
    runs: Vec<PathBuf>,
    /// Leaves out what the page was made of before
    #[arg(long)]
    anew: bool,
    /// Where the page and its plots are written
    #[arg(long, value_name = "FOLDER", default_value = "docs")]
    out: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let folder = arguments.out.join(FOLDER);
    let kept = folder.join(RUNS);
    let mut runs = if arguments.anew { Vec::new() } else { runs_in(&kept)? };
    for file in &arguments.runs {
        runs.push(Results::read(file)?);
    }
    let merged = Merged::of(runs);
    let file = arguments.out.join(PAGE);
    let page = there_is(&file)?;
    let lost = without_runs(&page, &merged);
    ensure!(
        arguments.anew || lost.is_empty(),
        "{} is left as it is: it shows {}, of which no runs are kept; give them with --run, or leave it out with --anew",
        file.display(),
        lost.join(", ")
    );
    // What is written by hand is never lost: a page that cannot be understood stays as it is.
    let hand = Hand::of(&page).with_context(|| format!("{} is left as it is", file.display()))?;
    let plots = plots::of(&merged)?;

    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    for plot in &plots {
        write(&folder.join(&plot.file), &plot.svg)?;
    }
    remove_others(&folder, &plots)?;
    write(&kept, &serde_json::to_string(&merged.runs)?)?;
    write(&file, &page::of(&merged, &plots, hand))?;
    println!("{} figures are in {}, with {} plots", merged.figures().len(), file.display(), plots.len());
    Ok(())
}

/// Scenarios that the page has a section of, and no run.
fn without_runs(page: &str, merged: &Merged) -> Vec<&'static str> {
    let there = merged.scenarios();
    let is_lost = |name: &&str| page.contains(&format!("\n## {name}\n")) && !there.contains(name);
    scenarios::ALL.iter().map(|scenario| scenario.name).filter(is_lost).collect()
}

/// The runs of an earlier report; none where there was none.
fn runs_in(file: &Path) -> Result<Vec<Results>> {
    match there_is(file)?.as_str() {
        "" => Ok(Vec::new()),
        text => serde_json::from_str(text).with_context(|| {
            format!("{} holds no runs of pq-bench; --anew makes the page without them", file.display())
        }),
    }
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
