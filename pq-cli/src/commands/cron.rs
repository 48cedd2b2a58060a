//! `pq cron`.

use std::path::PathBuf;
use std::process::ExitCode;

use chrono::{DateTime, Utc};
use clap::Subcommand;
use pq_diesel::Pq;
use pq_diesel::admin::CronEntry;
use serde::Serialize;
use serde_json::value::RawValue;

use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::{input, job_output, output};

/// Manage periodic jobs.
///
/// The workers put one job at each tick of a cron expression, exactly once. The tick is the job's expected_at. Hours
/// and minutes that are numbers, lists or ranges are fixed times of day, which fire once per date: after the gap when
/// clocks go forward, and at the first occurrence when they go back. With `*` or `*/n` the expression follows real
/// time.
#[derive(Debug, clap::Args)]
#[command(after_help = examples(
    "pq cron add nightly '30 2 * * *' reports --time-zone Europe/Berlin --data '{\"kind\": \"daily\"}'\n\
     pq cron ls\npq cron rm nightly"
))]
pub(crate) struct Cron {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Add a periodic job, or replace the one with the same name, which stays paused if it is.
    #[command(after_help = examples(
        "pq cron add hourly @hourly reports --file report.json\n\
         pq cron add bills '0 6 1 * *' tasks --task bill_everybody --data '{\"kind\": \"monthly\"}' --catch-up"
    ))]
    Add(Add),
    /// List the periodic jobs.
    #[command(after_help = examples("pq cron ls --next 3\npq cron ls --json | jq '.[] | select(.paused) | .name'"))]
    Ls {
        /// Number of next ticks to show.
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = ticks())]
        next: u16,
        /// Print JSON: an array of objects.
        #[arg(long)]
        json: bool,
    },
    /// Print the next ticks of a periodic job, one per line. Those of a paused one are the ticks if it were resumed.
    #[command(after_help = examples("pq cron next nightly 10"))]
    Next {
        /// Name of the periodic job.
        name: String,
        /// Number of ticks.
        #[arg(value_name = "N", default_value_t = 10, value_parser = ticks())]
        count: u16,
    },
    /// Put the job of a periodic job now, also if it is paused. Its next tick stays.
    #[command(after_help = examples("pq cron run nightly"))]
    Run {
        /// Name of the periodic job.
        name: String,
    },
    /// Remove a periodic job. Jobs that it has put remain.
    #[command(after_help = examples("pq cron rm nightly"))]
    Rm {
        /// Name of the periodic job.
        name: String,
    },
    /// Pause a periodic job. Ticks in the meantime are skipped.
    #[command(after_help = examples("pq cron pause nightly"))]
    Pause {
        /// Name of the periodic job.
        name: String,
    },
    /// Resume a periodic job with its next tick.
    #[command(after_help = examples("pq cron resume nightly"))]
    Resume {
        /// Name of the periodic job.
        name: String,
    },
}

#[derive(Debug, clap::Args)]
struct Add {
    /// Name of the periodic job.
    name: String,
    /// Cron expression: minute, hour, day of the month, month and day of the week; six fields with seconds first; or
    /// a nickname: @yearly, @monthly, @weekly, @daily, @midnight, @hourly or @minutely.
    expression: String,
    /// Queue of the jobs.
    queue: String,
    /// Payload of the jobs as JSON, or with --task the arguments. Default: null.
    #[arg(long, value_name = "JSON", conflicts_with = "file")]
    data: Option<String>,
    /// File that holds the JSON; `-` is standard input.
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// Task that the jobs call.
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
    /// Time zone of the expression, as an IANA name.
    #[arg(long, value_name = "ZONE", default_value = "UTC")]
    time_zone: String,
    /// Priority. Jobs with a higher priority run first.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// Put one job for all ticks that were missed because no worker was running.
    #[arg(long)]
    catch_up: bool,
}

impl Cron {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        match &self.command {
            Command::Add(add) => add.run(global),
            Command::Ls { next, json } => list(&global.connect()?, (*next).into(), *json),
            Command::Next { name, count } => print_ticks(&global.connect()?, name, (*count).into()),
            Command::Run { name } => match global.connect()?.run_cron(name)? {
                Some(id) => {
                    output::print(&id.to_string())?;
                    Ok(ExitCode::SUCCESS)
                }
                None => print_result(name, false, ""),
            },
            Command::Rm { name } => print_result(name, global.connect()?.remove_cron(name)?, "removed"),
            Command::Pause { name } => print_result(name, global.connect()?.pause_cron(name)?, "paused"),
            Command::Resume { name } => print_result(name, global.connect()?.resume_cron(name)?, "resumed"),
        }
    }
}

/// The numbers of ticks that can be asked for. Each takes some time to compute.
fn ticks() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..=1_000)
}

fn print_ticks(pq: &Pq, name: &str, count: usize) -> Result<ExitCode, Failure> {
    let Some(mut entry) = pq.crons()?.into_iter().find(|entry| entry.cron.name == name) else {
        return print_result(name, false, "");
    };
    if entry.paused {
        entry.next_at = entry.cron.next_after(pq.now()?)?;
    }
    for tick in next_ticks(&entry, count)? {
        output::print(&output::format_time(tick))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the next tick and those after it.
fn next_ticks(entry: &CronEntry, count: usize) -> Result<Vec<DateTime<Utc>>, Failure> {
    let Some(next) = entry.next_at else { return Ok(Vec::new()) };
    let mut ticks = vec![next];
    ticks.extend(entry.cron.ticks_after(next, count.saturating_sub(1))?);
    Ok(ticks)
}

fn print_result(name: &str, found: bool, done: &str) -> Result<ExitCode, Failure> {
    if found {
        output::print(done)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::print_error(&format!("no periodic job named {name:?}; list them with `pq cron ls`"));
    Ok(ExitCode::from(1))
}

impl Add {
    fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let text = match (&self.data, &self.file) {
            (Some(data), _) => data.clone(),
            (None, Some(file)) => input::read(file)?,
            (None, None) => "null".to_owned(),
        };
        let data: Vec<Box<RawValue>> = input::documents(&text, false)?;
        let detached = global.detached()?;
        let cron = match &self.task {
            Some(task) => {
                let task = detached.queue::<()>(&self.queue)?.task::<Box<RawValue>>(task);
                task.cron(&self.name, &self.expression, &data[0])?
            }
            None => {
                detached.queue::<Box<RawValue>>(&self.queue)?.cron(&self.name, &self.expression, &data[0])?
            }
        };
        let cron = cron.time_zone(&self.time_zone)?.priority(self.priority).catch_up(self.catch_up);
        let pq = global.connect()?;
        let is_new = pq.set_cron(&cron)?;
        let set = pq.crons()?.into_iter().find(|entry| entry.cron.name == self.name);
        let next = match set {
            Some(CronEntry { next_at: Some(next), .. }) => format!("next tick {}", output::format_time(next)),
            Some(CronEntry { paused: true, .. }) => "paused".to_owned(),
            _ => "no next tick".to_owned(),
        };
        let replaced = if is_new { "" } else { "; replaced the previous definition" };
        output::print(&format!("{next} ({}, {}){replaced}", cron.describe(), self.time_zone))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn list(pq: &Pq, next: usize, as_json: bool) -> Result<ExitCode, Failure> {
    let entries = pq.crons()?;
    if as_json {
        let shown = entries.iter().map(|entry| entry_json(entry, next)).collect::<Result<Vec<_>, _>>()?;
        output::print_json(&shown)?;
    } else {
        let header = [
            "NAME",
            "EXPRESSION",
            "ZONE",
            "QUEUE",
            "TASK",
            "NEXT",
            "LAST",
            "MISSED TICKS",
            "PAYLOAD",
            "ERROR",
        ];
        let rows = entries.iter().map(|entry| entry_row(entry, next)).collect::<Result<Vec<_>, _>>()?;
        output::print(&output::format_table(&header, rows))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn entry_row(entry: &CronEntry, next: usize) -> Result<Vec<String>, Failure> {
    let cron = &entry.cron;
    let ticks: Vec<String> = next_ticks(entry, next)?.into_iter().map(output::format_time).collect();
    let next = match (entry.paused, ticks.is_empty()) {
        (true, _) => {
            let since = entry.paused_at.map(|at| format!(" since {}", output::format_time(at)));
            let by = entry.paused_by.as_ref().map(|by| format!(" by {by}"));
            format!("paused{}{}", since.unwrap_or_default(), by.unwrap_or_default())
        }
        (false, false) => ticks.join(", "),
        (false, true) => "never".to_owned(),
    };
    Ok(vec![
        cron.name.clone(),
        cron.expression.clone(),
        cron.time_zone.clone(),
        cron.queue.to_string(),
        cron.payload.task().unwrap_or_default(),
        next,
        entry.last_at.map(output::format_time).unwrap_or_default(),
        if cron.catch_up { "catch up" } else { "skip" }.to_owned(),
        job_output::preview(cron.payload.as_str()),
        entry.error.as_deref().map(job_output::preview).unwrap_or_default(),
    ])
}

/// A periodic job as JSON.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    expression: &'a str,
    time_zone: &'a str,
    queue: &'a str,
    task: Option<String>,
    payload: Box<RawValue>,
    priority: i32,
    catch_up: bool,
    paused: bool,
    paused_at: Option<String>,
    paused_by: Option<&'a str>,
    next_at: Option<String>,
    next_ticks: Vec<String>,
    last_at: Option<String>,
    failures: u32,
    error: Option<&'a str>,
}

fn entry_json(entry: &CronEntry, next: usize) -> Result<Shown<'_>, Failure> {
    let cron = &entry.cron;
    Ok(Shown {
        name: &cron.name,
        expression: &cron.expression,
        time_zone: &cron.time_zone,
        queue: cron.queue.as_str(),
        task: cron.payload.task(),
        payload: job_output::raw(cron.payload.as_str()),
        priority: cron.priority,
        catch_up: cron.catch_up,
        paused: entry.paused,
        paused_at: entry.paused_at.map(output::format_time_micros),
        paused_by: entry.paused_by.as_deref(),
        next_at: entry.next_at.map(output::format_time_micros),
        next_ticks: next_ticks(entry, next)?.into_iter().map(output::format_time_micros).collect(),
        last_at: entry.last_at.map(output::format_time_micros),
        failures: entry.failures,
        error: entry.error.as_deref(),
    })
}
