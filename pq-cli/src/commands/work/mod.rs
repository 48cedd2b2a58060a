//! `pq work`: a worker that runs shell commands.

mod handlers;
mod supervisor;

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
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
use crate::{exec, output, worker_output};

/// Environment variable that holds the pid of the supervisor, for a supervised process.
const SUPERVISOR: &str = "PQ_WORK_SUPERVISOR";

/// Work the jobs of one or more queues by running a command for each job.
///
/// The command reads the payload (or the arguments of a task) from standard input, and the metadata of the job from
/// PQ_ID, PQ_QUEUE, PQ_TASK, PQ_ATTEMPT, PQ_PRIORITY, PQ_ENQUEUED_AT, PQ_SCHEDULE_AT, PQ_EXPECTED_AT,
/// PQ_SERIALIZATION_KEY and PQ_UNIQUE_KEY. Exit status 0 completes the job. Any other exit status fails it, with the
/// end of standard error as the error. Jobs are held under a lease while their commands run. Queues have strict
/// priority in the order of the arguments: a queue is polled only while all earlier ones are empty.
///
/// Signals: HUP stops when no job is ready (drain). INT stops when the running jobs have ended (finish), and a second
/// INT aborts. TERM aborts: running commands get TERM, and KILL five seconds later, and their jobs are requeued. USR1
/// prints the status to standard error.
#[derive(Debug, clap::Args)]
#[command(after_help = examples(
    "pq work mail --exec 'sendmail -t' --workers 4 --max-retries 5 --backoff 'exponential 1s 1h'\n\
     pq work mail bills --handlers handlers.toml --processes 2 --pid-file /run/pq.pid"
))]
pub(crate) struct Work {
    /// Queue names.
    #[arg(required = true)]
    queues: Vec<String>,
    /// Shell command to run for every job.
    #[arg(long, value_name = "CMD", required_unless_present = "handlers")]
    exec: Option<String>,
    /// TOML file with a command and options for each task.
    ///
    /// A table such as `[tasks.send_mail]` holds `exec = "shell command"` or `exec = ["program", "argument"]`, and
    /// optionally `queue`, `max_retries`, `max_crashes`, `backoff`, `timeout` and `keep_history`.
    #[arg(long, value_name = "FILE", conflicts_with = "exec")]
    handlers: Option<PathBuf>,
    /// Number of threads. Each runs one command at a time.
    #[arg(long, value_name = "N", default_value = "1")]
    workers: NonZeroUsize,
    /// Number of processes with --workers threads each. A process that dies is restarted.
    #[arg(long, value_name = "N", default_value = "1")]
    processes: NonZeroUsize,
    /// Write the process id to this file, and remove it at the end. Fails if a running worker holds the file. A stale
    /// file is taken over.
    #[arg(long, value_name = "PATH")]
    pid_file: Option<PathBuf>,
    /// Stop when no job is ready.
    #[arg(long)]
    burst: bool,
    /// Stop after this number of jobs per process.
    #[arg(long, value_name = "N", conflicts_with = "burst")]
    jobs: Option<NonZeroU64>,
    /// Lease duration. The lease is extended while the command runs. After a crash, jobs are requeued when it expires.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    lease: Duration,
    /// Time limit of a stop, counted from the first signal. A tenth of it before the end, running commands get TERM. At
    /// the end they get KILL, the process ends, and their jobs are requeued when their leases expire. Without it a stop
    /// waits for the commands.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    stop_within: Option<Duration>,
    /// Time limit of a command. The job fails when it is exceeded.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// Maximum number of retries of a failed job. The options of a task's call take precedence.
    #[arg(long, value_name = "N", default_value = "0")]
    max_retries: u32,
    /// Number of times that the worker may die while it runs a job, before the job is dead. This uses up no retry.
    #[arg(long, value_name = "N", default_value = "3")]
    max_crashes: NonZeroU32,
    /// Delay before a retry: a duration, `linear STEP MAX` or `exponential FIRST MAX`.
    #[arg(long, value_name = "BACKOFF", default_value = "30s")]
    backoff: Backoff,
    /// Keep completed jobs in the archive.
    #[arg(long)]
    keep_history: bool,
}

impl Work {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        if self.exec.as_ref().is_some_and(|line| Exec::Shell(line.clone()).is_empty()) {
            return Err(Failure::Usage("invalid --exec: the command must not be empty".to_owned()));
        }
        let supervisor = std::env::var(SUPERVISOR).ok().and_then(|pid| pid.parse().ok());
        // Options are checked before a process is started, so that an error is printed once.
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

    /// Runs the worker in this process.
    fn serve(&self, global: &Global, supervisor: Option<u32>) -> Result<ExitCode, Failure> {
        // One connection per thread, two for the worker's other threads and one for status requests.
        let pq =
            global.connect_with(u32::try_from(self.workers.get()).unwrap_or(u32::MAX).saturating_add(3))?;
        let mut worker = Worker::new(&pq).threads(self.workers.get()).lease(self.lease);
        if let Some(process) = supervisor {
            worker = worker.supervised_by(process);
        }
        if let Some(limit) = self.stop_within {
            worker = worker.stop_within(limit);
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
        exec::kill_running();
        let Report { done, failed, dead, cancelled, .. } = report;
        output::print_status(&format!("done {done}, failed {failed}, dead {dead}, cancelled {cancelled}"));
        Ok(ExitCode::SUCCESS)
    }
}

/// Stops the worker or prints its status when a signal arrives.
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

/// Starts to catch the signals that a worker handles.
fn handled_signals() -> Result<Signals, Failure> {
    catch(STOP_SIGNALS.iter().map(|(signal, _)| *signal).chain(STATUS_SIGNALS.iter().copied()))
}

const STOP_SIGNALS: [(i32, StopMode); 3] =
    [(SIGHUP, StopMode::Drain), (SIGINT, StopMode::Finish), (SIGTERM, StopMode::Abort)];

/// The signals that print the status: USR1, and INFO on systems that have it.
#[cfg(any(target_os = "macos", target_os = "freebsd", target_os = "netbsd", target_os = "openbsd"))]
const STATUS_SIGNALS: &[i32] = &[SIGUSR1, signal_hook::consts::SIGINFO];
#[cfg(not(any(target_os = "macos", target_os = "freebsd", target_os = "netbsd", target_os = "openbsd")))]
const STATUS_SIGNALS: &[i32] = &[SIGUSR1];

/// Stops the worker when its supervisor ends, which closes the pipe of standard input.
fn stop_with_supervisor(control: &Control) {
    let control = control.clone();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        control.stop(StopMode::Finish);
    });
}
