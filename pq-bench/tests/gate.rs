//! The gate detects regressions that the tests introduce.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use diesel::connection::SimpleConnection;
use pq_bench::Bench;
use pq_bench::gate::{Check, Group, Thresholds, measure};
use pq_testing::Server;

/// The counts include all WAL of the server and all statements of this process, so these tests run one at a time.
fn run_alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const COMMAND: &str = env!("CARGO_BIN_EXE_pq-bench");

/// The thresholds that an unchanged table passes.
const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/gate.toml");

fn gate(thresholds: &Path, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(COMMAND);
    command.env("PQ_TEST_DATABASE_URL", Server::shared()?.url()).arg("gate").args(arguments);
    Ok(command.arg("--thresholds").arg(thresholds).output()?)
}

fn output_of(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Returns the failed rows of the table.
fn failures(output: &str) -> Vec<&str> {
    output.lines().filter(|line| line.contains("FAILED")).collect()
}

fn temporary_file() -> Result<(tempfile::TempDir, PathBuf)> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("gate.toml");
    Ok((folder, file))
}

#[test]
fn one_more_statement_and_a_figure_without_a_threshold_fail() -> Result<()> {
    let _guard = run_alone();
    let (_folder, file) = temporary_file()?;
    let text = std::fs::read_to_string(COMMITTED)?;

    // Lower the threshold by one statement per batch of 500, and write a figure's name wrongly. All others pass.
    let line = text.lines().find(|line| line.starts_with("\"a leased drain: statements, a job\""));
    let line = line.context("the threshold is missing")?;
    let value = line.split(['=', ',']).find_map(|part| part.trim().parse::<f64>().ok());
    let value = value.context("the threshold has no value")?;
    let demanding = line.replace(&format!("value = {value}"), &format!("value = {}", value - 0.002));
    ensure!(demanding != line, "{line}");
    let misspelt = text.replace(line, &demanding).replace("a put: statements", "a putt: statements");
    std::fs::write(&file, misspelt)?;
    let failed = gate(&file, &["--only", "counts"])?;
    assert_eq!(failed.status.code(), Some(1), "{}", output_of(&failed));
    let output = output_of(&failed);
    let expected = ["a leased drain: statements", "a put: statements", "a putt: statements"];
    let found = failures(&output);
    assert_eq!(found.len(), expected.len(), "{output}");
    assert!(expected.iter().all(|name| found.iter().any(|line| line.contains(name))), "{output}");
    assert!(output.contains("--write"), "the output does not explain how to update: {output}");
    Ok(())
}

#[test]
fn measured_values_are_written_and_pass() -> Result<()> {
    let _guard = run_alone();
    let (_folder, file) = temporary_file()?;
    let written = gate(&file, &["--only", "rows", "--write"])?;
    ensure!(written.status.success(), "{}", output_of(&written));
    let text = std::fs::read_to_string(&file)?;
    assert!(text.contains("a take of 1, 10,000 ready: rows a job"), "{text}");
    let passed = gate(&file, &["--only", "rows"])?;
    assert!(passed.status.success(), "{}", output_of(&passed));
    Ok(())
}

/// That all figures pass without the planted faults is what `pq-bench gate` checks.
#[test]
fn more_wal_and_a_missing_index_fail() -> Result<()> {
    let _guard = run_alone();
    let bench = Bench::throwaway()?;
    let thresholds = Thresholds::read(Path::new(COMMITTED))?;
    let failing = |groups: &[Group]| -> Result<Vec<String>> {
        let checks = thresholds.check(groups, &measure(&bench, groups, Path::new(COMMAND))?);
        ensure!(!checks.is_empty(), "nothing was measured");
        let failing = checks.into_iter().filter(|one| one.fails(true));
        Ok(failing.map(|Check { group, name, .. }| format!("{group:?}, {name}")).collect())
    };

    let mut conn = bench.connect()?;
    conn.batch_execute("CREATE INDEX planted ON pq.queue (q_name, enqueued_at, (data::text))")?;
    let found = failing(&[Group::Counts, Group::Wal])?;
    conn.batch_execute("DROP INDEX pq.planted")?;
    let puts = ["Wal, a put: bytes a job", "Wal, a put_many of 1,000: bytes a job"];
    assert_eq!(found, puts, "an additional index must only increase the WAL of puts");

    conn.batch_execute(
        "DO $$ DECLARE lost record; BEGIN
            FOR lost IN SELECT indexrelid::regclass AS name FROM pg_index
                WHERE indrelid = 'pq.queue'::regclass AND NOT indisprimary
            LOOP EXECUTE format('DROP INDEX %s', lost.name); END LOOP;
        END $$",
    )?;
    let found = failing(&[Group::Rows])?;
    assert!(found.contains(&"Rows, a take of 1, 10,000 ready: rows a job".to_owned()), "{found:?}");
    assert!(found.contains(&"Rows, a take of 1, 10,000 ready: pages a job".to_owned()), "{found:?}");
    Ok(())
}

#[test]
fn missing_valgrind_is_reported_and_fails_only_if_required() -> Result<()> {
    let _guard = run_alone();
    let (folder, file) = temporary_file()?;
    let without = |arguments: &[&str]| -> Result<Output> {
        let mut command = Command::new(COMMAND);
        command.env("PQ_TEST_DATABASE_URL", Server::shared()?.url()).env("PATH", folder.path());
        command.args(["gate", "--only", "instructions", "--thresholds"]).arg(&file).args(arguments);
        Ok(command.output()?)
    };
    let lenient = without(&[])?;
    assert_eq!(lenient.status.code(), Some(0), "{}", output_of(&lenient));
    assert!(
        output_of(&lenient).contains("not measured: valgrind is not installed"),
        "{}",
        output_of(&lenient)
    );
    let strict = without(&["--require-callgrind"])?;
    assert_eq!(strict.status.code(), Some(1), "{}", output_of(&strict));
    assert_eq!(failures(&output_of(&strict)).len(), 4, "{}", output_of(&strict));
    Ok(())
}
