//! `pq status`.

use std::path::PathBuf;
use std::process::ExitCode;

use pq_diesel::admin::WorkerInfo;
use serde_json::Value;

use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::pid_file::PidFile;
use crate::{output, worker_output};

/// Show the workers on all hosts, their running jobs and their counts.
///
/// Workers send a heartbeat to the database every two seconds. A worker that has sent none for a minute is shown as
/// gone. The exit status is 1 if there is no live worker.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq status\npq status --pid-file /run/pq.pid --json"))]
pub(crate) struct Status {
    /// Only the workers of the `pq work` process on this host that holds this pid file.
    #[arg(long, value_name = "PATH")]
    pid_file: Option<PathBuf>,
    /// Print JSON: an array of objects.
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let holder = match &self.pid_file {
            None => None,
            Some(path) => match PidFile::holder(path)? {
                Some(pid) => Some(pid.as_raw_nonzero().get().unsigned_abs()),
                None => {
                    output::print_error(&format!("no worker holds the pid file {}", path.display()));
                    return Ok(ExitCode::from(1));
                }
            },
        };
        let mut known = global.connect()?.workers()?;
        known.retain(|worker| {
            holder.is_none_or(|pid| worker.supervisor == pid && worker_output::is_here(worker))
        });
        if self.json {
            output::print_json(&known.iter().map(worker_output::as_json).collect::<Value>())?;
        } else if !known.is_empty() {
            output::print(&worker_output::describe_all(&known))?;
        }
        let none_lives = known.iter().all(WorkerInfo::is_gone);
        if none_lives {
            output::print_error("no worker has sent a heartbeat in the last minute");
        }
        Ok(if none_lives { ExitCode::from(1) } else { ExitCode::SUCCESS })
    }
}
