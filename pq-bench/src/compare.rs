//! Compares the runs of two revisions that ran in turns.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};

use crate::{Cost, Figure, Results, median};

/// One figure of both revisions.
#[derive(Clone, Debug, PartialEq)]
pub struct FigureChange {
    /// Scenario, name and parameters.
    pub what: String,
    /// Unit of the values.
    pub unit: String,
    /// Values of the base, one per round.
    pub base: Vec<f64>,
    /// Values of the other revision, one per round.
    pub with: Vec<f64>,
}

/// Whether a figure changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Better in each round.
    Better,
    /// Worse in each round.
    Worse,
    /// The rounds differ in direction, or nothing changed.
    Inconclusive,
}

/// Compares each run of a base with the run of another revision beside it.
///
/// Figures that only one of them measured are left out.
#[must_use]
pub fn compare(base: &[Results], with: &[Results]) -> Vec<FigureChange> {
    let (base, with) = (series(base), series(with));
    let named = |key: &Key| with.iter().find(|(other, _)| other == key).map(|(_, figures)| figures.clone());
    base.into_iter()
        .filter_map(|(key, base)| {
            let with = named(&key)?;
            let parameters: Vec<String> =
                key.parameters.iter().map(|(name, value)| format!("{name} {value}")).collect();
            let with_what =
                if parameters.is_empty() { String::new() } else { format!(" ({})", parameters.join(", ")) };
            let what = format!("{}: {}{with_what}", key.scenario, key.name);
            Some(FigureChange { what, unit: key.unit, base, with })
        })
        .collect()
}

/// The parts that identify a figure in several runs.
#[derive(Clone, PartialEq)]
struct Key {
    scenario: String,
    name: String,
    parameters: BTreeMap<String, String>,
    unit: String,
}

/// Returns the costs that are compared besides the figure itself.
fn costs(cost: &Cost) -> [(&'static str, f64); 4] {
    [
        ("trips/job", cost.trips),
        ("commits/job", cost.commits),
        ("WAL bytes/job", cost.wal),
        ("client µs/job", cost.client_cpu),
    ]
}

/// Returns the values of each figure, one per run, in the order of measurement.
fn series(runs: &[Results]) -> Vec<(Key, Vec<f64>)> {
    let mut all: Vec<(Key, Vec<f64>)> = Vec::new();
    let mut add = |figure: &Figure, unit: &str, value: f64| {
        let key = Key {
            scenario: figure.scenario.clone(),
            name: figure.name.clone(),
            parameters: figure.parameters.clone(),
            unit: unit.to_owned(),
        };
        match all.iter_mut().find(|(had, _)| *had == key) {
            Some((_, values)) => values.push(value),
            None => all.push((key, vec![value])),
        }
    };
    for figure in runs.iter().flat_map(|run| &run.figures) {
        add(figure, &figure.unit, median(&figure.ours));
        for (unit, value) in figure.cost.iter().flat_map(costs) {
            add(figure, unit, value);
        }
    }
    all
}

impl FigureChange {
    /// Returns the ratios of the rounds, other revision to base, in ascending order.
    ///
    /// Rounds in which the base is 0 are left out.
    #[must_use]
    pub fn ratios(&self) -> Vec<f64> {
        let pairs = self.base.iter().zip(&self.with).filter(|(base, _)| **base != 0.0);
        let mut ratios: Vec<f64> = pairs.map(|(base, with)| with / base).collect();
        ratios.sort_by(f64::total_cmp);
        ratios
    }

    /// Returns the direction of the change. More is better for rates per second, less for all other units.
    #[must_use]
    pub fn change(&self) -> Change {
        let ratios = self.ratios();
        let (Some(least), Some(most)) = (ratios.first(), ratios.last()) else { return Change::Inconclusive };
        let more_is_better = self.unit.ends_with("/s");
        if *least > 1.0 {
            if more_is_better { Change::Better } else { Change::Worse }
        } else if *most < 1.0 {
            if more_is_better { Change::Worse } else { Change::Better }
        } else {
            Change::Inconclusive
        }
    }

    /// Formats them as a table.
    #[must_use]
    pub fn table(compared: &[Self]) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header(["figure", "unit", "base", "with", "ratio", "from .. to", "change"]);
        for figure in compared {
            let ratios = figure.ratios();
            let (ratio, spread) = match (ratios.first(), ratios.last()) {
                (Some(least), Some(most)) => {
                    (format!("{:.3}", median(&ratios)), format!("{least:.3} .. {most:.3}"))
                }
                _ => ("-".to_owned(), "-".to_owned()),
            };
            table.add_row([
                figure.what.clone(),
                figure.unit.clone(),
                format_value(median(&figure.base)),
                format_value(median(&figure.with)),
                ratio,
                spread,
                figure.change().to_string(),
            ]);
        }
        for column in 2..=5 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }
}

fn format_value(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.4}") }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Better => "better in every round",
            Self::Worse => "worse in every round",
            Self::Inconclusive => "no change shown",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(unit: &str, threads: &str, ours: &[f64]) -> Results {
        let figure = Figure {
            scenario: "put".to_owned(),
            name: "put".to_owned(),
            parameters: [("threads".to_owned(), threads.to_owned())].into(),
            unit: unit.to_owned(),
            ours: ours.to_vec(),
            ..Figure::default()
        };
        Results { figures: vec![figure], ..Results::default() }
    }

    fn runs(unit: &str, rounds: &[f64]) -> Vec<Results> {
        rounds.iter().map(|ours| run(unit, "1", &[*ours])).collect()
    }

    #[test]
    fn each_round_is_compared_with_the_round_beside_it() {
        // The machine became twice as slow in the second round, for both.
        let compared = compare(&runs("jobs/s", &[1_000.0, 500.0]), &runs("jobs/s", &[1_100.0, 550.0]));
        assert_eq!(compared.len(), 1);
        assert_eq!(compared[0].what, "put: put (threads 1)");
        assert!(compared[0].ratios().iter().all(|ratio| (ratio - 1.1).abs() < 1e-9));
        assert_eq!(compared[0].change(), Change::Better);
    }

    #[test]
    fn a_change_must_appear_in_each_round() {
        let change =
            |unit, base: &[f64], with: &[f64]| compare(&runs(unit, base), &runs(unit, with))[0].change();
        assert_eq!(change("jobs/s", &[10.0, 10.0, 10.0], &[12.0, 12.0, 9.0]), Change::Inconclusive);
        assert_eq!(change("jobs/s", &[10.0, 10.0], &[9.0, 8.0]), Change::Worse);
        assert_eq!(change("ms", &[10.0, 10.0], &[9.0, 8.0]), Change::Better);
        assert_eq!(change("bytes/job", &[10.0, 10.0], &[11.0, 12.0]), Change::Worse);
        assert_eq!(change("bytes/job", &[10.0, 10.0], &[10.0, 10.0]), Change::Inconclusive);
        assert_eq!(change("commits/job", &[0.0], &[0.0]), Change::Inconclusive);
    }

    #[test]
    fn costs_are_compared_and_unmatched_figures_are_left_out() {
        let cost = Cost { wal: 300.0, ..Cost::default() };
        let mut base = run("jobs/s", "1", &[1.0]);
        base.figures[0].cost = Some(cost);
        base.figures.extend(run("jobs/s", "4", &[1.0]).figures);
        let mut with = run("jobs/s", "1", &[2.0, 3.0, 4.0]);
        with.figures[0].cost = Some(Cost { wal: 150.0, ..cost });
        let compared = compare(&[base], &[with]);
        let units: Vec<&str> = compared.iter().map(|figure| figure.unit.as_str()).collect();
        assert_eq!(units, ["jobs/s", "trips/job", "commits/job", "WAL bytes/job", "client µs/job"]);
        assert_eq!((compared[0].ratios(), compared[3].ratios()), (vec![3.0], vec![0.5]));
        assert_eq!(compared[3].change(), Change::Better);
        assert!(FigureChange::table(&compared).to_string().contains("better in every round"));
    }
}
