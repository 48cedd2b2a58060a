//! Counts instructions of the client with callgrind in a child process.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use pq_diesel::{Pq, Wait};
use serde_json::value::RawValue;

use super::{Group, Measured, QUEUE, fill};
use crate::{Bench, PAYLOAD};

/// The operation that the child process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CountedOperation {
    /// Puts one job at a time
    Put,
    /// Gets one job at a time
    Take,
}

/// Number of operations in the short and in the long run.
const TIMES: (usize, usize) = (100, 600);

pub(super) fn measure(bench: &Bench, command: &Path) -> Result<Vec<Measured>> {
    let mut measured = Vec::new();
    for (counted, name) in
        [(CountedOperation::Put, "a put: instructions"), (CountedOperation::Take, "a take: instructions")]
    {
        let value = if has_valgrind() {
            let short = instructions(bench, command, counted, TIMES.0)?;
            let long = instructions(bench, command, counted, TIMES.1)?;
            Ok((long - short) / (TIMES.1 - TIMES.0) as f64)
        } else {
            Err("valgrind is not installed".to_owned())
        };
        measured.push(Measured { group: Group::Instructions, name: name.to_owned(), value, margin: 25.0 });
    }
    Ok(measured)
}

fn has_valgrind() -> bool {
    Command::new("valgrind").arg("--version").output().is_ok_and(|output| output.status.success())
}

fn instructions(bench: &Bench, command: &Path, counted: CountedOperation, times: usize) -> Result<f64> {
    drop(fill(bench, if counted == CountedOperation::Take { times } else { 0 })?);
    let out = tempfile::NamedTempFile::new()?;
    let what = counted.to_possible_value().context("the operation has no name")?;
    let ran = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", out.path().display()))
        .arg(command)
        .args(["gate-child", what.get_name(), &times.to_string()])
        // The URL may hold a password, which would be visible to other users as an argument.
        .env(CHILD_URL, bench.url())
        .output()?;
    ensure!(ran.status.success(), "valgrind failed: {}", String::from_utf8_lossy(&ran.stderr));
    total(&std::fs::read_to_string(out.path())?)
}

/// Returns the total of callgrind's output file.
fn total(file: &str) -> Result<f64> {
    let totals = file.lines().find_map(|line| line.strip_prefix("totals:"));
    let totals = totals.context("callgrind reported no total")?;
    totals.trim().parse().context("callgrind's total is not a number")
}

const CHILD_URL: &str = "PQ_GATE_URL";

/// Runs the operations in the child process.
///
/// # Errors
///
/// Database errors.
pub fn child(counted: CountedOperation, times: usize) -> Result<()> {
    let url = std::env::var(CHILD_URL).context("PQ_GATE_URL is not set; only the gate runs this command")?;
    let pq = Pq::builder().url(&url).pool_size(1).connect()?;
    let queue = pq.queue::<Box<RawValue>>(QUEUE)?;
    let payload = RawValue::from_string(PAYLOAD.to_owned())?;
    for _ in 0..times {
        match counted {
            CountedOperation::Put => drop(queue.put(&payload)?),
            CountedOperation::Take => ensure!(queue.get(Wait::No)?.is_some(), "the queue is empty"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn total_is_read_from_callgrind_output() {
        let file =
            "# callgrind format\nversion: 1\nevents: Ir\nsummary: 17\n\nfn=(1)\n0 17\n\ntotals: 1234567\n";
        assert_eq!(total(file).expect("a total"), 1_234_567.0);
        assert!(total("version: 1\n").is_err());
    }
}
