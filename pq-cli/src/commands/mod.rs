//! The subcommands: one file or directory each, with its options and its implementation.

mod audit;
mod bench;
mod cancel;
mod clear;
pub(crate) mod completions;
mod cron;
mod delete;
mod demo;
mod doctor;
mod get;
mod grant;
mod jobs;
mod limit;
mod logs;
mod ls;
mod migrate;
mod move_jobs;
mod pause;
mod prune;
mod put;
mod resume;
mod retry;
mod run_now;
mod schema;
mod show;
mod signal;
mod status;
mod stop;
mod top;
mod wait;
mod web;
mod work;

use std::process::ExitCode;

use clap::Subcommand;
use tracing_subscriber::filter::LevelFilter;

use crate::exec_guard;
use crate::failure::{EXIT_CODES, Failure};
use crate::global::Global;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Migrate(migrate::Migrate),
    Schema(schema::Schema),
    Grant(grant::Grant),
    #[command(visible_alias = "produce")]
    Put(put::Put),
    #[command(visible_alias = "consume")]
    Get(get::Get),
    #[command(visible_alias = "start")]
    Work(work::Work),
    Status(status::Status),
    Stop(stop::Stop),
    Ls(ls::Ls),
    Top(top::Top),
    Web(web::Web),
    Jobs(jobs::Jobs),
    Show(show::Show),
    Logs(logs::Logs),
    Wait(wait::WaitFor),
    Retry(retry::Retry),
    Cancel(cancel::Cancel),
    Delete(delete::Delete),
    Signal(signal::Signal),
    RunNow(run_now::RunNow),
    Move(move_jobs::Move),
    Clear(clear::Clear),
    Prune(prune::Prune),
    Pause(pause::Pause),
    Resume(resume::Resume),
    Limit(limit::Limit),
    Cron(cron::Cron),
    Audit(audit::Audit),
    Bench(bench::Bench),
    Doctor(doctor::Doctor),
    Demo(demo::Demo),
    Completions(completions::Completions),
    Man(completions::Man),
    #[command(hide = true)]
    DemoWorker,
    #[command(hide = true)]
    ExecGuard,
}

impl Command {
    /// Returns the level of the log unless an option or RUST_LOG sets one.
    pub(crate) fn log_level(&self) -> LevelFilter {
        match self {
            // These run unattended.
            Self::Work(_) | Self::Web(_) => LevelFilter::INFO,
            // These draw on the terminal, or cause errors themselves.
            Self::Top(_) | Self::Demo(_) | Self::DemoWorker | Self::Bench(_) | Self::ExecGuard => {
                LevelFilter::OFF
            }
            _ => LevelFilter::WARN,
        }
    }

    /// Returns whether the spans of the command are exported if the environment asks for it.
    pub(crate) fn exports_spans(&self) -> bool {
        matches!(self, Self::Put(_) | Self::Get(_) | Self::Work(_) | Self::Web(_))
    }

    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        match self {
            Self::Migrate(command) => command.run(global),
            Self::Schema(command) => command.run(global),
            Self::Put(command) => command.run(global),
            Self::Get(command) => command.run(global),
            Self::Grant(command) => command.run(global),
            Self::Work(command) => command.run(global),
            Self::Status(command) => command.run(global),
            Self::Stop(command) => command.run(global),
            Self::Ls(command) => command.run(global),
            Self::Top(command) => command.run(global),
            Self::Web(command) => command.run(global),
            Self::Jobs(command) => command.run(global),
            Self::Show(command) => command.run(global),
            Self::Logs(command) => command.run(global),
            Self::Wait(command) => command.run(global),
            Self::Retry(command) => command.run(global),
            Self::Cancel(command) => command.run(global),
            Self::Delete(command) => command.run(global),
            Self::Signal(command) => command.run(global),
            Self::RunNow(command) => command.run(global),
            Self::Move(command) => command.run(global),
            Self::Clear(command) => command.run(global),
            Self::Prune(command) => command.run(global),
            Self::Pause(command) => command.run(global),
            Self::Resume(command) => command.run(global),
            Self::Limit(command) => command.run(global),
            Self::Cron(command) => command.run(global),
            Self::Audit(command) => command.run(global),
            Self::Bench(command) => command.run(global),
            Self::Doctor(command) => command.run(global),
            Self::Demo(command) => command.run(global),
            Self::Completions(command) => command.run(),
            Self::Man(command) => command.run(),
            Self::DemoWorker => demo::work(),
            Self::ExecGuard => exec_guard::run(),
        }
    }
}

/// Returns the end of a command's help text: examples and the table of exit statuses.
fn examples(lines: &str) -> String {
    let word = if lines.contains('\n') { "Examples" } else { "Example" };
    format!("{word}:\n  {}\n\n{EXIT_CODES}", lines.replace('\n', "\n  "))
}
