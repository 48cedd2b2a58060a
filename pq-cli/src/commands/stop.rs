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
use crate::pid_file::PidFile;
use crate::{output, values};

/// Interval at which `--wait` checks whether the workers have ended.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Stop workers: on this host by pid file, or on any host through the database.
///
/// A worker reads the request from the database within two seconds. A request cannot weaken an earlier one: abort is
/// stronger than finish, and finish is stronger than drain. A worker that has sent no heartbeat for a minute is gone,
/// and there is nothing to stop.
#[derive(Debug, clap::Args)]
#[command(after_help = examples(
    "pq stop --pid-file /run/pq.pid --mode finish --wait 1m\npq stop 17 --mode abort\n\
     pq stop --queue mail --mode drain --yes\npq stop now --all"
))]
pub(crate) struct Stop {
    /// Worker ids, as printed by `pq status`. The mode can come first, as in `pq stop now 17`.
    #[arg(value_name = "[MODE] WORKERS", required_unless_present_any = ["pid_file", "all", "queue", "host"],
          value_parser = target)]
    targets: Vec<Target>,
    /// When to stop: drain (when no job is ready), finish (when the running jobs have ended), or abort (now; running
    /// jobs are requeued). The Python names all, current and now are accepted too. Default: finish.
    #[arg(long, value_name = "MODE")]
    mode: Option<StopMode>,
    /// Send a signal to the `pq work` process on this host that holds this pid file.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["all", "queue", "host"])]
    pid_file: Option<PathBuf>,
    /// Stop every worker of the table.
    #[arg(long)]
    all: bool,
    /// Stop every worker that serves this queue.
    #[arg(long, value_name = "QUEUE", conflicts_with = "all")]
    queue: Option<String>,
    /// Stop every worker on this host.
    #[arg(long, value_name = "HOST", conflicts_with = "all")]
    host: Option<String>,
    /// Wait this long for the workers to end. The exit status is 1 if they do not.
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    wait: Option<Duration>,
    #[command(flatten)]
    yes: Confirmation,
}

/// A positional argument.
#[derive(Clone, Copy, Debug)]
enum Target {
    Worker(i64),
    Mode(StopMode),
}

fn target(text: &str) -> Result<Target, String> {
    let worker = text.parse().map(Target::Worker).ok();
    worker.or_else(|| text.parse().map(Target::Mode).ok()).ok_or_else(|| {
        "expected the id of a worker, as printed by `pq status`, or a mode: drain, finish or abort".to_owned()
    })
}

impl Stop {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let (mode, workers) = self.mode_and_workers()?;
        if let Some(path) = &self.pid_file {
            return self.by_pid_file(path, mode);
        }
        let pq = global.connect()?;
        let known = pq.workers()?;
        let (gone, live): (Vec<_>, Vec<_>) = known.into_iter().partition(WorkerInfo::is_gone);
        let chosen: Vec<&WorkerInfo> = live.iter().filter(|worker| self.selects(&workers, worker)).collect();
        let many = workers.is_empty();
        if many
            && !chosen.is_empty()
            && !self.yes.confirm(&format!("stops {}", output::plural(chosen.len() as u64, "worker")))?
        {
            return Ok(ExitCode::from(1));
        }
        let mut all = true;
        for id in workers.iter().filter(|id| !live.iter().any(|worker| worker.id.0 == **id)) {
            output::print_error(&match gone.iter().find(|worker| worker.id.0 == *id) {
                Some(worker) => format!(
                    "worker {id} is gone: its last heartbeat was {} ago",
                    output::format_duration(worker.heartbeat_age)
                ),
                None => format!("no worker with id {id}; list the workers with `pq status`"),
            });
            all = false;
        }
        if many && chosen.is_empty() {
            output::print_error("no matching worker; list the workers with `pq status`");
            all = false;
        }
        for worker in &chosen {
            all &= pq.stop_worker(worker.id, mode)?;
            output::print(&format!("worker {}: asked to stop ({mode})", worker.id))?;
        }
        let ids: Vec<WorkerId> = chosen.iter().map(|worker| worker.id).collect();
        all &= self.wait_for(|| Ok(is_any_running(&pq, &ids)?))?;
        Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }

    /// Returns the mode, and the ids of workers if any are given.
    fn mode_and_workers(&self) -> Result<(StopMode, Vec<i64>), Failure> {
        let (mut mode, mut workers) = (self.mode, Vec::new());
        for target in &self.targets {
            match target {
                Target::Worker(id) => workers.push(*id),
                Target::Mode(_) if mode.is_some() => {
                    return Err(Failure::Usage("invalid arguments: more than one stop mode".to_owned()));
                }
                Target::Mode(given) => mode = Some(*given),
            }
        }
        let selects_many = self.all || self.queue.is_some() || self.host.is_some() || self.pid_file.is_some();
        match (selects_many, workers.is_empty()) {
            (true, false) => Err(Failure::Usage(
                "invalid arguments: worker ids, and an option that selects workers; pass one of them".to_owned(),
            )),
            (false, true) => Err(Failure::Usage(
                "invalid arguments: no worker is selected; pass worker ids, --all, --queue, --host or --pid-file"
                    .to_owned(),
            )),
            _ => Ok((mode.unwrap_or(StopMode::Finish), workers)),
        }
    }

    fn selects(&self, workers: &[i64], worker: &WorkerInfo) -> bool {
        if !workers.is_empty() {
            return workers.contains(&worker.id.0);
        }
        self.queue.as_ref().is_none_or(|queue| worker.queues.contains(queue))
            && self.host.as_ref().is_none_or(|host| worker.host == *host)
    }

    fn by_pid_file(&self, path: &Path, mode: StopMode) -> Result<ExitCode, Failure> {
        let Some(pid) = PidFile::holder(path)? else {
            output::print_error(&format!("no worker holds the pid file {}", path.display()));
            return Ok(ExitCode::from(1));
        };
        let signal = match mode {
            StopMode::Drain => Signal::HUP,
            StopMode::Finish => Signal::INT,
            StopMode::Abort => Signal::TERM,
        };
        kill_process(pid, signal).map_err(|error| {
            Failure::Io(format!("cannot signal process {}: {error}", pid.as_raw_nonzero()))
        })?;
        output::print(&format!("process {}: asked to stop ({mode})", pid.as_raw_nonzero()))?;
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
    Ok(pq.workers()?.iter().any(|worker| ids.contains(&worker.id) && !worker.is_gone()))
}
