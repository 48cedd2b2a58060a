//! The page and its appendices as Markdown.

use std::fmt::Write;

use pq_bench::{Cost, Figure, Results, Target, Track, median, scenarios};

use super::format::{file_name, name, number, reached, spread, target_text, time_unit};
use super::manual_sections::ManualSections;
use super::merge::{Merged, scenarios_of};
use super::plots::Plot;
use super::{FOLDER, RUNS};

/// The plots that the page shows. The others are in the appendices.
const PLOTS: [&str; 5] =
    ["put-scaling.svg", "get-scaling.svg", "drain-scaling.svg", "wake-latency.svg", "horizon-over-time.svg"];

/// Returns the page: targets, main plots, limits, and environments.
pub(super) fn summary(merged: &Merged, plots: &[Plot], mut manual: ManualSections) -> String {
    let mut page = String::from(
        "# Benchmarks\n\n\
        Each figure is measured beside a baseline: the same work by plain SQL, `pgbench` or `psql` on the same \
        server. Each round measures both, one after the other. A ratio is the median of the rounds' ratios. Rates \
        depend on the machine, ratios much less.\n\n",
    );
    page += "## Targets\n\n";
    page += &targets(merged);
    page += &main_plots(plots);
    page += "## What limits each figure\n\n";
    page += &manual.take("limits");
    page += "\n## All figures\n\n";
    page += &index(merged);
    page += "\n## Environment\n\n";
    page += &environments(&merged.runs);
    let _ = write!(
        page,
        "## Repeat it\n\n```sh\ncargo run --release -p pq-bench -- run\n\
        cargo run --release -p pq-bench -- report\n```\n\n\
        `run` takes the names of scenarios to measure. `report` writes this page and the pages in `{FOLDER}/` from \
        `{FOLDER}/{RUNS}` and the new run; `report --redraw` needs no new run. Text between the comments `manual` \
        and `end` is kept.\n"
    );
    page += &leftover(manual);
    page
}

/// Returns the appendix of a scenario: all of its figures, costs and plots.
pub(super) fn appendix(
    merged: &Merged,
    scenario: &str,
    plots: &[Plot],
    mut manual: ManualSections,
) -> String {
    let mut page = section(merged, scenario, plots);
    page += "## Notes\n\n";
    page += &manual.take("notes");
    page += &leftover(manual);
    page
}

/// Returns the appendix of a scenario of which no run is kept, if it has manual text.
pub(super) fn without_figures(scenario: &str, mut manual: ManualSections) -> Option<String> {
    if manual.left().is_empty() {
        return None;
    }
    let mut page = format!("# {scenario}\n\nNo run of this scenario is kept.\n\n");
    page += &manual.take("notes");
    page += &leftover(manual);
    Some(page)
}

/// Returns the manual sections whose place in the page is gone.
fn leftover(mut manual: ManualSections) -> String {
    let names = manual.left();
    if names.is_empty() {
        return String::new();
    }
    let sections: String = names.iter().map(|name| manual.take(name)).collect();
    format!("\n## Other notes\n\n{sections}")
}

/// Returns each environment once, with the runs that were measured in it.
fn environments(runs: &[Results]) -> String {
    let mut environments: Vec<(String, String)> = Vec::new();
    for about in runs {
        let scenarios = scenarios_of(&about.figures);
        let settings: Vec<String> =
            about.settings.iter().map(|(name, value)| format!("`{name} = {value}`")).collect();
        let settings = settings.join(", ");
        let place =
            format!("- machine: {}\n- server: {}\n- settings: {settings}\n", about.machine, about.server);
        let revision = if about.revision.is_empty() { "unknown" } else { &about.revision };
        let run = format!("  - {}, revision `{revision}`: {}\n", about.began_at, scenarios.join(", "));
        match environments.iter_mut().find(|(known, _)| *known == place) {
            Some((_, runs)) => *runs += &run,
            None => environments.push((place, run)),
        }
    }
    environments.iter().map(|(place, runs)| format!("{place}- runs:\n{runs}\n")).collect()
}

/// Returns the table of targets.
///
/// It has one row per kind of figure, with the measurement that is furthest from its target.
fn targets(merged: &Merged) -> String {
    let figures = merged.figures();
    let with_target: Vec<&Figure> = figures.into_iter().filter(|figure| figure.target.is_some()).collect();
    if with_target.is_empty() {
        return "No figure has a target.\n\n".to_owned();
    }
    let mut kinds: Vec<Vec<&Figure>> = Vec::new();
    for figure in &with_target {
        let same = |kind: &&mut Vec<&Figure>| {
            let known = kind[0];
            (&known.scenario, &known.name, target_text(known), &known.beside)
                == (&figure.scenario, &figure.name, target_text(figure), &figure.beside)
        };
        match kinds.iter_mut().find(same) {
            Some(kind) => kind.push(figure),
            None => kinds.push(vec![figure]),
        }
    }
    let rows = kinds.iter().map(|kind| {
        let worst = kind.iter().min_by(|one, other| score(one).total_cmp(&score(other))).unwrap_or(&kind[0]);
        let count = kind.iter().filter(|figure| figure.reached() == Some(true)).count();
        vec![
            format!("[{}]({FOLDER}/{}.md)", worst.scenario, file_name(&worst.scenario)),
            name(worst),
            format!("{} {}", number(median(&worst.ours)), worst.unit),
            match worst.baseline.is_empty() {
                true => String::new(),
                false => number(median(&worst.baseline)),
            },
            worst.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            target_text(worst),
            match count == kind.len() {
                true => "yes".to_owned(),
                false if kind.len() == 1 => reached(worst),
                false => format!("{} ({count} of {})", reached(worst), kind.len()),
            },
        ]
    });
    let count = with_target.iter().filter(|figure| figure.reached() == Some(true)).count();
    format!(
        "{count} of {} targets are reached. Each row shows the measurement that is furthest from its target, of all \
        thread counts and settings. \"2 of 3\" says that two of three such measurements reach the target.\n\n{}\n",
        with_target.len(),
        table(&["scenario", "figure", "pq", "baseline", "ratio", "target", "reached"], rows),
    )
}

/// Returns how far a figure is above its target: 1 is just reached, less is missed.
fn score(figure: &Figure) -> f64 {
    match figure.target {
        Some(Target::RatioAtLeast(least)) => figure.ratio().unwrap_or_default() / least,
        Some(Target::RatioAtMost(most)) => most / figure.ratio().unwrap_or(f64::INFINITY),
        Some(Target::AtMost(most)) => most / median(&figure.ours),
        None => f64::INFINITY,
    }
}

fn main_plots(plots: &[Plot]) -> String {
    let shown = PLOTS.iter().filter_map(|file| plots.iter().find(|plot| plot.file == *file));
    let images: String = shown.map(|plot| format!("![{}]({FOLDER}/{})\n\n", plot.title, plot.file)).collect();
    if images.is_empty() { images } else { format!("## Plots\n\n{images}") }
}

/// Returns a list of the appendices.
fn index(merged: &Merged) -> String {
    let line = |scenario: &&str| {
        let about = scenarios::ALL.iter().find(|known| known.name == *scenario).map(|known| known.about);
        let about = about.map(|about| format!(": {}", about)).unwrap_or_default();
        format!("- [{scenario}]({FOLDER}/{}.md){about}\n", file_name(scenario))
    };
    merged.scenarios().iter().map(line).collect()
}

fn section(merged: &Merged, scenario: &str, plots: &[Plot]) -> String {
    let figures: Vec<&Figure> = merged.of_scenario(scenario).collect();
    let mut text = format!("# {scenario}\n\n");
    if let Some(known) = scenarios::ALL.iter().find(|known| known.name == scenario) {
        let _ = writeln!(text, "{}.\n", sentence(known.about));
    }
    let rows = figures.iter().filter(|figure| !figure.ours.is_empty()).map(|figure| {
        vec![
            name(figure),
            figure.unit.clone(),
            spread(&figure.ours),
            spread(&figure.baseline),
            figure.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            target_text(figure),
            figure.target.map(|_| reached(figure)).unwrap_or_default(),
            figure.beside.clone().unwrap_or_default(),
        ]
    });
    let heads = ["figure", "unit", "pq", "baseline", "ratio", "target", "reached", "the baseline"];
    text += &some_table(&heads, rows.collect());
    text += &percentiles(&figures);
    text += &tracks(&figures);
    text += &costs(&figures);
    for plot in plots.iter().filter(|plot| plot.scenario == scenario) {
        let _ = writeln!(text, "![{}]({})\n", plot.title, plot.file);
    }
    text
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn percentiles(figures: &[&Figure]) -> String {
    let mut percents: Vec<f64> =
        figures.iter().flat_map(|figure| &figure.percentiles).map(|(at, _)| *at).collect();
    percents.sort_by(f64::total_cmp);
    percents.dedup();
    let rows = figures.iter().filter(|figure| !figure.percentiles.is_empty()).map(|figure| {
        let mut row = vec![name(figure), time_unit(figure).to_owned()];
        row.extend(percents.iter().map(|percent| {
            let time = figure.percentiles.iter().find(|(at, _)| at == percent);
            time.map(|(_, time)| number(*time)).unwrap_or_default()
        }));
        row
    });
    let heads: Vec<String> =
        percents.iter().map(|percent| format!("p{percent}").replace("p100", "max")).collect();
    let heads: Vec<&str> =
        ["percentiles", "unit"].into_iter().chain(heads.iter().map(String::as_str)).collect();
    some_table(&heads, rows.collect())
}

fn tracks(figures: &[&Figure]) -> String {
    let rows = figures.iter().flat_map(|figure| {
        figure.tracks.iter().filter_map(|track| {
            let (first, last) = ends(track)?;
            let ratio = if first > 0.0 { format!("{:.2}", last / first) } else { String::new() };
            Some(vec![
                name(figure),
                track.name.clone(),
                figure.unit.clone(),
                number(first),
                number(last),
                ratio,
            ])
        })
    });
    let table =
        some_table(&["over time", "series", "unit", "first", "last", "last to first"], rows.collect());
    match table.is_empty() {
        true => table,
        false => {
            table
                + "Means of the first and the last minute, or of a tenth of a run of less than ten minutes.\n\n"
        }
    }
}

/// Returns the means of the first and of the last part of a track.
fn ends(track: &Track) -> Option<(f64, f64)> {
    let (begin, end) = (track.points.first()?.0, track.points.last()?.0);
    let part = ((end - begin) / 10.0).min(60.0);
    let mean = |from: f64, to: f64| {
        let within = track.points.iter().filter(|(at, _)| (from..=to).contains(at)).map(|(_, value)| *value);
        let (count, sum) = within.fold((0.0, 0.0), |(count, sum), value| (count + 1.0, sum + value));
        sum / count
    };
    Some((mean(begin, begin + part), mean(end - part, end)))
}

fn costs(figures: &[&Figure]) -> String {
    let row = |what: String, cost: Cost, whole: bool| {
        // The client's costs are unknown if another process did the work.
        let own = |value: f64| if whole { number(value) } else { String::new() };
        vec![
            what,
            own(cost.trips),
            number(cost.commits),
            number(cost.wal),
            number(cost.dead_rows),
            own(cost.client_cpu),
            own(cost.peak_memory),
        ]
    };
    let mut rows = Vec::new();
    for figure in figures {
        if let Some(cost) = figure.cost {
            rows.push(row(name(figure), cost, true));
        }
        if let Some(cost) = figure.baseline_cost {
            let beside = figure.beside.as_deref().unwrap_or("baseline");
            rows.push(row(format!("{}: {beside}", name(figure)), cost, cost.trips > 0.0));
        }
    }
    let heads = [
        "cost per job",
        "round trips",
        "commits",
        "WAL, bytes",
        "dead tuples",
        "client CPU, µs",
        "peak memory of the process, MB",
    ];
    some_table(&heads, rows)
}

/// Returns a table and an empty line, or nothing if there are no rows.
fn some_table(heads: &[&str], rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() { String::new() } else { table(heads, rows.into_iter()) + "\n" }
}

/// Returns a table. Columns of numbers are aligned to the right.
fn table(heads: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let rows: Vec<Vec<String>> = rows.collect();
    let numeric = |at: usize| {
        let starts =
            |cell: &String| cell.is_empty() || cell.starts_with(|c: char| c.is_ascii_digit() || c == '-');
        rows.iter().all(|row| starts(&row[at])) && rows.iter().any(|row| !row[at].is_empty())
    };
    let rules: Vec<&str> = (0..heads.len()).map(|at| if numeric(at) { "---:" } else { "---" }).collect();
    let mut text = format!("| {} |\n| {} |\n", heads.join(" | "), rules.join(" | "));
    for row in &rows {
        let cells: Vec<String> =
            row.iter().map(|cell| cell.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ")).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}
