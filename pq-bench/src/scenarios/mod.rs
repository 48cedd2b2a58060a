//! The scenarios, one module each.

mod answer;
mod asynchronous;
mod bulk;
mod comparison;
mod dashboard;
mod deep;
mod drain;
mod follow_ups;
mod get;
mod horizon;
mod keys;
mod limits;
mod memory;
mod notify;
mod observed;
mod pairs;
mod payload;
mod put;
mod scaling;
mod steps;
mod wake;
mod working;

use anyhow::{Result, bail};

pub use self::asynchronous::nap;
pub use self::memory::{DATABASE, Sample, put_and_work};
pub(crate) use self::steps::{create_bookings, handler as stepping};
use crate::{Bench, Figure};

/// The amount of work to measure.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Number of rounds per figure.
    pub rounds: usize,
    /// Factor by which times and numbers of jobs are shortened.
    pub scale: f64,
    /// Seconds of each run of the scenario `horizon`, before scaling.
    pub horizon: f64,
}

impl Plan {
    /// Returns the scaled time.
    #[must_use]
    pub fn time(&self, seconds: f64) -> std::time::Duration {
        std::time::Duration::from_secs_f64((seconds * self.scale).max(0.1))
    }

    /// Returns the scaled number of jobs.
    #[must_use]
    pub fn jobs(&self, jobs: usize) -> usize {
        ((jobs as f64 * self.scale) as usize).max(1_000)
    }

    /// Returns a scaled number of jobs that is the same number of whole batches for 1, 2, 4, 8 or 16 clients.
    #[must_use]
    pub fn batches(&self, jobs: usize, batch: usize) -> usize {
        (self.jobs(jobs) / (16 * batch)).max(1) * 16 * batch
    }
}

/// A named set of measurements.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// The name.
    pub name: &'static str,
    /// What it measures, in one line.
    pub about: &'static str,
    /// Measures the figures.
    pub run: fn(&Bench, &Plan) -> Result<Vec<Figure>>,
}

/// All scenarios in the order in which they are measured.
pub const ALL: &[Scenario] = &[
    put::SCENARIO,
    bulk::SCENARIO,
    get::SCENARIO,
    pairs::SCENARIO,
    scaling::SCENARIO,
    payload::SCENARIO,
    drain::SCENARIO,
    observed::SCENARIO,
    wake::SCENARIO,
    answer::SCENARIO,
    deep::SCENARIO,
    keys::SCENARIO,
    notify::SCENARIO,
    horizon::SCENARIO,
    memory::SCENARIO,
    asynchronous::SCENARIO,
    limits::SCENARIO,
    follow_ups::SCENARIO,
    steps::SCENARIO,
    dashboard::SCENARIO,
];

/// Returns the scenarios of these names, or all if there are no names.
///
/// # Errors
///
/// If a name is unknown.
pub fn named(names: &[String]) -> Result<Vec<Scenario>> {
    if names.is_empty() {
        return Ok(ALL.to_vec());
    }
    let find = |name: &String| match ALL.iter().find(|scenario| scenario.name == name) {
        Some(scenario) => Ok(*scenario),
        None => {
            let known: Vec<_> = ALL.iter().map(|scenario| scenario.name).collect();
            bail!("unknown scenario {name:?}; expected {}", known.join(", "))
        }
    };
    names.iter().map(find).collect()
}
