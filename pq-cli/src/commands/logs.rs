//! `pq logs`.

use std::process::ExitCode;
use std::time::Duration;

use pq_diesel::{JobId, Pq, StoredLine};
use serde::Serialize;

use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::signals::stop_on_signals;
use crate::{job_output, output};

/// The interval at which new lines are looked for. Workers store them once a second.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Print the log of a job: the lines that its handler wrote, in all attempts.
///
/// The newest 64 KiB are kept. Each line has the time, the level, the number of the attempt, and the text.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq logs 42\npq logs 42 --follow"))]
pub(crate) struct Logs {
    /// Job id.
    #[arg(value_parser = job_output::parse_id, allow_negative_numbers = true)]
    id: i64,
    /// Print new lines as they come, until the job has ended or the command is interrupted.
    #[arg(long, short)]
    follow: bool,
    /// Print JSON: an object on each line.
    #[arg(long)]
    json: bool,
}

impl Logs {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let stop = stop_on_signals()?;
        let (pq, id) = (global.connect()?, JobId(self.id));
        if pq.find(id)?.is_none() {
            output::print_error(&format!("cannot show the log of job {id}: {}", job_output::NOT_FOUND));
            return Ok(ExitCode::from(1));
        }
        let mut position = self.print(&pq.log(id)?)?;
        while self.follow && !stop.is_cancelled() {
            // What an attempt noted is stored before its outcome, so a look after the end finds all of it.
            let has_ended = has_ended(&pq, id)?;
            let new = match position {
                Some(position) => pq.log_after(id, position)?,
                None => pq.log(id)?,
            };
            position = self.print(&new)?.or(position);
            if has_ended {
                return Ok(ExitCode::SUCCESS);
            }
            std::thread::sleep(LOOK_EVERY);
        }
        if stop.is_cancelled() { Err(pq_core::Error::Stopped.into()) } else { Ok(ExitCode::SUCCESS) }
    }

    /// Prints lines, and returns the position of the last.
    fn print(&self, lines: &[StoredLine]) -> Result<Option<i64>, Failure> {
        for stored in lines {
            if self.json {
                output::print_json(&LineJson::of(stored))?;
            } else {
                output::print(&as_text(stored))?;
            }
        }
        Ok(lines.last().map(|stored| stored.position))
    }
}

fn has_ended(pq: &Pq, id: JobId) -> Result<bool, Failure> {
    Ok(pq.find(id)?.is_none_or(|job| job.state.is_ended()))
}

/// A line of a log as JSON.
#[derive(Serialize)]
pub(crate) struct LineJson<'l> {
    at: String,
    level: &'static str,
    attempt: i32,
    text: &'l str,
}

impl<'l> LineJson<'l> {
    pub(crate) fn of(StoredLine { attempt, line, .. }: &'l StoredLine) -> Self {
        let at = output::format_time_micros(line.at);
        Self { at, level: line.level.as_str(), attempt: *attempt, text: &line.text }
    }
}

/// Formats a line of a log on one line.
pub(crate) fn as_text(StoredLine { attempt, line, .. }: &StoredLine) -> String {
    let at = output::format_time_micros(line.at);
    format!("{at} {:5} {attempt} {}", line.level, output::escape(&line.text))
}
