//! How much memory a process needs that puts and works very many jobs.

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

/// The memory of a process of its own.
pub(super) const SCENARIO: Scenario =
    Scenario { name: "memory", about: "the memory of a process that puts and works a million jobs", run };

/// The variable of the environment that names the database to [`put_and_work`]'s process.
pub const DATABASE: &str = "PQ_BENCH_URL";

const QUEUE: &str = "memory";
const BATCH: usize = 1_000;
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);

/// The memory of a process at one time, in megabytes.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Sample {
    /// Seconds since it began.
    pub at: f64,
    /// What it has now.
    pub now: f64,
    /// The most that it had at once until now.
    pub peak: f64,
}

/// Measures this program itself, started once more.
fn run(bench: &Bench, plan: &Plan) -> Result<Vec<Figure>> {
    let jobs = plan.jobs(1_000_000) / BATCH * BATCH;
    let parameters = || [("jobs", jobs.to_string()), ("handlers", "leased, 4 threads".to_owned())];
    let mut peak = figure(SCENARIO.name, "peak memory of a process, put to done", "MB", parameters());
    let mut flat = figure(SCENARIO.name, "memory in the last quarter", "MB", parameters());
    for round in 1..=plan.rounds {
        bench.refill(&bench.queue(QUEUE)?, 0)?;
        let samples = child(bench, jobs)?;
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

fn child(bench: &Bench, jobs: usize) -> Result<Vec<Sample>> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["memory-child", "--jobs", &jobs.to_string()])
        .env(DATABASE, bench.url())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().context("the child has no output")?;
    let samples = BufReader::new(output)
        .lines()
        .map(|line| Ok(serde_json::from_str(&line?)?))
        .collect::<Result<Vec<Sample>>>();
    let ended = child.wait()?;
    ensure!(ended.success(), "the process that is measured failed: {ended}");
    let samples = samples?;
    ensure!(samples.len() >= 4, "the process that is measured told {} times of its memory", samples.len());
    Ok(samples)
}

/// Puts so many jobs and works them meanwhile, and tells of this process's memory until it ends.
///
/// # Errors
///
/// The database's, those of `tell`, and where the system does not know the memory.
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
                    // Nobody else would end the worker.
                    control.stop(pq_diesel::StopMode::Drain);
                }
                put?;
                left -= now;
            }
            Ok(())
        });
        let sampling = scope.spawn(|| -> Result<()> {
            while !stopped.load(Ordering::SeqCst) {
                record()?;
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
