//! `pq-bench report`: writes docs/benchmarks.md, its appendices and its plots from runs.

mod axis;
mod bars;
mod format;
mod lines;
mod manual_sections;
mod merge;
mod page;
mod plots;

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use pq_bench::{Results, scenarios};

use manual_sections::ManualSections;
use merge::Merged;

/// The page, and the folder with its appendices, plots and runs.
const PAGE: &str = "benchmarks.md";
const FOLDER: &str = "benchmarks";
const RUNS: &str = "runs.json";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// File of a run, side figures replace those of earlier runs
    #[arg(long = "run", value_name = "FILE", default_value = "target/pq-bench.json")]
    runs: Vec<PathBuf>,
    /// Ignore the kept runs
    #[arg(long, conflicts_with = "redraw")]
    anew: bool,
    /// Write the pages from the kept runs alone
    #[arg(long, conflicts_with = "runs")]
    redraw: bool,
    /// Folder of the page
    #[arg(long, value_name = "FOLDER", default_value = "docs")]
    out: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let folder = arguments.out.join(FOLDER);
    let kept = folder.join(RUNS);
    let mut runs = if arguments.anew { Vec::new() } else { runs_in(&kept)? };
    if !arguments.redraw {
        for file in &arguments.runs {
            runs.push(Results::read(file)?);
        }
    }
    let merged = Merged::of(runs);
    let file = arguments.out.join(PAGE);
    let lost = without_runs(&folder, &merged);
    ensure!(
        arguments.anew || lost.is_empty(),
        "cannot replace {}: no runs of {} are kept; pass them with --run, or drop them with --anew",
        file.display(),
        lost.join(", ")
    );
    let plots = plots::of(&merged)?;
    // All pages are made before one is written. Otherwise a manual section that cannot be read would be lost.
    let mut pages = vec![(file.clone(), page::summary(&merged, &plots, manual_of(&file)?))];
    for scenario in merged.scenarios() {
        let file = appendix(&folder, scenario);
        let page = page::appendix(&merged, scenario, &plots, manual_of(&file)?);
        pages.push((file, page));
    }

    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    remove_stale(&folder, &plots, &pages)?;
    for plot in &plots {
        write(&folder.join(&plot.file), &plot.svg)?;
    }
    write(&kept, &serde_json::to_string(&merged.runs)?)?;
    for (file, page) in &pages {
        write(file, page)?;
    }
    println!("wrote {} figures and {} plots to {}", merged.figures().len(), plots.len(), file.display());
    Ok(())
}

fn appendix(folder: &Path, scenario: &str) -> PathBuf {
    folder.join(format!("{}.md", format::file_name(scenario)))
}

/// Reads the manual sections of a page. There are none if the page does not exist.
fn manual_of(file: &Path) -> Result<ManualSections> {
    ManualSections::of(&read_if_exists(file)?).with_context(|| format!("cannot replace {}", file.display()))
}

/// Returns the known scenarios that have an appendix and no run.
fn without_runs(folder: &Path, merged: &Merged) -> Vec<&'static str> {
    let measured = merged.scenarios();
    let is_lost = |name: &&str| appendix(folder, name).exists() && !measured.contains(name);
    scenarios::ALL.iter().map(|scenario| scenario.name).filter(is_lost).collect()
}

/// Returns the kept runs of earlier reports.
fn runs_in(file: &Path) -> Result<Vec<Results>> {
    match read_if_exists(file)?.as_str() {
        "" => Ok(Vec::new()),
        text => serde_json::from_str(text)
            .with_context(|| format!("cannot read the runs in {}; --anew ignores them", file.display())),
    }
}

fn read_if_exists(file: &Path) -> Result<String> {
    match fs::read_to_string(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        read => read.with_context(|| format!("cannot read {}", file.display())),
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Removes plots and appendices of an earlier report that have no figures any more. Keeps manual text.
fn remove_stale(folder: &Path, plots: &[plots::Plot], pages: &[(PathBuf, String)]) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let file = entry?.path();
        let extension = file.extension().and_then(OsStr::to_str).unwrap_or_default();
        let is_stale = match extension {
            "svg" => !plots.iter().any(|plot| file.ends_with(&plot.file)),
            "md" => !pages.iter().any(|(page, _)| *page == file),
            _ => false,
        };
        if !is_stale {
            continue;
        }
        let scenario = file.file_stem().and_then(OsStr::to_str).unwrap_or_default();
        let page = if extension == "md" { page::without_figures(scenario, manual_of(&file)?) } else { None };
        match page {
            Some(page) => write(&file, &page)?,
            None => fs::remove_file(&file)?,
        }
    }
    Ok(())
}
