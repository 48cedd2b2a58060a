//! Several runs as one.

use std::collections::BTreeMap;

use pq_bench::{Figure, Results, scenarios};

/// The runs, each with those of its figures that no later one has measured again, and without those that have none, in
/// the order in which their scenarios are measured.
pub(super) struct Merged {
    pub(super) runs: Vec<Results>,
}

impl Merged {
    /// Later runs replace what earlier ones measured as well.
    pub(super) fn of(mut runs: Vec<Results>) -> Self {
        let key = |figure: &Figure| {
            let Figure { scenario, name, parameters, beside, .. } = figure;
            (scenario.clone(), name.clone(), parameters.clone(), beside.clone())
        };
        let figures =
            runs.iter().enumerate().flat_map(|(at, run)| run.figures.iter().map(move |of| (at, of)));
        let last: BTreeMap<_, usize> = figures.map(|(at, figure)| (key(figure), at)).collect();
        for (at, run) in runs.iter_mut().enumerate() {
            run.figures.retain(|figure| last.get(&key(figure)) == Some(&at));
        }
        runs.retain(|run| !run.figures.is_empty());
        // So that a scenario that is measured again stays where it was on the page.
        runs.sort_by_key(|run| run.figures.iter().map(|figure| place(&figure.scenario)).min());
        Self { runs }
    }

    /// In the order in which the scenarios are measured, and of those that are not known now in the order of the runs.
    pub(super) fn figures(&self) -> Vec<&Figure> {
        let mut figures: Vec<&Figure> = self.runs.iter().flat_map(|run| &run.figures).collect();
        figures.sort_by_key(|figure| place(&figure.scenario));
        figures
    }

    /// The scenarios, in the same order.
    pub(super) fn scenarios(&self) -> Vec<&str> {
        scenarios_of(self.figures())
    }

    /// The figures of a scenario.
    pub(super) fn of_scenario(&self, scenario: &str) -> impl Iterator<Item = &Figure> {
        self.runs.iter().flat_map(|run| &run.figures).filter(move |figure| figure.scenario == scenario)
    }
}

/// Where a scenario comes in the order in which they are measured; one that is not known now comes last.
fn place(scenario: &str) -> usize {
    scenarios::ALL.iter().position(|known| known.name == scenario).unwrap_or(usize::MAX)
}

/// Which scenarios figures are of, each once.
pub(super) fn scenarios_of<'f>(figures: impl IntoIterator<Item = &'f Figure>) -> Vec<&'f str> {
    let mut scenarios: Vec<&str> = Vec::new();
    for figure in figures {
        if !scenarios.contains(&figure.scenario.as_str()) {
            scenarios.push(&figure.scenario);
        }
    }
    scenarios
}
