//! What is measured, a file a scenario.

mod bulk;
mod comparison;
mod deep;
mod drain;
mod get;
mod horizon;
mod keys;
mod memory;
mod notify;
mod pairs;
mod payload;
mod put;
mod scaling;
mod wake;
mod working;

use anyhow::{Result, bail};

pub use self::memory::{DATABASE, Sample, put_and_work};
use crate::{Bench, Figure};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How many rounds each figure is the median of.
    pub rounds: usize,
    /// What is measured by time is shortened to this part of it.
    pub scale: f64,
    /// How many seconds are measured with a horizon that does not move, before they are scaled.
    pub horizon: f64,
}

impl Plan {
    /// So long, scaled.
    #[must_use]
    pub fn time(&self, seconds: f64) -> std::time::Duration {
        std::time::Duration::from_secs_f64((seconds * self.scale).max(0.1))
    }

    /// So many jobs, scaled.
    #[must_use]
    pub fn jobs(&self, jobs: usize) -> usize {
        ((jobs as f64 * self.scale) as usize).max(1_000)
    }

    /// About so many jobs, scaled: the same number of whole batches for each of sixteen clients, or of fewer by powers
    /// of two.
    #[must_use]
    pub fn batches(&self, jobs: usize, batch: usize) -> usize {
        (self.jobs(jobs) / (16 * batch)).max(1) * 16 * batch
    }
}

/// Something that can be measured by name.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it measures, in a line.
    pub about: &'static str,
    /// Measures it.
    pub run: fn(&Bench, &Plan) -> Result<Vec<Figure>>,
}

/// All scenarios, in the order in which they are measured.
pub const ALL: &[Scenario] = &[
    put::SCENARIO,
    bulk::SCENARIO,
    get::SCENARIO,
    pairs::SCENARIO,
    scaling::SCENARIO,
    payload::SCENARIO,
    drain::SCENARIO,
    wake::SCENARIO,
    deep::SCENARIO,
    keys::SCENARIO,
    notify::SCENARIO,
    horizon::SCENARIO,
    memory::SCENARIO,
];

/// The scenarios of these names; all where none is given.
///
/// # Errors
///
/// Where there is none of a name.
pub fn named(names: &[String]) -> Result<Vec<Scenario>> {
    if names.is_empty() {
        return Ok(ALL.to_vec());
    }
    let find = |name: &String| match ALL.iter().find(|scenario| scenario.name == name) {
        Some(scenario) => Ok(*scenario),
        None => {
            let known: Vec<_> = ALL.iter().map(|scenario| scenario.name).collect();
            bail!("there is no scenario {name:?}; there are {}", known.join(", "))
        }
    };
    names.iter().map(find).collect()
}
