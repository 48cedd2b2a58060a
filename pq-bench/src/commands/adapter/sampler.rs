//! Writes samples of the figures at fixed times.

use std::collections::HashMap;
use std::io::Write;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};

use super::Run;
use super::figures::{Percentiles, Window};
use super::lines::{Lines, Metric};

pub(super) struct Sampler<'r, W> {
    run: &'r Run,
    lines: Lines<W>,
    /// Time of the last sample, in milliseconds since the epoch.
    last: i64,
    counted: HashMap<&'static str, u64>,
}

impl<'r, W: Write> Sampler<'r, W> {
    pub(super) fn new(run: &'r Run, lines: Lines<W>) -> Self {
        Self { run, lines, last: now(), counted: HashMap::new() }
    }

    /// Samples at each multiple of the interval by the wall clock, until shutdown.
    ///
    /// If the process was suspended, the window of the next sample is longer.
    pub(super) fn run(&mut self) -> Result<()> {
        let interval = i64::try_from(self.run.settings.sample_every.as_millis())?;
        loop {
            let due = now() / interval * interval + interval;
            let left = u64::try_from(due - now()).unwrap_or_default();
            if self.run.shutdown.sleep(Duration::from_millis(left)) {
                return Ok(());
            }
            // The wall clock and the monotonic clock differ, and the wall clock may have been set.
            let at = now() / interval * interval;
            if at >= due && at > self.last {
                self.sample(at)?;
            }
        }
    }

    /// Samples what happened since the last sample.
    pub(super) fn rest(&mut self) -> Result<()> {
        self.sample(now().max(self.last + 1))
    }

    fn sample(&mut self, at: i64) -> Result<()> {
        let window = (at - self.last) as f64 / 1_000.0;
        self.last = at;
        let metrics = self.metrics(window)?;
        self.lines
            .sample(DateTime::<Utc>::from_timestamp_millis(at).context("the time is out of range")?, &metrics)
    }

    fn metrics(&mut self, window: f64) -> Result<Vec<Metric>> {
        let run = self.run;
        let figures = &run.figures;
        let mut all = Vec::new();
        percentiles(
            &mut all,
            ["producer_call_p50_ms", "producer_call_p95_ms", "producer_call_p99_ms"],
            &figures.call,
        )?;
        percentiles(&mut all, ["producer_p50_ms", "producer_p95_ms", "producer_p99_ms"], &figures.producer)?;
        let claims = percentiles(&mut all, ["claim_p50_ms", "claim_p95_ms", "claim_p99_ms"], &figures.claim)?;
        let length = figures.claim.length.as_secs_f64();
        // The harness has two names for this latency.
        push(&mut all, ["subscriber_p50_ms", "subscriber_p95_ms", "subscriber_p99_ms"], &claims, length);
        percentiles(
            &mut all,
            ["end_to_end_p50_ms", "end_to_end_p95_ms", "end_to_end_p99_ms"],
            &figures.end_to_end,
        )?;
        all.push(self.rate("enqueue_rate", figures.put.get(), window));
        all.push(self.rate("completion_rate", figures.completed.get(), window));
        if run.settings.observes() {
            let depth = figures.depth();
            let backlog = depth.ready + depth.running + depth.scheduled;
            all.extend([
                ("queue_depth", depth.ready as f64, 0.0),
                ("running_depth", depth.running as f64, 0.0),
                ("scheduled_depth", depth.scheduled as f64, 0.0),
                ("total_backlog", backlog as f64, 0.0),
                ("producer_target_rate", figures.target(), 0.0),
            ]);
        }
        if run.settings.failure_file.is_some() {
            all.push(self.rate("injected_failure_rate", figures.failed.get(), window));
            all.push(self.rate("retried_completion_rate", figures.retried.get(), window));
            all.push(self.rate("poison_exhausted_rate", figures.exhausted.get(), window));
        }
        self.load_group(&mut all, window);
        Ok(all)
    }

    /// Adds the metrics of the load group, if there is one.
    fn load_group(&mut self, all: &mut Vec<Metric>, window: f64) {
        let load_group = &self.run.figures.load_group;
        let (put, begun) = (load_group.put.get(), load_group.begun.get());
        if self.run.settings.schedule_file.is_none() || put + begun == 0 {
            return;
        }
        all.push(self.rate("scheduled_completion_rate", load_group.completed.get(), window));
        if begun > 0 {
            let late =
                Percentiles(load_group.lateness.lock().unwrap_or_else(PoisonError::into_inner).clone());
            push(
                all,
                ["schedule_lateness_p50_ms", "schedule_lateness_p95_ms", "schedule_lateness_p99_ms"],
                &late,
                0.0,
            );
            all.push(("schedule_lateness_max_ms", late.at(1.0), 0.0));
        }
        all.extend([
            ("schedule_started_total", begun as f64, 0.0),
            ("schedule_enqueued_total", put as f64, 0.0),
            ("schedule_early_total", load_group.early.get() as f64, 0.0),
        ]);
        let took = *load_group.took.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(took.map(|took| ("schedule_preload_s", took.as_secs_f64(), 0.0)));
    }

    /// Returns the growth of a counter per second since the last sample.
    fn rate(&mut self, name: &'static str, count: u64, window: f64) -> Metric {
        let before = self.counted.insert(name, count).unwrap_or_default();
        (name, (count - before) as f64 / window, window)
    }
}

fn percentiles(all: &mut Vec<Metric>, names: [&'static str; 3], of: &Window) -> Result<Percentiles> {
    let latencies = of.rotate()?;
    push(all, names, &latencies, of.length.as_secs_f64());
    Ok(latencies)
}

fn push(all: &mut Vec<Metric>, names: [&'static str; 3], latencies: &Percentiles, length: f64) {
    let at = [0.5, 0.95, 0.99].map(|quantile| latencies.at(quantile));
    all.extend(names.into_iter().zip(at).map(|(name, value)| (name, value, length)));
}

fn now() -> i64 {
    Utc::now().timestamp_millis()
}
