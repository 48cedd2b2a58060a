//! `pq cron`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use pq_diesel::{CronEntry, Pq};
use serde::Serialize;
use serde_json::value::RawValue;

use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::{input, job_output, output};

/// Periodic jobs: put at each tick of a cron expression, exactly once, by whichever worker is there.
///
/// The tick is the job's expected_at. When clocks go forward, a time of day that does not exist fires at the first
/// instant after the gap; when they go back, a fixed time of day fires once, and what is due each hour or minute
/// goes on through both hours.
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
    /// Set a periodic job, in place of the one of its name.
    #[command(after_help = examples(
        "pq cron add hourly @hourly reports --file report.json\n\
         pq cron add bills '0 6 1 * *' tasks --task bill_everybody --data '{\"kind\": \"monthly\"}' --catch-up"
    ))]
    Add(Add),
    /// List the periodic jobs.
    #[command(after_help = examples("pq cron ls\npq cron ls --json | jq '.[] | select(.paused) | .name'"))]
    Ls {
        /// Print JSON: an array of objects.
        #[arg(long)]
        json: bool,
    },
    /// Remove a periodic job. Jobs that it has put stay.
    #[command(after_help = examples("pq cron rm nightly"))]
    Rm {
        /// Its name.
        name: String,
    },
    /// Pause a periodic job: its ticks pass, and are not made up for.
    #[command(after_help = examples("pq cron pause nightly"))]
    Pause {
        /// Its name.
        name: String,
    },
    /// Have a periodic job go on, with the next tick from now.
    #[command(after_help = examples("pq cron resume nightly"))]
    Resume {
        /// Its name.
        name: String,
    },
}

#[derive(Debug, clap::Args)]
struct Add {
    /// What it is known by.
    name: String,
    /// When: minute, hour, day of the month, month and day of the week; or six fields with seconds first; or a
    /// nickname such as @hourly.
    expression: String,
    /// The queue where its jobs are put.
    queue: String,
    /// What the jobs carry, as JSON; for a task its arguments. Unless said null.
    #[arg(long, value_name = "JSON", conflicts_with = "file")]
    data: Option<String>,
    /// Where the JSON is; `-` is standard input.
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// The jobs call this task.
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
    /// The time zone in which the expression is read, by its IANA name.
    #[arg(long, value_name = "ZONE", default_value = "UTC")]
    time_zone: String,
    /// Higher goes first.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// Whether one job makes up for all ticks that were missed because no worker was there.
    #[arg(long)]
    catch_up: bool,
}

impl Cron {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        match &self.command {
            Command::Add(add) => add.run(global),
            Command::Ls { json } => list(&global.connect()?, *json),
            Command::Rm { name } => said(name, global.connect()?.remove_cron(name)?, "removed"),
            Command::Pause { name } => said(name, global.connect()?.pause_cron(name)?, "paused"),
            Command::Resume { name } => said(name, global.connect()?.resume_cron(name)?, "goes on"),
        }
    }
}

fn said(name: &str, found: bool, done: &str) -> Result<ExitCode, Failure> {
    if found {
        output::print(done)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::print_error(&format!("there is no periodic job called {name:?}; `pq cron ls` lists them"));
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
        let next = cron.next_after(pq.now()?)?.map(output::format_time).unwrap_or_default();
        let english = cron.describe();
        let english = english.trim_end_matches('.');
        let was = if is_new { "" } else { "; it takes the place of another" };
        output::print(&format!("next at {next} ({}, {}){was}", english, self.time_zone))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn list(pq: &Pq, as_json: bool) -> Result<ExitCode, Failure> {
    let entries = pq.crons()?;
    if as_json {
        output::print_json(&entries.iter().map(entry_json).collect::<Vec<_>>())?;
    } else {
        let heads = ["NAME", "EXPRESSION", "ZONE", "QUEUE", "NEXT", "LAST", "MISSED TICKS", "PAYLOAD"];
        output::print(&output::format_table(&heads, entries.iter().map(entry_row)))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn entry_row(entry: &CronEntry) -> Vec<String> {
    let cron = &entry.cron;
    let next = match (entry.paused, entry.next_at) {
        (true, _) => "paused".to_owned(),
        (false, Some(at)) => output::format_time(at),
        (false, None) => "never".to_owned(),
    };
    vec![
        cron.name.clone(),
        cron.expression.clone(),
        cron.time_zone.clone(),
        cron.queue.to_string(),
        next,
        entry.last_at.map(output::format_time).unwrap_or_default(),
        if cron.catch_up { "once for all" } else { "pass" }.to_owned(),
        job_output::preview(cron.payload.as_str()),
    ]
}

/// A periodic job as JSON.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    expression: &'a str,
    time_zone: &'a str,
    queue: &'a str,
    payload: Box<RawValue>,
    priority: i32,
    catch_up: bool,
    paused: bool,
    next_at: Option<String>,
    last_at: Option<String>,
}

fn entry_json(entry: &CronEntry) -> Shown<'_> {
    let cron = &entry.cron;
    Shown {
        name: &cron.name,
        expression: &cron.expression,
        time_zone: &cron.time_zone,
        queue: cron.queue.as_str(),
        payload: job_output::raw(cron.payload.as_str()),
        priority: cron.priority,
        catch_up: cron.catch_up,
        paused: entry.paused,
        next_at: entry.next_at.map(output::format_time_micros),
        last_at: entry.last_at.map(output::format_time_micros),
    }
}
