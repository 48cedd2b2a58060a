//! Selects the plots of a run, their series and their names.

use std::collections::BTreeMap;

use anyhow::Result;
use plotters::style::RGBColor;
use pq_bench::{Figure, Track, median};

use super::axis::Axis;
use super::bars::{Bars, Row};
use super::format::{file_name, name, tick, time_unit};
use super::lines::{COLOURS, GREY, Lines, Series};
use super::merge::Merged;

/// A plot and its scenario.
pub(super) struct Plot {
    pub(super) scenario: String,
    pub(super) title: String,
    /// File name.
    pub(super) file: String,
    pub(super) svg: String,
}

/// Parameters that rates are plotted over.
const OVER: [&str; 4] = ["threads", "connections", "clients", "workers"];
/// Maximum number of lines that readers can tell apart.
const LINES: usize = 4;
/// Maximum number of bars per plot.
const ROWS: usize = 12;
/// Longer runs are plotted in minutes.
const MINUTES: f64 = 180.0;

/// Returns all plots of a run.
pub(super) fn of(merged: &Merged) -> Result<Vec<Plot>> {
    let mut plots = Vec::new();
    for scenario in merged.scenarios() {
        let figures: Vec<&Figure> = merged.of_scenario(scenario).collect();
        let mut add = |title: String, kind: &str, svg: String| {
            // A scenario may have several plots of a kind.
            let same = |plot: &&Plot| plot.file.starts_with(&format!("{}-{kind}", file_name(scenario)));
            let file = match plots.iter().filter(same).count() {
                0 => format!("{}-{kind}.svg", file_name(scenario)),
                others => format!("{}-{kind}-{}.svg", file_name(scenario), others + 1),
            };
            plots.push(Plot { scenario: scenario.to_owned(), title, file, svg });
        };
        for lines in scaling(scenario, &figures) {
            add(lines.title.clone(), "scaling", lines.svg()?);
        }
        for lines in latencies(scenario, &figures) {
            add(lines.title.clone(), "latency", lines.svg()?);
        }
        for lines in figures.iter().filter_map(|figure| over_time(figure)) {
            add(lines.title.clone(), "over-time", lines.svg()?);
        }
        for bars in bytes(scenario, &figures) {
            add(bars.title.clone(), "bytes", bars.svg()?);
        }
    }
    Ok(plots)
}

fn colour(at: usize) -> RGBColor {
    COLOURS[at % COLOURS.len()]
}

/// Returns the parameter that a figure is plotted over, and its value.
fn over(figure: &Figure) -> Option<(&'static str, f64)> {
    OVER.iter().find_map(|over| Some((*over, figure.parameters.get(*over)?.parse().ok()?)))
}

/// Plots rates over threads, for `pq` and the baseline.
fn scaling(scenario: &str, figures: &[&Figure]) -> Vec<Lines> {
    // Figures that differ only in the number of threads form a line.
    let mut groups: Vec<(String, Vec<(f64, &Figure)>)> = Vec::new();
    let mut axes: Vec<&str> = Vec::new();
    for figure in figures.iter().filter(|figure| figure.unit.ends_with("/s") && !figure.ours.is_empty()) {
        let Some((axis, at)) = over(figure) else { continue };
        let mut others = (*figure).clone();
        others.parameters.remove(axis);
        let key = name(&others);
        if !axes.contains(&axis) {
            axes.push(axis);
        }
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, points)) => points.push((at, figure)),
            None => groups.push((key, vec![(at, figure)])),
        }
    }
    groups.retain(|(_, points)| points.len() > 1);
    for (_, points) in &mut groups {
        points.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    }
    let label = axes.join(" or ");
    let what = format!("rate over {label}");
    let several = groups.len().div_ceil(LINES);
    let parts = groups.chunks(LINES).enumerate();
    parts
        .map(|(part, groups)| scaling_plot(&part_title(scenario, &what, part, several), &label, groups))
        .collect()
}

/// Returns the title of a plot that may have been split.
fn part_title(scenario: &str, of: &str, part: usize, parts: usize) -> String {
    match parts {
        1 => format!("{scenario}: {of}"),
        _ => format!("{scenario}: {of}, part {}", part + 1),
    }
}

fn scaling_plot(title: &str, label: &str, groups: &[(String, Vec<(f64, &Figure)>)]) -> Lines {
    let mut series: Vec<Series> = Vec::new();
    let mut beside: Vec<(String, Series)> = Vec::new();
    for (at, (name, points)) in groups.iter().enumerate() {
        let line = |values: fn(&Figure) -> &[f64]| {
            let measured = points.iter().filter(move |(_, figure)| !values(figure).is_empty());
            let measured = measured.map(move |(at, figure)| (at.log2(), values(figure)));
            let points: Vec<(f64, f64)> = measured.clone().map(|(at, values)| (at, median(values))).collect();
            let least = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
            let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
            let spread = measured.map(|(at, values)| (at, least(values), most(values))).collect();
            (points, spread)
        };
        let (points_of_ours, spread) = line(|figure| &figure.ours);
        series.push(Series {
            name: name.clone(),
            colour: colour(at),
            dashed: false,
            marked: true,
            points: points_of_ours,
            spread,
        });
        let (points_of_baseline, spread) = line(|figure| &figure.baseline);
        if points_of_baseline.is_empty() {
            continue;
        }
        let what = points.iter().find_map(|(_, figure)| figure.beside.clone());
        let what = what.unwrap_or_else(|| "the other side".to_owned());
        // Several figures may share a baseline.
        match beside.iter_mut().find(|(known, series)| *known == what && series.points == points_of_baseline)
        {
            Some((_, series)) => series.colour = GREY,
            None => {
                let twice = beside.iter().any(|(known, _)| *known == what);
                let text = if twice { format!("{what} (beside {name})") } else { what.clone() };
                beside.push((
                    what,
                    Series {
                        name: text,
                        colour: if groups.len() == 1 { GREY } else { colour(at) },
                        dashed: true,
                        marked: true,
                        points: points_of_baseline,
                        spread,
                    },
                ));
            }
        }
    }
    series.extend(beside.into_iter().map(|(_, series)| series));
    let mut positions: BTreeMap<String, f64> = BTreeMap::new();
    for (place, _) in groups.iter().flat_map(|(_, points)| points) {
        positions.insert(tick(*place), place.log2());
    }
    let most = series.iter().flat_map(|series| &series.spread).map(|(_, _, most)| *most).fold(0.0, f64::max);
    let unit = &groups[0].1[0].1.unit;
    Lines {
        title: title.to_owned(),
        x: Axis::at(label, positions.into_iter().map(|(text, at)| (at, text)).collect()),
        y: Axis::from_zero(unit, most),
        series,
    }
}

/// Plots percentiles by their number of nines.
fn latencies(scenario: &str, figures: &[&Figure]) -> Vec<Lines> {
    let mut by_unit: Vec<(&str, Vec<&Figure>)> = Vec::new();
    for figure in figures.iter().filter(|figure| figure.percentiles.len() > 1) {
        let unit = time_unit(figure);
        match by_unit.iter_mut().find(|(known, _)| *known == unit) {
            Some((_, figures)) => figures.push(figure),
            None => by_unit.push((unit, vec![figure])),
        }
    }
    let mut plots = Vec::new();
    for (unit, figures) in by_unit {
        let parts = figures.len().div_ceil(LINES + 2);
        for (part, figures) in figures.chunks(LINES + 2).enumerate() {
            plots.push(latency_plot(
                &part_title(scenario, "distribution of single times", part, parts),
                unit,
                figures,
            ));
        }
    }
    plots
}

fn latency_plot(title: &str, unit: &str, figures: &[&Figure]) -> Lines {
    let all = || figures.iter().flat_map(|figure| &figure.percentiles);
    let below = all().map(|(percent, _)| *percent).filter(|percent| *percent < 100.0).fold(0.0, f64::max);
    // The maximum is placed one nine beyond the highest percentile.
    let place = |percent: f64| match percent {
        all if all >= 100.0 => -(1.0 - below / 100.0).log10() + 1.0,
        percent => -(1.0 - percent / 100.0).log10(),
    };
    let mut positions: Vec<(f64, String)> = Vec::new();
    for (percent, _) in all() {
        let text = if *percent >= 100.0 { "max".to_owned() } else { format!("p{percent}") };
        if !positions.iter().any(|(_, known)| *known == text) {
            positions.push((place(*percent), text));
        }
    }
    positions.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    // If labels would overlap, the one of the longer time stays.
    let room = positions.last().map_or(0.0, |(last, _)| *last) / 16.0;
    let mut labels: Vec<(f64, String)> = Vec::new();
    for (at, text) in positions.into_iter().rev() {
        if labels.last().is_none_or(|(next, _)| next - at >= room) {
            labels.push((at, text));
        }
    }
    let times = || all().map(|(_, time)| *time).filter(|time| *time > 0.0);
    let (least, most) = (times().fold(f64::INFINITY, f64::min), times().fold(0.0, f64::max));
    let logarithmic = most > 10.0 * least;
    let series = figures.iter().enumerate().map(|(at, figure)| {
        let positive = figure.percentiles.iter().filter(|(_, time)| *time > 0.0);
        let height = |time: f64| if logarithmic { time.log10() } else { time };
        Series {
            name: name(figure),
            colour: colour(at),
            dashed: false,
            marked: true,
            points: positive.map(|(percent, time)| (place(*percent), height(*time))).collect(),
            spread: Vec::new(),
        }
    });
    Lines {
        title: title.to_owned(),
        x: Axis::at("percentile", labels),
        y: if logarithmic { Axis::logarithmic(unit, least, most) } else { Axis::from_zero(unit, most) },
        series: series.collect(),
    }
}

/// Plots a figure over time.
fn over_time(figure: &Figure) -> Option<Lines> {
    let points = || figure.tracks.iter().flat_map(|track| &track.points);
    let long = points().map(|(at, _)| *at).fold(0.0, f64::max);
    if long <= 0.0 {
        return None;
    }
    let (label, each) = if long > MINUTES { ("minutes", 60.0) } else { ("seconds", 1.0) };
    let line = |(at, track): (usize, &Track)| Series {
        name: track.name.clone(),
        colour: colour(at),
        dashed: false,
        // Too many marks would hide the line.
        marked: track.points.len() <= 40,
        points: track.points.iter().map(|(at, value)| (at / each, *value)).collect(),
        spread: Vec::new(),
    };
    Some(Lines {
        title: format!("{}: {} over time", figure.scenario, name(figure)),
        x: Axis::from_zero(label, long / each),
        y: Axis::from_zero(&figure.unit, points().map(|(_, value)| *value).fold(0.0, f64::max)),
        series: figure.tracks.iter().enumerate().map(line).collect(),
    })
}

/// Plots the bytes of WAL per job.
fn bytes(scenario: &str, figures: &[&Figure]) -> Vec<Bars> {
    let row = |figure: &&Figure| {
        let beside = figure.beside.clone().unwrap_or_else(|| "the other side".to_owned());
        let (ours, baseline) = if figure.unit.starts_with("bytes") {
            (median(&figure.ours), (!figure.baseline.is_empty()).then(|| median(&figure.baseline)))
        } else {
            (figure.cost?.wal, figure.baseline_cost.map(|cost| cost.wal))
        };
        let baseline = baseline.filter(|baseline| *baseline > 0.0).map(|baseline| (baseline, beside));
        (ours > 0.0).then(|| Row { name: name(figure), ours, baseline })
    };
    let rows: Vec<Row> = figures.iter().filter_map(row).collect();
    let parts = rows.len().div_ceil(ROWS);
    let mut plots: Vec<Bars> = Vec::new();
    for (at, row) in rows.into_iter().enumerate() {
        if at % ROWS == 0 {
            let title = part_title(scenario, "bytes of WAL per job", at / ROWS, parts);
            plots.push(Bars { title, label: "bytes per job".to_owned(), rows: Vec::new() });
        }
        if let Some(plot) = plots.last_mut() {
            plot.rows.push(row);
        }
    }
    plots
}
