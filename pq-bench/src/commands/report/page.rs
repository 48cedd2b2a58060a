//! The page, as Markdown.

use std::fmt::Write;

use pq_bench::{Cost, Figure, Results, Track, median, scenarios};

use super::hand::Hand;
use super::merge::{Merged, scenarios_of};
use super::plots::Plot;
use super::words::{asked, name, number, parameters, reached, spread, time_unit};
use super::{FOLDER, RUNS};

/// The page of these figures and plots, with what was written into it by hand.
pub(super) fn of(merged: &Merged, plots: &[Plot], mut hand: Hand) -> String {
    let mut page = String::from(
        "# Benchmarks\n\n\
        Written by `pq-bench report` from the files of runs; what people add stands between its comments \
        \"by hand\" and \"end\", and stays. A figure is the median of its rounds, with the least and the most of \
        them; a ratio is the median of the rounds' ratios, where each round measured both sides one after the \
        other. Rates say more of the machine than of the queue: read the ratios.\n\n",
    );
    page += "## Where it ran\n\n";
    page += &places(&merged.runs);
    let _ = write!(
        page,
        "## How to repeat it\n\n```sh\ncargo run --release -p pq-bench -- run\n\
        cargo run --release -p pq-bench -- report\n```\n\n\
        `run` takes the names of scenarios, to measure only those. `report` takes several `--run FILE`; what they do \
        not have stays as it is, for the runs that a page is made of are kept in `{FOLDER}/{RUNS}`.\n\n"
    );
    page += "## What is asked, and what is reached\n\n";
    page += &targets(merged);
    page += &hand.take("targets");
    for scenario in merged.scenarios() {
        page.push('\n');
        page += &section(merged, scenario, plots);
        page += &hand.take(scenario);
    }
    // What was written of scenarios that are not here now stays too.
    let left = hand.left();
    if !left.is_empty() {
        page += "\n## Notes\n\n";
    }
    for name in left {
        page += &hand.take(&name);
    }
    page
}

/// Each place once, with the runs that were there.
fn places(runs: &[Results]) -> String {
    let mut places: Vec<(String, String)> = Vec::new();
    for about in runs {
        let scenarios = scenarios_of(&about.figures);
        let settings: Vec<String> =
            about.settings.iter().map(|(name, value)| format!("`{name} = {value}`")).collect();
        let settings = settings.join(", ");
        let place =
            format!("- machine: {}\n- server: {}\n- settings: {settings}\n", about.machine, about.server);
        let revision = if about.revision.is_empty() { "unknown" } else { &about.revision };
        let run = format!("  - {}, revision `{revision}`: {}\n", about.began_at, scenarios.join(", "));
        match places.iter_mut().find(|(known, _)| *known == place) {
            Some((_, runs)) => *runs += &run,
            None => places.push((place, run)),
        }
    }
    places.iter().map(|(place, runs)| format!("{place}- runs:\n{runs}\n")).collect()
}

fn targets(merged: &Merged) -> String {
    let figures = merged.figures();
    let asked_of: Vec<&Figure> = figures.into_iter().filter(|figure| figure.target.is_some()).collect();
    if asked_of.is_empty() {
        return "Nothing is asked of these figures.\n\n".to_owned();
    }
    let rows = asked_of.iter().map(|figure| {
        vec![
            figure.name.clone(),
            parameters(&figure.parameters),
            format!("{} {}", number(median(&figure.ours)), figure.unit),
            match figure.bare.is_empty() {
                true => String::new(),
                false => number(median(&figure.bare)),
            },
            figure.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            asked(figure),
            reached(figure),
        ]
    });
    let short = asked_of.iter().filter(|figure| figure.reached() != Some(true)).count();
    format!(
        "{}\n{} of {} are reached.\n\n",
        table(&["what", "with", "ours", "beside", "ratio", "asked", "reached"], rows),
        asked_of.len() - short,
        asked_of.len()
    )
}

fn section(merged: &Merged, scenario: &str, plots: &[Plot]) -> String {
    let figures: Vec<&Figure> = merged.of_scenario(scenario).collect();
    let mut text = format!("## {scenario}\n\n");
    if let Some(known) = scenarios::ALL.iter().find(|known| known.name == scenario) {
        let _ = writeln!(text, "{}.\n", sentence(known.about));
    }
    let rows = figures.iter().filter(|figure| !figure.ours.is_empty()).map(|figure| {
        vec![
            name(figure),
            figure.unit.clone(),
            spread(&figure.ours),
            spread(&figure.bare),
            figure.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            figure.beside.clone().unwrap_or_default(),
        ]
    });
    text += &some_table(&["what", "unit", "ours", "beside", "ratio", "beside what"], rows.collect());
    text += &percentiles(&figures);
    text += &tracks(&figures);
    text += &costs(&figures);
    for plot in plots.iter().filter(|plot| plot.scenario == scenario) {
        let _ = writeln!(text, "![{}]({FOLDER}/{})\n", plot.title, plot.file);
    }
    text
}

fn sentence(words: &str) -> String {
    let mut letters = words.chars();
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
        ["single times", "unit"].into_iter().chain(heads.iter().map(String::as_str)).collect();
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
    let table = some_table(&["over time", "whose", "unit", "first", "last", "last to first"], rows.collect());
    match table.is_empty() {
        true => table,
        false => {
            table + "The means of the first and of the last minute; of a tenth where a run was shorter.\n\n"
        }
    }
}

/// The means of a track's beginning and end.
fn ends(track: &Track) -> Option<(f64, f64)> {
    let (begin, end) = (track.points.first()?.0, track.points.last()?.0);
    let part = ((end - begin) / 10.0).min(60.0);
    let mean = |from: f64, to: f64| {
        let there = track.points.iter().filter(|(at, _)| (from..=to).contains(at)).map(|(_, value)| *value);
        let (count, sum) = there.fold((0.0, 0.0), |(count, sum), value| (count + 1.0, sum + value));
        sum / count
    };
    Some((mean(begin, begin + part), mean(end - part, end)))
}

fn costs(figures: &[&Figure]) -> String {
    let row = |what: String, cost: Cost, whole: bool| {
        // What another process did is not known here.
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
        if let Some(cost) = figure.bare_cost {
            let beside = figure.beside.as_deref().unwrap_or("the other side");
            rows.push(row(format!("{}: {beside}", name(figure)), cost, cost.trips > 0.0));
        }
    }
    let heads = [
        "cost of a job",
        "round trips",
        "commits",
        "WAL, bytes",
        "dead rows",
        "client CPU, µs",
        "peak memory of the process, MB",
    ];
    some_table(&heads, rows)
}

/// A table and an empty line; nothing where it has no rows.
fn some_table(heads: &[&str], rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() { String::new() } else { table(heads, rows.into_iter()) + "\n" }
}

/// The first columns are words, to the left; those that hold numbers alone stand to the right.
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
