//! Several runs as one.

use std::collections::BTreeMap;

use pq_bench::{Figure, Results};

/// The figures of all runs, and where each came from.
pub(super) struct Merged {
    /// The runs without their figures, and the scenarios that they have figures of; in the order of the files.
    pub(super) runs: Vec<(Results, Vec<String>)>,
    /// In the order in which they were first met.
    pub(super) figures: Vec<Figure>,
}

impl Merged {
    /// Later runs replace what earlier ones measured as well.
    pub(super) fn of(runs: Vec<Results>) -> Self {
        let key = |figure: &Figure| {
            let Figure { scenario, name, parameters, beside, .. } = figure;
            (scenario.clone(), name.clone(), parameters.clone(), beside.clone())
        };
        let mut at: BTreeMap<_, usize> = BTreeMap::new();
        let mut figures: Vec<(usize, Figure)> = Vec::new();
        let mut abouts = Vec::new();
        for (run, mut results) in runs.into_iter().enumerate() {
            for figure in std::mem::take(&mut results.figures) {
                let next = figures.len();
                match *at.entry(key(&figure)).or_insert(next) {
                    known if known < next => figures[known] = (run, figure),
                    _ => figures.push((run, figure)),
                }
            }
            abouts.push(results);
        }
        let scenarios_of = |run: usize| {
            let mut scenarios: Vec<String> = Vec::new();
            for (_, figure) in figures.iter().filter(|(of, _)| *of == run) {
                if !scenarios.contains(&figure.scenario) {
                    scenarios.push(figure.scenario.clone());
                }
            }
            scenarios
        };
        let runs = abouts.into_iter().enumerate().map(|(run, about)| (about, scenarios_of(run)));
        // Of a run that was replaced altogether nothing needs telling.
        let runs = runs.filter(|(_, scenarios)| !scenarios.is_empty()).collect();
        Self { runs, figures: figures.into_iter().map(|(_, figure)| figure).collect() }
    }

    /// The scenarios, in the order in which they were first met.
    pub(super) fn scenarios(&self) -> Vec<&str> {
        let mut scenarios: Vec<&str> = Vec::new();
        for figure in &self.figures {
            if !scenarios.contains(&figure.scenario.as_str()) {
                scenarios.push(&figure.scenario);
            }
        }
        scenarios
    }

    /// The figures of a scenario.
    pub(super) fn of_scenario<'a>(&'a self, scenario: &'a str) -> impl Iterator<Item = &'a Figure> {
        self.figures.iter().filter(move |figure| figure.scenario == scenario)
    }
}
