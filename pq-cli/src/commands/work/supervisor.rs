//! Supervises the worker processes of `pq work --processes`.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::SIGUSR1;

use super::liveness::{Liveness, Reports};
use super::{STATUS_SIGNALS, SUPERVISOR, handled_signals, systemd};
use crate::failure::Failure;
use crate::global::Global;
use crate::{output, worker_output};

/// Interval at which the processes are checked.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// First and longest pause before a process is restarted.
const RESTART_PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// A process that ends within this time has failed to start.
const STARTUP: Duration = Duration::from_secs(10);

/// A supervised process.
struct Process {
    child: Option<(Child, Reports)>,
    begun: Instant,
    pause: Duration,
    /// The time of the next restart.
    again: Option<Instant>,
}

/// Starts the processes, restarts those that fail and forwards signals, until all have ended.
pub(super) fn supervise(
    global: &Global,
    count: usize,
    liveness: &Arc<Liveness>,
) -> Result<ExitCode, Failure> {
    let signals = receive_signals()?;
    let mut processes = Vec::new();
    for _ in 0..count {
        processes.push(Process::start()?);
    }
    let noted = Arc::clone(liveness);
    systemd::start(move || noted.check());
    let mut stopping = false;
    let mut code = ExitCode::SUCCESS;
    while processes.iter().any(Process::is_active) {
        match signals.recv_timeout(POLL_INTERVAL) {
            Ok(signal) if STATUS_SIGNALS.contains(&signal) => status(global, &processes),
            Ok(signal) => {
                systemd::stopping();
                stopping = true;
                processes.iter().for_each(|process| process.signal(signal));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(POLL_INTERVAL),
        }
        for process in &mut processes {
            let Some(status) = process.ended()? else { continue };
            if let Some(fatal) = fatal_exit(status, process.begun) {
                // The other processes have the same configuration and exit by themselves.
                code = ExitCode::from(fatal);
                stopping = true;
            } else if !status.success() && !stopping {
                output::print_error(&format!("a worker process failed ({status}); restarting it"));
                process.schedule_restart();
            }
        }
        if stopping {
            processes.iter_mut().for_each(|process| process.again = None);
        }
        for process in &mut processes {
            process.restart_if_due()?;
        }
        liveness.note(processes.iter_mut().filter_map(Process::worked_at));
    }
    Ok(code)
}

/// Returns the exit code of a process that would fail again, because its options or its tables are wrong.
fn fatal_exit(status: ExitStatus, begun: Instant) -> Option<u8> {
    let code = status.code().and_then(|code| u8::try_from(code).ok())?;
    (matches!(code, 2 | 4) && begun.elapsed() < STARTUP).then_some(code)
}

fn receive_signals() -> Result<Receiver<i32>, Failure> {
    let mut signals = handled_signals()?;
    let (sender, received) = channel();
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if sender.send(signal).is_err() {
                return;
            }
        }
    });
    Ok(received)
}

/// Prints the status of all processes from their heartbeats, or makes each print its own without the database.
fn status(global: &Global, processes: &[Process]) {
    let known = global.connect().and_then(|pq| Ok(pq.workers()?));
    match known {
        Ok(known) => {
            let ours: Vec<_> = known
                .iter()
                .filter(|worker| worker.supervisor == std::process::id() && worker_output::is_here(worker))
                .collect();
            output::print_status_lines(&worker_output::describe_all(ours.iter().copied()));
        }
        Err(_) => processes.iter().for_each(|process| process.signal(SIGUSR1)),
    }
}

impl Process {
    fn start() -> Result<Self, Failure> {
        Ok(Self { child: Some(spawn()?), begun: Instant::now(), pause: RESTART_PAUSES.0, again: None })
    }

    /// Returns `true` if the process runs or will be restarted.
    fn is_active(&self) -> bool {
        self.child.is_some() || self.again.is_some()
    }

    fn signal(&self, number: i32) {
        let id = self.child.as_ref().map(|(child, _)| child.id());
        let pid = id.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(number)) {
            // An error means that the process has ended.
            let _ = kill_process(pid, signal);
        }
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        let Some((child, _)) = &mut self.child else { return Ok(None) };
        let status = child.try_wait().map_err(|error| Failure::Io(error.to_string()))?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    /// Returns the id of the process, and when it last worked, as far as is known.
    fn worked_at(&mut self) -> Option<(u32, Instant)> {
        self.child.as_mut().map(|(child, reports)| (child.id(), reports.worked_at()))
    }

    fn schedule_restart(&mut self) {
        if self.begun.elapsed() > STARTUP {
            self.pause = RESTART_PAUSES.0;
        }
        self.again = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(RESTART_PAUSES.1);
    }

    fn restart_if_due(&mut self) -> Result<(), Failure> {
        if self.again.is_some_and(|at| at <= Instant::now()) {
            self.again = None;
            self.child = Some(spawn()?);
            self.begun = Instant::now();
        }
        Ok(())
    }
}

/// Starts a process with the same command line.
///
/// The terminal signals its whole foreground process group, so the process gets a group of its own and receives each
/// signal once, from the supervisor. It ends when its standard input is closed, so it cannot outlive the supervisor.
fn spawn() -> Result<(Child, Reports), Failure> {
    let failed = |error: io::Error| Failure::Io(format!("cannot start a worker process: {error}"));
    let (reports, stdin) = Reports::new().map_err(failed)?;
    let child = Command::new(std::env::current_exe().map_err(failed)?)
        .args(std::env::args_os().skip(1))
        .env(SUPERVISOR, std::process::id().to_string())
        // Only the supervisor notifies systemd.
        .env_remove("NOTIFY_SOCKET")
        .stdin(stdin)
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    Ok((child, reports))
}
