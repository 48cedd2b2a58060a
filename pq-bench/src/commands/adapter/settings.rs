//! Settings from environment variables.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// When jobs are put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProducerMode {
    /// At a rate.
    AtRate,
    /// When the harness requests a batch on standard input.
    OnRequest,
    /// Whenever fewer than this number of jobs are ready.
    ToDepth(u64),
}

#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) database_url: String,
    /// Number of this process in the run. Only the first one counts the jobs of all.
    pub(super) instance: u32,
    pub(super) producer_mode: ProducerMode,
    /// Jobs per second.
    pub(super) rate: f64,
    /// File with a rate that overrides `rate`.
    pub(super) rate_file: Option<PathBuf>,
    /// Whether this process puts jobs.
    pub(super) produces: bool,
    pub(super) batch: u64,
    pub(super) batch_every: Duration,
    pub(super) workers: usize,
    pub(super) queues: usize,
    pub(super) payload: usize,
    pub(super) random: bool,
    pub(super) work: Duration,
    pub(super) attempts: u32,
    pub(super) sample_every: Duration,
    /// File that must contain `open` before jobs are taken.
    pub(super) gate_file: Option<PathBuf>,
    pub(super) failure_file: Option<PathBuf>,
    pub(super) schedule_file: Option<PathBuf>,
}

impl Settings {
    pub(super) fn from_env() -> Result<Self> {
        Self::from_lookup(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    /// Reads the settings; an empty value counts as not set.
    pub(super) fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let value = |name: &str| lookup(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let one_of = |name: &str, choices: &[&'static str]| choice(name, value(name), choices);
        let path = |name: &str| value(name).map(PathBuf::from);
        let integer = |name: &str, default: u64, range| number(name, value(name), default, range);

        one_of("SCENARIO", &["long_horizon"])?;
        let mode = one_of("PRODUCER_MODE", &["fixed", "depth-target"])?;
        let pacing = one_of("PRODUCER_PACING", &["adapter", "harness"])?;
        let depth = integer("TARGET_DEPTH", 1_000, 0..=1_000_000_000)?;
        let instance = number("BENCH_INSTANCE_ID", value("BENCH_INSTANCE_ID"), 0, 0..=9_999)?;
        let only_first = integer("PRODUCER_ONLY_INSTANCE_ZERO", 0, 0..=1)? == 1;
        Ok(Self {
            database_url: value("DATABASE_URL")
                .context("DATABASE_URL is not set; set it to the database's URL")?,
            instance,
            producer_mode: match (mode, pacing) {
                ("depth-target", _) => ProducerMode::ToDepth(depth),
                (_, "harness") => ProducerMode::OnRequest,
                _ => ProducerMode::AtRate,
            },
            rate: number("PRODUCER_RATE", value("PRODUCER_RATE"), 800.0, 0.0..=10_000_000.0)?,
            rate_file: path("PRODUCER_RATE_CONTROL_FILE"),
            produces: instance == 0 || !only_first,
            batch: integer("PRODUCER_BATCH_MAX", 128, 1..=100_000)?,
            batch_every: Duration::from_millis(integer("PRODUCER_BATCH_MS", 25, 1..=60_000)?),
            workers: number("WORKER_COUNT", value("WORKER_COUNT"), 32, 1..=4_096)?,
            queues: number("BENCH_QUEUE_COUNT", value("BENCH_QUEUE_COUNT"), 1, 1..=100_000)?,
            payload: number("JOB_PAYLOAD_BYTES", value("JOB_PAYLOAD_BYTES"), 256, 0..=1 << 20)?,
            random: one_of("JOB_PAYLOAD_KIND", &["plain", "random"])? == "random",
            work: Duration::from_millis(integer("JOB_WORK_MS", 1, 0..=3_600_000)?),
            attempts: number("JOB_MAX_ATTEMPTS", value("JOB_MAX_ATTEMPTS"), 25, 1..=1_000_000)?,
            sample_every: Duration::from_secs(integer("SAMPLE_EVERY_S", 5, 1..=3_600)?),
            gate_file: path("CONSUMER_GATE_FILE"),
            failure_file: path("JOB_FAILURE_CONTROL_FILE"),
            schedule_file: path("SCHEDULE_CONTROL_FILE"),
        })
    }

    /// Returns whether this process counts the jobs of the whole run.
    pub(super) fn observes(&self) -> bool {
        self.instance == 0
    }
}

/// Returns the choice with this name, or the first one if there is no value.
fn choice(name: &str, value: Option<String>, choices: &[&'static str]) -> Result<&'static str> {
    let value = value.as_deref().unwrap_or(choices[0]);
    match choices.iter().find(|choice| **choice == value) {
        Some(choice) => Ok(choice),
        None => bail!("invalid {name} {value:?}; expected {}", choices.join(" or ")),
    }
}

fn number<N: FromStr + PartialOrd + Display + Copy>(
    name: &str,
    value: Option<String>,
    default: N,
    range: RangeInclusive<N>,
) -> Result<N> {
    let Some(value) = value else { return Ok(default) };
    match value.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => bail!("invalid {name} {value:?}: must be a number from {} to {}", range.start(), range.end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(all: &[(&str, &str)]) -> Result<Settings> {
        let url = ("DATABASE_URL", "postgres://server/pq_bench");
        let find = |name: &str| all.iter().chain([&url]).find(|(known, _)| *known == name);
        Settings::from_lookup(|name| find(name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn defaults_are_those_of_the_harness() -> Result<()> {
        let settings = read(&[("WORKER_COUNT", ""), ("PRODUCER_BATCH_MAX", " 7 ")])?;
        assert_eq!((settings.producer_mode, settings.rate, settings.batch), (ProducerMode::AtRate, 800.0, 7));
        assert_eq!((settings.workers, settings.payload, settings.work.as_millis()), (32, 256, 1));
        assert_eq!(settings.sample_every, Duration::from_secs(5));
        assert!(settings.observes() && settings.produces && !settings.random);
        Ok(())
    }

    #[test]
    fn a_target_depth_overrides_the_pacing_of_the_harness() -> Result<()> {
        let of =
            |mode| read(&[("PRODUCER_MODE", mode), ("PRODUCER_PACING", "harness"), ("TARGET_DEPTH", "5")]);
        assert_eq!(of("depth-target")?.producer_mode, ProducerMode::ToDepth(5));
        assert_eq!(of("fixed")?.producer_mode, ProducerMode::OnRequest);
        Ok(())
    }

    #[test]
    fn only_the_first_process_puts_if_configured() -> Result<()> {
        let second = [("BENCH_INSTANCE_ID", "1"), ("PRODUCER_ONLY_INSTANCE_ZERO", "1")];
        assert!(!read(&second)?.produces && !read(&second)?.observes());
        assert!(read(&second[..1])?.produces);
        Ok(())
    }

    #[test]
    fn errors_name_the_invalid_setting() {
        for (name, value) in [
            ("SCENARIO", "enqueue"),
            ("PRODUCER_MODE", "burst"),
            ("PRODUCER_PACING", "mine"),
            ("PRODUCER_RATE", "-1"),
            ("PRODUCER_RATE", "NaN"),
            ("PRODUCER_BATCH_MAX", "0"),
            ("WORKER_COUNT", "0"),
            ("WORKER_COUNT", "many"),
            ("SAMPLE_EVERY_S", "0.5"),
            ("JOB_PAYLOAD_KIND", "odd"),
            ("BENCH_INSTANCE_ID", "-1"),
        ] {
            let error = read(&[(name, value)]).map(drop).expect_err(name).to_string();
            assert!(error.contains(&format!("{name} {value:?}")), "{error}");
        }
        let error = Settings::from_lookup(|_| None).map(drop).expect_err("no database").to_string();
        assert!(error.starts_with("DATABASE_URL"), "{error}");
    }
}
