//! `pq work`: a worker that runs shell commands.

mod handlers;
mod init;
mod listen;
mod liveness;
mod supervisor;
mod systemd;

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::ArgGroup;
use pq_diesel::{Backoff, Control, Pq, StopMode, Worker};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use self::liveness::Liveness;
use super::examples;
use crate::exec::Exec;
use crate::failure::Failure;
use crate::global::Global;
use crate::pid_file::PidFile;
use crate::signals::catch;
use crate::{exec, output, values, worker_output};

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
/// Each command has a process group of its own. If the worker is killed, its commands are killed too, before their jobs
/// can run again. A process that leaves the group, as a daemon does, lives on. Commands do not inherit the environment
/// variables that may hold the password of the database: PQ_URL, TPQ_URL, TPQ_PASS, DATABASE_URL and PGPASSWORD.
///
/// Signals: HUP stops when no job is ready (drain). INT stops when the running jobs have ended (finish), and a second
/// INT aborts. TERM aborts: running commands get TERM, and KILL five seconds later, and their jobs are requeued. USR1
/// prints the status to standard error.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("commands").args(["exec", "handlers"]).required(true), after_help = examples(
    "pq work mail --exec 'sendmail -t' --workers 4 --max-retries 5 --backoff 'exponential 1s 1h'\n\
     pq work mail bills --handlers handlers.toml --processes 2 --pid-file /run/pq.pid\n\
     pq start mail -w 4 -q 2 -p /run/pq.pid --exec ./send"
))]
pub(crate) struct Work {
    /// Queue names, each as an argument of its own.
    #[arg(required = true)]
    queues: Vec<String>,
    /// Shell command to run for every job.
    #[arg(long, value_name = "CMD")]
    exec: Option<String>,
    /// TOML file with a command and options for each task.
    ///
    /// A table such as `[tasks.send_mail]` holds `exec = "shell command"` or `exec = ["program", "argument"]`, and
    /// optionally `queue`, `max_retries`, `max_crashes`, `backoff`, `timeout`,
    /// `keep_history`, `keep_result` and `keep_log`.
    #[arg(long, value_name = "FILE")]
    handlers: Option<PathBuf>,
    /// Number of threads. Each runs one command at a time.
    #[arg(long, short, value_name = "N", default_value = "1", value_parser = values::parallel)]
    workers: NonZeroUsize,
    /// Number of processes with --workers threads each. A process that dies is restarted.
    #[arg(long, short = 'q', value_name = "N", default_value = "1", value_parser = values::parallel)]
    processes: NonZeroUsize,
    /// Write the process id to this file, and remove it at the end. Fails if a running worker holds the file, or if
    /// it is no pid file. A stale file is taken over.
    #[arg(long, short, value_name = "PATH")]
    pid_file: Option<PathBuf>,
    /// Stop when no job is ready, or none may start because of limits.
    #[arg(long)]
    burst: bool,
    /// Stop after this number of jobs per process.
    #[arg(long, value_name = "N", conflicts_with = "burst", value_parser = values::positive::<NonZeroU64>)]
    jobs: Option<NonZeroU64>,
    /// Lease duration. The lease is extended while the command runs. After a crash, jobs are requeued when it expires.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = values::positive_duration)]
    lease: Duration,
    /// Time limit of a stop, counted from the first signal. A tenth of it before the end, running commands get TERM. At
    /// the end they get KILL, the process ends, and their jobs are requeued when their leases expire. Without it a stop
    /// waits for the commands.
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    stop_within: Option<Duration>,
    /// Time limit of a command. The job fails when it is exceeded.
    #[arg(long, value_name = "DURATION", value_parser = values::positive_duration)]
    timeout: Option<Duration>,
    /// Maximum number of retries of a failed job. The options of a task's call take precedence.
    #[arg(long, value_name = "N", default_value = "0", value_parser = values::whole)]
    max_retries: u32,
    /// Number of times that the worker may die while it runs a job, before the job is dead. This uses up no retry.
    #[arg(long, value_name = "N", default_value = "3", value_parser = values::positive::<NonZeroU32>)]
    max_crashes: NonZeroU32,
    /// Delay before a retry: a duration, `linear STEP MAX` or `exponential FIRST MAX`.
    #[arg(long, value_name = "BACKOFF", default_value = "30s")]
    backoff: Backoff,
    /// Serve /metrics, /healthz and /readyz at this address and port, without a login. With port 0 the system chooses
    /// one.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Keep completed jobs in the archive.
    #[arg(long)]
    keep_history: bool,
    /// Keep what a command prints to standard output as the result of its job, for `pq wait` and the archive: its
    /// JSON, a string if it is other text, or null if it is empty. If it prints more than 1 MiB, or no UTF-8, the job
    /// is done without a result, and the log has a warning.
    #[arg(long)]
    keep_result: bool,
    /// Add the lines that a command prints to standard error to the log of its job, for `pq logs`. The newest 64 KiB
    /// are kept. Implies --keep-history, because a log is kept as long as its job.
    #[arg(long)]
    keep_log: bool,
    /// Let commands inherit the environment variables that may hold the password of the database.
    #[arg(long)]
    pass_credentials: bool,
}

impl Work {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        if self.exec.as_ref().is_some_and(|line| Exec::Shell(line.clone()).is_empty()) {
            return Err(Failure::Usage("invalid --exec: the command must not be empty".to_owned()));
        }
        let supervisor = std::env::var(SUPERVISOR).ok().and_then(|pid| pid.parse().ok());
        // Options are checked before a process is started, so that an error is printed once.
        handlers::build(self, &global.detached()?)?;
        if init::is_needed() {
            return init::run();
        }
        if supervisor.is_some() {
            return self.serve(global, supervisor);
        }
        let _pid_file = self.pid_file.as_deref().map(PidFile::take).transpose()?;
        if self.processes.get() > 1 {
            let liveness = Arc::new(Liveness::new());
            if let Some(address) = self.listen {
                let (listener, noted) = (listen::bind(address)?, Arc::clone(&liveness));
                listen::start(listener, &global.connect_with(listen::CONNECTIONS)?, move || noted.check())?;
            }
            supervisor::supervise(global, self.processes.get(), &liveness)
        } else {
            self.serve(global, None)
        }
    }

    /// Explains how to name several queues, if an argument with a comma names a queue that has no job.
    fn warn_of_commas(&self, pq: &Pq) -> Result<(), Failure> {
        for name in self.queues.iter().filter(|name| name.contains(',')) {
            let counts = match pq.queue::<()>(name)?.counts() {
                Ok(counts) => counts,
                // The worker waits for the database, and this is only a hint.
                Err(_) => return Ok(()),
            };
            if counts.total() == 0 {
                output::print_status(&format!(
                    "queue {name:?} has no job; to work several queues, pass each as an argument of its own: pq work {}",
                    name.split(',').map(str::trim).collect::<Vec<_>>().join(" ")
                ));
            }
        }
        Ok(())
    }

    /// Runs the worker in this process.
    fn serve(&self, global: &Global, supervisor: Option<u32>) -> Result<ExitCode, Failure> {
        // The supervisor listens on behalf of its processes.
        let listener = self.listen.filter(|_| supervisor.is_none()).map(listen::bind).transpose()?;
        // One connection per thread, two for the worker's other threads and one for status requests.
        let others = 3 + listener.as_ref().map_or(0, |_| listen::CONNECTIONS);
        let pq = global
            .connect_with(u32::try_from(self.workers.get()).unwrap_or(u32::MAX).saturating_add(others))?;
        self.warn_of_commas(&pq)?;
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
            liveness::report(&control);
        }
        if let Some(listener) = listener {
            let control = control.clone();
            listen::start(listener, &pq, move || listen::check(&control))?;
        }
        if supervisor.is_none() {
            systemd::start(move || listen::check(&control));
        }
        let report = match (self.burst, self.jobs) {
            (true, _) => worker.run_until_empty(),
            (false, Some(jobs)) => worker.run_jobs(jobs.get()),
            (false, None) => worker.run(),
        }?;
        exec::kill_running();
        output::print_status(&worker_output::describe_report(&report));
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
                Some(mode) => {
                    systemd::stopping();
                    control.stop(mode);
                }
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

/// Stops the worker when its supervisor ends, which closes the socket of standard input.
fn stop_with_supervisor(control: &Control) {
    let control = control.clone();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        control.stop(StopMode::Finish);
    });
}
