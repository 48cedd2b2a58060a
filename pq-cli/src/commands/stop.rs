//! `pq stop`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pq_diesel::admin::{WorkerId, WorkerInfo};
use pq_diesel::{Pq, StopMode};
use rustix::process::{Signal, kill_process};

use super::examples;
use crate::confirm::Confirmation;
use crate::failure::Failure;
use crate::global::Global;
use crate::output;
use crate::pid_file::PidFile;

/// Interval at which `--wait` checks whether the workers have ended.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Stop workers: on this host by pid file, or on any host through the database.
///
/// A worker reads the request from the database within two seconds. A request cannot weaken an earlier one: abort is
/// stronger than finish, and finish is stronger than drain.
#[derive(Debug, clap::Args)]
#[command(after_help = examples(
    "pq stop --pid-file /run/pq.pid --mode finish --wait 1m\npq stop 17 --mode abort\n\
     pq stop --queue mail --mode drain --yes"
))]
pub(crate) struct Stop {
    /// Worker ids, as printed by `pq status`.
    #[arg(required_unless_present_any = ["pid_file", "all", "queue", "host"])]
    workers: Vec<i64>,
    /// When to stop: drain (when no job is ready), finish (when the running jobs have ended), or abort (now; running
    /// jobs are requeued). The Python names all, current and now are accepted too.
    #[arg(long, value_name = "MODE", default_value = "finish")]
    mode: StopMode,
    /// Send a signal to the `pq work` process on this host that holds this pid file.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["workers", "all", "queue", "host"])]
    pid_file: Option<PathBuf>,
    /// Stop every worker of the table.
    #[arg(long, conflicts_with = "workers")]
    all: bool,
    /// Stop every worker that serves this queue.
    #[arg(long, value_name = "QUEUE", conflicts_with_all = ["workers", "all"])]
    queue: Option<String>,
    /// Stop every worker on this host.
    #[arg(long, value_name = "HOST", conflicts_with_all = ["workers", "all"])]
    host: Option<String>,
    /// Wait this long for the workers to end. The exit status is 1 if they do not.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
    #[command(flatten)]
    yes: Confirmation,
}

impl Stop {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        if let Some(path) = &self.pid_file {
            return self.by_pid_file(path);
        }
        let pq = global.connect()?;
        let known = pq.workers()?;
        let chosen: Vec<&WorkerInfo> = known.iter().filter(|worker| self.selects(worker)).collect();
        let many = self.workers.is_empty();
        if many
            && !chosen.is_empty()
            && !self.yes.confirm(&format!("stops {}", output::plural(chosen.len() as u64, "worker")))?
        {
            return Ok(ExitCode::from(1));
        }
        let mut all = true;
        for id in self.workers.iter().filter(|id| !known.iter().any(|worker| worker.id.0 == **id)) {
            output::print_error(&format!("no worker with id {id}; list the workers with `pq status`"));
            all = false;
        }
        if many && chosen.is_empty() {
            output::print_error("no matching worker; list the workers with `pq status`");
            all = false;
        }
        for worker in &chosen {
            all &= pq.stop_worker(worker.id, self.mode)?;
            output::print(&format!("worker {}: asked to stop ({})", worker.id, self.mode))?;
        }
        let ids: Vec<WorkerId> = chosen.iter().map(|worker| worker.id).collect();
        all &= self.wait_for(|| Ok(is_any_running(&pq, &ids)?))?;
        Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }

    fn selects(&self, worker: &WorkerInfo) -> bool {
        if !self.workers.is_empty() {
            return self.workers.contains(&worker.id.0);
        }
        self.queue.as_ref().is_none_or(|queue| worker.queues.contains(queue))
            && self.host.as_ref().is_none_or(|host| worker.host == *host)
    }

    fn by_pid_file(&self, path: &Path) -> Result<ExitCode, Failure> {
        let Some(pid) = PidFile::holder(path)? else {
            output::print_error(&format!("no worker holds the pid file {}", path.display()));
            return Ok(ExitCode::from(1));
        };
        let signal = match self.mode {
            StopMode::Drain => Signal::HUP,
            StopMode::Finish => Signal::INT,
            StopMode::Abort => Signal::TERM,
        };
        kill_process(pid, signal).map_err(|error| {
            Failure::Io(format!("cannot signal process {}: {error}", pid.as_raw_nonzero()))
        })?;
        output::print(&format!("process {}: asked to stop ({})", pid.as_raw_nonzero(), self.mode))?;
        let ended = self.wait_for(|| Ok(PidFile::holder(path)?.is_some()))?;
        Ok(if ended { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }

    /// Waits until `is_running` returns `false`. Returns `false` if that takes longer than `--wait`.
    fn wait_for(&self, mut is_running: impl FnMut() -> Result<bool, Failure>) -> Result<bool, Failure> {
        let Some(wait) = self.wait else { return Ok(true) };
        let begun = Instant::now();
        while is_running()? {
            if begun.elapsed() >= wait {
                output::print_error(&format!("still running after {}", output::format_duration(wait)));
                return Ok(false);
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(true)
    }
}

fn is_any_running(pq: &Pq, ids: &[WorkerId]) -> Result<bool, pq_diesel::Error> {
    Ok(pq.workers()?.iter().any(|worker| ids.contains(&worker.id)))
}
