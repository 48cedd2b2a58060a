//! `pq work`: a worker without a line of Rust.

mod handlers;
mod supervisor;

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use pq_diesel::{Backoff, Control, Report, StopMode, Worker};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::examples;
use crate::exec::Exec;
use crate::failure::Failure;
use crate::global::Global;
use crate::pid_file::PidFile;
use crate::signals::catch;
use crate::{output, worker_output};

/// Names, in the environment of a process that another looks after, that other one.
const SUPERVISOR: &str = "PQ_WORK_SUPERVISOR";

/// Work the jobs of one or several queues by running a command for each.
///
/// The command has the payload on its standard input (for a task its arguments), and the job's number, queue, task,
/// attempt, priority, times and keys in PQ_ID, PQ_QUEUE, PQ_TASK, PQ_ATTEMPT, PQ_PRIORITY, PQ_ENQUEUED_AT,
/// PQ_SCHEDULE_AT, PQ_EXPECTED_AT, PQ_SERIALIZATION_KEY and PQ_UNIQUE_KEY. Exit status 0 completes the job; anything
/// else fails it, with the end of standard error as the error's text. Jobs are held under a lease while their
/// commands run. Queues are served in the order given: while the first has jobs, the second waits.
///
/// Signals: HUP stops when nothing waits, INT when the running jobs have ended (a second INT now), TERM now: commands
/// that run are told by TERM, and killed five seconds later, and their jobs go back. USR1 prints the status to
/// standard error.
#[derive(Debug, clap::Args)]
#[command(after_help = examples(
    "pq work mail --exec 'sendmail -t' --workers 4 --max-retries 5 --backoff 'exponential 1s 1h'\n\
     pq work mail bills --handlers handlers.toml --processes 2 --pid-file /run/pq.pid"
))]
pub(crate) struct Work {
    /// The queues' names.
    #[arg(required = true)]
    queues: Vec<String>,
    /// The command for every job, as a line for the shell.
    #[arg(long, value_name = "CMD", required_unless_present = "handlers")]
    exec: Option<String>,
    /// A TOML file that names a command, and options, for each task.
    ///
    /// `[tasks.send_mail]` with `exec = "a line for the shell"` or `exec = ["program", "word"]`, and if wanted
    /// `queue`, `max_retries`, `backoff`, `timeout` and `keep_history`.
    #[arg(long, value_name = "FILE", conflicts_with = "exec")]
    handlers: Option<PathBuf>,
    /// How many threads, each of which runs one command at a time.
    #[arg(long, value_name = "N", default_value = "1")]
    workers: NonZeroUsize,
    /// How many processes, each with so many threads. One that dies is started again.
    #[arg(long, value_name = "N", default_value = "1")]
    processes: NonZeroUsize,
    /// Keep the process's number in this file, which is removed at the end. A worker that lives is refused to be
    /// started again; a file that a dead one left is taken over.
    #[arg(long, value_name = "PATH")]
    pid_file: Option<PathBuf>,
    /// Stop as soon as no job is ready.
    #[arg(long)]
    burst: bool,
    /// Stop after so many jobs, in each process.
    #[arg(long, value_name = "N", conflicts_with = "burst")]
    jobs: Option<NonZeroU64>,
    /// How long a lease is; it is extended while the command runs. After a crash its jobs are back this much later.
    #[arg(long, value_name = "SPAN", default_value = "30s", value_parser = humantime::parse_duration)]
    lease: Duration,
    /// How long a command may run before its job has failed.
    #[arg(long, value_name = "SPAN", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// How often a failed job is tried again; what a task's call says goes before.
    #[arg(long, value_name = "N", default_value = "0")]
    max_retries: u32,
    /// How long a failed job waits: a span, `linear STEP MAX` or `exponential FIRST MAX`.
    #[arg(long, value_name = "BACKOFF", default_value = "30s")]
    backoff: Backoff,
    /// Keep jobs that are done in the archive.
    #[arg(long)]
    keep_history: bool,
}

impl Work {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        if self.exec.as_ref().is_some_and(|line| Exec::Shell(line.clone()).is_empty()) {
            return Err(Failure::Usage("--exec needs a command".to_owned()));
        }
        let supervisor = std::env::var(SUPERVISOR).ok().and_then(|pid| pid.parse().ok());
        // What can be known to be wrong is said before anything begins, and once for all processes.
        handlers::build(self, &global.detached()?)?;
        if supervisor.is_some() {
            return self.serve(global, supervisor);
        }
        let _pid_file = self.pid_file.as_deref().map(PidFile::take).transpose()?;
        if self.processes.get() > 1 {
            supervisor::supervise(global, self.processes.get())
        } else {
            self.serve(global, None)
        }
    }

    /// Works in this process.
    fn serve(&self, global: &Global, supervisor: Option<u32>) -> Result<ExitCode, Failure> {
        // Each thread has a connection, and so have the keeper of leases and whoever asks for the status.
        let pq =
            global.connect_with(u32::try_from(self.workers.get()).unwrap_or(u32::MAX).saturating_add(2))?;
        let mut worker = Worker::new(&pq).threads(self.workers.get()).lease(self.lease);
        if let Some(process) = supervisor {
            worker = worker.supervised_by(process);
        }
        for handler in handlers::build(self, &pq)? {
            worker = worker.serve(handler);
        }
        let control = worker.control();
        handle_signals(&control)?;
        if supervisor.is_some() {
            stop_with_supervisor(&control);
        }
        let report = match (self.burst, self.jobs) {
            (true, _) => worker.run_until_empty(),
            (false, Some(jobs)) => worker.run_jobs(jobs.get()),
            (false, None) => worker.run(),
        }?;
        let Report { done, failed, dead, cancelled, .. } = report;
        output::print_status(&format!("done {done}, failed {failed}, dead {dead}, cancelled {cancelled}"));
        Ok(ExitCode::SUCCESS)
    }
}

/// Stops the worker on signals, and prints its status.
fn handle_signals(control: &Control) -> Result<(), Failure> {
    let mut signals = handled_signals()?;
    let control = control.clone();
    std::thread::spawn(move || {
        for signal in signals.forever() {
            let mode = STOP_SIGNALS.iter().find(|(stop, _)| *stop == signal).map(|(_, mode)| *mode);
            match mode {
                None => output::print_status_lines(&worker_output::describe(&control.status())),
                // A second INT escalates.
                Some(mode) if signal == SIGINT && control.status().stopping >= Some(mode) => {
                    control.stop(StopMode::Abort);
                }
                Some(mode) => control.stop(mode),
            }
        }
    });
    Ok(())
}

/// The signals that a worker heeds, caught.
fn handled_signals() -> Result<Signals, Failure> {
    catch(STOP_SIGNALS.iter().map(|(signal, _)| *signal).chain(STATUS_SIGNALS.iter().copied()))
}

const STOP_SIGNALS: [(i32, StopMode); 3] =
    [(SIGHUP, StopMode::Drain), (SIGINT, StopMode::Finish), (SIGTERM, StopMode::Abort)];

/// The signals that ask for the status: USR1, and INFO where it exists.
#[cfg(any(target_os = "macos", target_os = "freebsd", target_os = "netbsd", target_os = "openbsd"))]
const STATUS_SIGNALS: &[i32] = &[SIGUSR1, signal_hook::consts::SIGINFO];
#[cfg(not(any(target_os = "macos", target_os = "freebsd", target_os = "netbsd", target_os = "openbsd")))]
const STATUS_SIGNALS: &[i32] = &[SIGUSR1];

/// Stops when the process that looks after this one is gone: it holds the other end of our standard input.
fn stop_with_supervisor(control: &Control) {
    let control = control.clone();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        control.stop(StopMode::Finish);
    });
}
