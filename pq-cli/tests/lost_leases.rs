//! `pq work` whose processes are killed and stopped: no job is dead whose command did not fail.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use common::{Outcome, Work, json, migrated, on, put, signal, wait_for, wait_until};
use pq_testing::Database;
use rustix::process::Signal;

const JOBS: usize = 300;

/// Commands that append the job's number to a file.
struct Trace {
    folder: tempfile::TempDir,
}

impl Trace {
    fn new() -> Result<Self, std::io::Error> {
        Ok(Self { folder: tempfile::tempdir()? })
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("trace")
    }

    fn command(&self) -> String {
        format!("read x; echo $x >> '{}'", self.path().display())
    }

    /// Waits until commands have run this number of times.
    fn wait_for_runs(&self, runs: usize) -> Outcome {
        wait_for("commands run", || Ok(self.runs().values().sum::<usize>() >= runs))
    }

    /// Returns how often the command of each job ran.
    fn runs(&self) -> BTreeMap<usize, usize> {
        let mut runs = BTreeMap::new();
        let text = fs::read_to_string(self.path()).unwrap_or_default();
        for job in text.lines().filter_map(|line| line.parse().ok()) {
            *runs.entry(job).or_default() += 1;
        }
        runs
    }
}

fn put_numbers(database: &Database) -> Outcome {
    put(database, "mail", &(0..JOBS).map(|n| n.to_string()).collect::<Vec<_>>().join("\n"))
}

fn work(database: &Database, command: &str, lease: &str) -> Result<Work, Box<dyn std::error::Error>> {
    let words = ["work", "mail", "--exec", command, "--lease", lease, "--max-crashes", "2"];
    Work::start(on(database, &words))
}

/// Waits until no job waits or runs.
fn wait_for_end(database: &Database) -> Outcome {
    wait_until(
        database,
        "SELECT (NOT EXISTS (SELECT FROM pq.queue) AND NOT EXISTS (SELECT FROM pq.queue_leases))::int::bigint",
    )
}

fn dead(database: &Database) -> Result<Vec<serde_json::Value>, Box<dyn std::error::Error>> {
    Ok(json(database, &["jobs", "mail", "--state", "dead", "--json"])?
        .as_array()
        .cloned()
        .unwrap_or_default())
}

#[test]
fn a_killed_worker_leaves_no_job_dead() -> Outcome {
    let (database, trace) = (migrated()?, Trace::new()?);
    put_numbers(&database)?;
    for runs in [20, 60, 100] {
        let mut killed = work(&database, &trace.command(), "1s")?;
        trace.wait_for_runs(runs)?;
        killed.child.kill()?;
        killed.child.wait()?;
    }
    let _worker = work(&database, &trace.command(), "1s")?;
    wait_for_end(&database)?;
    assert_eq!(dead(&database)?, Vec::<serde_json::Value>::new());
    assert_eq!(trace.runs().len(), JOBS, "each job ran");
    Ok(())
}

#[test]
fn a_worker_that_is_stopped_past_its_lease_leaves_no_job_dead() -> Outcome {
    let (database, trace) = (migrated()?, Trace::new()?);
    put_numbers(&database)?;
    let stopped = work(&database, &trace.command(), "1s")?;
    trace.wait_for_runs(20)?;
    signal(&stopped.child, Signal::STOP)?;
    let _worker = work(&database, &trace.command(), "1s")?;
    wait_for_end(&database)?;
    signal(&stopped.child, Signal::CONT)?;
    signal(&stopped.child, Signal::TERM)?;
    assert_eq!(stopped.end()?.0, 0);
    wait_for_end(&database)?;
    assert_eq!(dead(&database)?, Vec::<serde_json::Value>::new());
    assert_eq!(trace.runs().len(), JOBS, "each job ran");
    Ok(())
}

#[test]
fn a_command_that_kills_its_worker_is_dead_at_last_and_the_others_complete() -> Outcome {
    const KILLER: usize = 50;
    let (database, trace) = (migrated()?, Trace::new()?);
    put_numbers(&database)?;
    let command = format!("{}; if [ $x = {KILLER} ]; then kill -9 $PPID; fi", trace.command());
    let mut deaths = 0;
    loop {
        let mut worker = work(&database, &command, "1s")?;
        let mut ended = false;
        wait_for("the worker or the queue ends", || {
            ended = worker.child.try_wait()?.is_some();
            Ok(ended
                || json(&database, &["jobs", "mail", "--state", "dead", "--json"])? != serde_json::json!([]))
        })?;
        if !ended {
            wait_for_end(&database)?;
            break;
        }
        deaths += 1;
        assert!(deaths <= 5, "the job runs without limit");
    }
    let dead = dead(&database)?;
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!((&dead[0]["payload"], &dead[0]["crashes"]), (&KILLER.into(), &2.into()));
    let error = dead[0]["error"].as_str().unwrap_or_default();
    assert!(error.contains("died 2 times while it ran"), "{error}");
    let runs = trace.runs();
    assert_eq!(runs.len(), JOBS, "each job ran");
    assert_eq!(runs[&KILLER], deaths);
    Ok(())
}
