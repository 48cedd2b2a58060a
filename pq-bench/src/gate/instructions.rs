//! Instructions of the client, counted by callgrind in a child process.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use pq_diesel::{Pq, Wait};
use serde_json::value::RawValue;

use super::{Group, Measured, QUEUE, fill};
use crate::{Bench, PAYLOAD};

/// What the child does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CountedOperation {
    /// Puts, a job each
    Put,
    /// Gets, a job each
    Take,
}

/// How often the child does it, the first time and the second.
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
            Err("there is no valgrind on this machine".to_owned())
        };
        measured.push(Measured { group: Group::Instructions, name: name.to_owned(), value, margin: 25.0 });
    }
    Ok(measured)
}

fn has_valgrind() -> bool {
    Command::new("valgrind").arg("--version").output().is_ok_and(|said| said.status.success())
}

fn instructions(bench: &Bench, command: &Path, counted: CountedOperation, times: usize) -> Result<f64> {
    drop(fill(bench, if counted == CountedOperation::Take { times } else { 0 })?);
    let out = tempfile::NamedTempFile::new()?;
    let what = counted.to_possible_value().context("it has no name")?;
    let ran = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", out.path().display()))
        .arg(command)
        .args(["gate-child", what.get_name(), &times.to_string()])
        // Not as an argument, where others can read it: it may hold a password.
        .env(CHILD_URL, bench.url())
        .output()?;
    ensure!(ran.status.success(), "valgrind failed: {}", String::from_utf8_lossy(&ran.stderr));
    total(&std::fs::read_to_string(out.path())?)
}

/// The total that callgrind's file tells.
fn total(file: &str) -> Result<f64> {
    let totals = file.lines().find_map(|line| line.strip_prefix("totals:"));
    let totals = totals.context("callgrind told no total")?;
    totals.trim().parse().context("callgrind's total is no number")
}

const CHILD_URL: &str = "PQ_GATE_URL";

/// What the child process does: so many puts or takes.
///
/// # Errors
///
/// The database's.
pub fn child(counted: CountedOperation, times: usize) -> Result<()> {
    let url = std::env::var(CHILD_URL).context("only the gate runs this")?;
    let pq = Pq::builder().url(&url).pool_size(1).connect()?;
    let queue = pq.queue::<Box<RawValue>>(QUEUE)?;
    let payload = RawValue::from_string(PAYLOAD.to_owned())?;
    for _ in 0..times {
        match counted {
            CountedOperation::Put => drop(queue.put(&payload)?),
            CountedOperation::Take => ensure!(queue.get(Wait::No)?.is_some(), "there was no job to take"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_found_in_callgrinds_file() {
        let file =
            "# callgrind format\nversion: 1\nevents: Ir\nsummary: 17\n\nfn=(1)\n0 17\n\ntotals: 1234567\n";
        assert_eq!(total(file).expect("there is one"), 1_234_567.0);
        assert!(total("version: 1\n").is_err());
    }
}
