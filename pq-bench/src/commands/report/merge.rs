//! Merges several runs.

use std::collections::BTreeMap;

use pq_bench::{Figure, Results, scenarios};

/// Runs in the order of their scenarios. Each keeps the figures that no later run has measured again, and runs
/// without figures are dropped.
pub(super) struct Merged {
    pub(super) runs: Vec<Results>,
}

impl Merged {
    /// Merges runs; later runs replace figures of earlier ones.
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
        // A scenario that is measured again keeps its position on the page.
        runs.sort_by_key(|run| run.figures.iter().map(|figure| place(&figure.scenario)).min());
        Self { runs }
    }

    /// Returns the figures in the order of the scenarios; unknown scenarios come last.
    pub(super) fn figures(&self) -> Vec<&Figure> {
        let mut figures: Vec<&Figure> = self.runs.iter().flat_map(|run| &run.figures).collect();
        figures.sort_by_key(|figure| place(&figure.scenario));
        figures
    }

    /// Returns the scenarios in the same order.
    pub(super) fn scenarios(&self) -> Vec<&str> {
        scenarios_of(self.figures())
    }

    /// Returns the figures of a scenario.
    pub(super) fn of_scenario(&self, scenario: &str) -> impl Iterator<Item = &Figure> {
        self.runs.iter().flat_map(|run| &run.figures).filter(move |figure| figure.scenario == scenario)
    }
}

/// Returns the position of a scenario; unknown scenarios come last.
fn place(scenario: &str) -> usize {
    scenarios::ALL.iter().position(|known| known.name == scenario).unwrap_or(usize::MAX)
}

/// Returns the scenarios of the figures, each once.
pub(super) fn scenarios_of<'f>(figures: impl IntoIterator<Item = &'f Figure>) -> Vec<&'f str> {
    let mut scenarios: Vec<&str> = Vec::new();
    for figure in figures {
        if !scenarios.contains(&figure.scenario.as_str()) {
            scenarios.push(&figure.scenario);
        }
    }
    scenarios
}
