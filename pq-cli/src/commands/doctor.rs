//! `pq doctor`.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anstyle::AnsiColor;
use pq_diesel::doctor::{Examination, Finding, Level};

use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::{output, values};

/// Check the database and its settings, and print advice for each finding.
///
/// Checks the server and its settings, long-running snapshots, dead tuples and bloat, notifications, clocks, connection
/// poolers, sequences, privileges, migrations, the catalog, and the query plans of the statements that take jobs.
/// Changes nothing. The role needs no further privileges than for its work, but some checks need pg_read_all_stats or
/// the privilege to create a schema.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq doctor\npq doctor --strict --json | jq '.[] | select(.level != \"ok\")'"))]
pub(crate) struct Doctor {
    /// Print JSON: an array of objects with check, level, message and advice.
    #[arg(long)]
    json: bool,
    /// Exit with status 7 on warnings too.
    #[arg(long)]
    strict: bool,
    /// Warn about snapshots older than this duration, such as 90s, 5m or 1h30m. They keep dead tuples from being
    /// removed.
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = values::duration)]
    max_snapshot_age: Duration,
}

impl Doctor {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let how = Examination::new().max_snapshot_age(self.max_snapshot_age).clock(SystemTime::now);
        let pq = global.connect()?;
        let findings = output::with_spinner("checking", || pq.examine(&how))?;
        let lines = if self.json { json(&findings)? } else { text(&findings) };
        output::print_lines(lines.iter().map(String::as_str))
            .map_err(|error| Failure::output("the findings", &error))?;
        let enough = if self.strict { Level::Warning } else { Level::Failure };
        let bad = findings.iter().any(|finding| finding.level >= enough);
        Ok(if bad { ExitCode::from(7) } else { ExitCode::SUCCESS })
    }
}

fn json(findings: &[Finding]) -> Result<Vec<String>, Failure> {
    let array = serde_json::to_string_pretty(findings)
        .map_err(|error| Failure::Io(format!("cannot write the findings: {error}")))?;
    Ok(array.lines().map(output::one_line).collect())
}

fn text(findings: &[Finding]) -> Vec<String> {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or_default();
    let mut lines = Vec::new();
    for finding in findings {
        let (mark, colour) = mark(finding.level);
        let message = output::escape(&finding.message);
        lines.push(format!("{}  {:width$}  {message}", output::paint(mark, colour), finding.check));
        if let Some(advice) = &finding.advice {
            lines.push(format!("{:1$}→ {2}", "", width + 8, output::escape(advice)));
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    lines.push(format!(
        "{} failed, {}, {} ok, {} skipped",
        count(Level::Failure),
        output::plural(count(Level::Warning) as u64, "warning"),
        count(Level::Ok),
        count(Level::Skipped)
    ));
    lines
}

/// Returns the label and colour of a level. All labels have the same width.
fn mark(level: Level) -> (&'static str, AnsiColor) {
    match level {
        Level::Ok => ("ok  ", AnsiColor::Green),
        Level::Warning => ("warn", AnsiColor::Yellow),
        Level::Failure => ("FAIL", AnsiColor::Red),
        _ => ("skip", AnsiColor::BrightBlack),
    }
}
