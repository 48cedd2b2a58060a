//! `pq doctor`.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anstyle::AnsiColor;
use pq_diesel::When;
use pq_diesel::doctor::{Examination, Finding, Level};

use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::output;

/// Check the database for problems and advise how to fix them.
///
/// Checks the server and its settings, old snapshots, dead tuples and bloat, notifications, clocks, poolers, sequences,
/// privileges, migrations, the catalog and query plans. Changes nothing. The role needs no further privileges, but more
/// is checked with pg_read_all_stats and the privilege to create a schema.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq doctor\npq doctor --strict --json | jq '.[] | select(.level != \"ok\")'"))]
pub(crate) struct Doctor {
    /// Print the findings as one JSON array of objects with check, level, message and advice.
    #[arg(long)]
    json: bool,
    /// Fail on warnings too.
    #[arg(long)]
    strict: bool,
    /// Warn of snapshots older than this span, such as 90s, 5m or 1h30m.
    #[arg(long, value_name = "SPAN", default_value = "1m", value_parser = span)]
    max_snapshot_age: Duration,
}

impl Doctor {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let how = Examination::new().max_snapshot_age(self.max_snapshot_age).clock(SystemTime::now);
        let pq = global.connect()?;
        let findings = output::with_spinner("looking", || pq.examine(&how))?;
        let lines = if self.json { json(&findings)? } else { text(&findings) };
        output::print_lines(lines.iter().map(String::as_str))
            .map_err(|error| Failure::Io(format!("the findings cannot be written: {error}")))?;
        let enough = if self.strict { Level::Warning } else { Level::Failure };
        let bad = findings.iter().any(|finding| finding.level >= enough);
        Ok(if bad { ExitCode::from(7) } else { ExitCode::SUCCESS })
    }
}

fn json(findings: &[Finding]) -> Result<Vec<String>, Failure> {
    let array = serde_json::to_string_pretty(findings)
        .map_err(|error| Failure::Io(format!("the findings cannot be written: {error}")))?;
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
        "{} failed, {} to be warned of, {} fine, {} not looked at",
        count(Level::Failure),
        count(Level::Warning),
        count(Level::Ok),
        count(Level::Skipped)
    ));
    lines
}

/// All of one width.
fn mark(level: Level) -> (&'static str, AnsiColor) {
    match level {
        Level::Ok => ("ok  ", AnsiColor::Green),
        Level::Warning => ("warn", AnsiColor::Yellow),
        Level::Failure => ("FAIL", AnsiColor::Red),
        _ => ("skip", AnsiColor::BrightBlack),
    }
}

fn span(text: &str) -> Result<Duration, String> {
    match When::parse(text) {
        Ok(When::In(span)) => span.to_std().map_err(|_| "it is negative".to_owned()),
        _ => Err("it is no span like 90s, 5m or 1h30m".to_owned()),
    }
}
