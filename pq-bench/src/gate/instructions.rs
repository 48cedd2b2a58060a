//! Counts instructions of the client with callgrind in a child process.

use std::convert::Infallible;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use pq_diesel::{Pq, Wait};
use serde_json::value::RawValue;

use super::counts::{BATCH, drain};
use super::{Group, Measured, QUEUE, fill};
use crate::{Bench, PAYLOAD};

/// The operation that the child process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CountedOperation {
    /// Puts one job at a time
    Put,
    /// Gets one job at a time
    Take,
    /// Drains in batches by transactional handlers that do nothing
    TransactionalDrain,
    /// Drains in batches by leased handlers that do nothing
    LeasedDrain,
}

impl CountedOperation {
    /// The figure's name, and the number of jobs of the short and of the long run.
    fn figure(self) -> (&'static str, (usize, usize)) {
        let batches = (2 * BATCH, 12 * BATCH);
        match self {
            Self::Put => ("a put: instructions", (100, 600)),
            Self::Take => ("a take: instructions", (100, 600)),
            Self::TransactionalDrain => ("a transactional drain: instructions, a job", batches),
            Self::LeasedDrain => ("a leased drain: instructions, a job", batches),
        }
    }
}

pub(super) fn measure(bench: &Bench, command: &Path) -> Result<Vec<Measured>> {
    let mut measured = Vec::new();
    for counted in CountedOperation::value_variants() {
        let (name, (few, many)) = counted.figure();
        let value = if has_valgrind() {
            let short = instructions(bench, command, *counted, few)?;
            let long = instructions(bench, command, *counted, many)?;
            Ok((long - short) / (many - few) as f64)
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
    drop(fill(bench, if counted == CountedOperation::Put { 0 } else { times })?);
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
    // A listener works by the clock.
    let pq = Pq::builder().url(&url).pool_size(2).listen(false).connect()?;
    let queue = pq.queue::<Box<RawValue>>(QUEUE)?;
    let payload = RawValue::from_string(PAYLOAD.to_owned())?;
    match counted {
        CountedOperation::Put => {
            for _ in 0..times {
                queue.put(&payload)?;
            }
        }
        CountedOperation::Take => {
            for _ in 0..times {
                ensure!(queue.get(Wait::No)?.is_some(), "the queue is empty");
            }
        }
        CountedOperation::TransactionalDrain => {
            drain(&pq, queue.transactional(|_, _| Ok::<_, Infallible>(())), BATCH, times)?;
        }
        CountedOperation::LeasedDrain => {
            drain(&pq, queue.leased(|_, _| Ok::<_, Infallible>(())), BATCH, times)?
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
