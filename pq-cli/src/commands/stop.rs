//! `pq stop`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pq_diesel::{Pq, StopMode, WorkerId, WorkerInfo};
use rustix::process::{Signal, kill_process};

use super::examples;
use crate::confirm::Confirmation;
use crate::failure::Failure;
use crate::global::Global;
use crate::output;
use crate::pid_file::PidFile;

/// How often it is looked at whether the workers have ended.
const LOOK: Duration = Duration::from_millis(100);

/// Stop workers: one of this host by its pid file, or any by the database.
///
/// Through the database a worker learns of it within two seconds. A mode that is not sterner than the one before
/// changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = examples(
    "pq stop --pid-file /run/pq.pid --mode current --wait 1m\npq stop 17 --mode now\n\
     pq stop --queue mail --mode all --yes"
))]
pub(crate) struct Stop {
    /// The workers' numbers, as `pq status` shows them.
    #[arg(required_unless_present_any = ["pid_file", "all", "queue", "host"])]
    workers: Vec<i64>,
    /// When: all (when nothing waits), current (when the running jobs have ended), or now.
    #[arg(long, value_name = "MODE", default_value = "current")]
    mode: StopMode,
    /// The `pq work` on this host that holds this pid file, by a signal.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["workers", "all", "queue", "host"])]
    pid_file: Option<PathBuf>,
    /// Every worker of the table.
    #[arg(long, conflicts_with = "workers")]
    all: bool,
    /// Every worker that serves this queue.
    #[arg(long, value_name = "QUEUE", conflicts_with_all = ["workers", "all"])]
    queue: Option<String>,
    /// Every worker on this host.
    #[arg(long, value_name = "HOST", conflicts_with_all = ["workers", "all"])]
    host: Option<String>,
    /// Wait so long for them to end; exit status 1 where they do not.
    #[arg(long, value_name = "SPAN", value_parser = humantime::parse_duration)]
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
        let chosen: Vec<&WorkerInfo> = known.iter().filter(|worker| self.means(worker)).collect();
        let many = self.workers.is_empty();
        if many && !chosen.is_empty() && !self.yes.confirm(&format!("stops {} workers", chosen.len()))? {
            return Ok(ExitCode::from(1));
        }
        let mut all = true;
        for id in self.workers.iter().filter(|id| !known.iter().any(|worker| worker.id.0 == **id)) {
            output::print_error(&format!("there is no worker {id}; `pq status` lists them"));
            all = false;
        }
        if many && chosen.is_empty() {
            output::print_error("there is no such worker; `pq status` lists them");
            all = false;
        }
        for worker in &chosen {
            all &= pq.stop_worker(worker.id, self.mode)?;
            output::print(&format!("worker {} is told: {}", worker.id, self.mode))?;
        }
        let ids: Vec<WorkerId> = chosen.iter().map(|worker| worker.id).collect();
        all &= self.wait_for(|| Ok(is_any_there(&pq, &ids)?))?;
        Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }

    fn means(&self, worker: &WorkerInfo) -> bool {
        if !self.workers.is_empty() {
            return self.workers.contains(&worker.id.0);
        }
        self.queue.as_ref().is_none_or(|queue| worker.queues.contains(queue))
            && self.host.as_ref().is_none_or(|host| worker.host == *host)
    }

    fn by_pid_file(&self, path: &Path) -> Result<ExitCode, Failure> {
        let Some(pid) = PidFile::holder(path)? else {
            output::print_error(&format!("no worker holds {}", path.display()));
            return Ok(ExitCode::from(1));
        };
        let signal = match self.mode {
            StopMode::Drain => Signal::HUP,
            StopMode::Finish => Signal::INT,
            StopMode::Abort => Signal::TERM,
        };
        kill_process(pid, signal).map_err(|error| {
            Failure::Io(format!("process {} cannot be told: {error}", pid.as_raw_nonzero()))
        })?;
        output::print(&format!("process {} is told: {}", pid.as_raw_nonzero(), self.mode))?;
        let ended = self.wait_for(|| Ok(PidFile::holder(path)?.is_some()))?;
        Ok(if ended { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }

    /// Waits, if that was said, while something is there. `false` where it is there still.
    fn wait_for(&self, mut is_there: impl FnMut() -> Result<bool, Failure>) -> Result<bool, Failure> {
        let Some(wait) = self.wait else { return Ok(true) };
        let begun = Instant::now();
        while is_there()? {
            if begun.elapsed() >= wait {
                output::print_error(&format!("it has not ended within {}", output::format_duration(wait)));
                return Ok(false);
            }
            std::thread::sleep(LOOK);
        }
        Ok(true)
    }
}

fn is_any_there(pq: &Pq, ids: &[WorkerId]) -> Result<bool, pq_diesel::Error> {
    Ok(pq.workers()?.iter().any(|worker| ids.contains(&worker.id)))
}
