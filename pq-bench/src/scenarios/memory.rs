//! The memory of a process that puts and works many jobs.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pq_diesel::{Pq, Worker};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::working::{Kind, figure};
use super::{Plan, Scenario};
use crate::{Bench, Figure, PAYLOAD, Target, Track, median, memory_now, peak_memory};

/// The memory of a child process.
pub(super) const SCENARIO: Scenario =
    Scenario { name: "memory", about: "the memory of a process that puts and works a million jobs", run };

/// Environment variable with the database's URL for the process of [`put_and_work`].
pub const DATABASE: &str = "PQ_BENCH_URL";

const QUEUE: &str = "memory";
const BATCH: usize = 1_000;
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);

/// Minimum number of samples, one per quarter of a run. A fast machine works a few jobs between two samples.
const MIN_SAMPLES: usize = 4;

/// The memory of a process at one time, in megabytes.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Sample {
    /// Seconds since the start.
    pub at: f64,
    /// Current memory.
    pub now: f64,
    /// Peak memory so far.
    pub peak: f64,
}

/// Runs this program as a child process and samples its memory.
fn run(bench: &Bench, plan: &Plan) -> Result<Vec<Figure>> {
    let jobs = plan.jobs(1_000_000) / BATCH * BATCH;
    let parameters = || [("jobs", jobs.to_string()), ("handlers", "leased, 4 threads".to_owned())];
    let mut peak = figure(SCENARIO.name, "peak memory of a process, put to done", "MB", parameters());
    let mut flat = figure(SCENARIO.name, "memory in the last quarter", "MB", parameters());
    for round in 1..=plan.rounds {
        bench.refill(&bench.queue(QUEUE)?, 0)?;
        let samples = child(bench, &["--jobs", &jobs.to_string()])?;
        ensure!(samples.len() >= MIN_SAMPLES, "the measured process reported only {} samples", samples.len());
        let quarter = |number: usize| -> f64 {
            let part = &samples[samples.len() * number / 4..samples.len() * (number + 1) / 4];
            median(&part.iter().map(|sample| sample.now).collect::<Vec<_>>())
        };
        peak.ours.push(samples.last().map_or(0.0, |sample| sample.peak));
        flat.ours.push(quarter(3));
        flat.baseline.push(quarter(1));
        let points = samples.iter().map(|sample| (sample.at, sample.now)).collect();
        peak.tracks.push(Track { name: format!("round {round}"), points });
    }
    peak.target = Some(Target::AtMost(40.0));
    flat.beside = Some("its own second quarter".to_owned());
    flat.target = Some(Target::RatioAtMost(1.1));
    Ok(vec![peak, flat])
}

/// Runs `pq-bench memory-child` with these arguments and returns what it reported.
pub(super) fn child(bench: &Bench, arguments: &[&str]) -> Result<Vec<Sample>> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("memory-child")
        .args(arguments)
        .env(DATABASE, bench.url())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().context("the child has no output")?;
    let samples = BufReader::new(output)
        .lines()
        .map(|line| Ok(serde_json::from_str(&line?)?))
        .collect::<Result<Vec<Sample>>>();
    let ended = child.wait()?;
    ensure!(ended.success(), "the measured process failed: {ended}");
    samples
}

/// Puts jobs and works them at the same time, and reports this process's memory until all are done.
///
/// # Errors
///
/// Database errors, errors of `report_sample`, and if the memory cannot be read.
pub fn put_and_work(
    url: &str,
    jobs: u64,
    mut report_sample: impl FnMut(&Sample) -> Result<()> + Send,
) -> Result<()> {
    let pq = Pq::connect(url)?;
    let queue = pq.queue::<Box<RawValue>>(QUEUE)?;
    let payload = RawValue::from_string(PAYLOAD.to_owned())?;
    let worker = Worker::new(&pq).threads(4).serve(Kind::Leased.idle(&queue));
    let control = worker.control();
    let (begun, stopped) = (Instant::now(), AtomicBool::new(false));
    let mut record = || -> Result<()> {
        report_sample(&Sample { at: begun.elapsed().as_secs_f64(), now: memory_now()?, peak: peak_memory()? })
    };
    std::thread::scope(|scope| {
        let putting = scope.spawn(|| -> Result<()> {
            let mut left = jobs;
            while left > 0 {
                let now = left.min(BATCH as u64);
                let put = queue.put_many(std::iter::repeat_n(&payload, now as usize));
                if put.is_err() {
                    // The worker waits for jobs that will not come, so it is stopped.
                    control.stop(pq_diesel::StopMode::Drain);
                }
                put?;
                left -= now;
            }
            Ok(())
        });
        let sampling = scope.spawn(|| -> Result<()> {
            let mut samples = 0;
            while !stopped.load(Ordering::SeqCst) || samples < MIN_SAMPLES {
                record()?;
                samples += 1;
                std::thread::sleep(SAMPLE_INTERVAL);
            }
            record()
        });
        let report = worker.run_jobs(jobs);
        stopped.store(true, Ordering::SeqCst);
        putting.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
        sampling.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
        let report = report?;
        ensure!(report.done == jobs, "{report:?}");
        Ok(())
    })
}
