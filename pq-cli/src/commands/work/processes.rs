//! Several processes, and the one that looks after them.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::SIGUSR1;

use super::{STATUS, SUPERVISOR, heeded};
use crate::failure::Failure;
use crate::global::Global;
use crate::{output, workers};

/// How often it is looked at whether the processes live.
const LOOK: Duration = Duration::from_millis(100);
/// The first and the longest pause before a process that died is started again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Who lives so long did not die of what it was told to do.
const STEADY: Duration = Duration::from_secs(10);

/// One of the processes.
struct Member {
    child: Option<Child>,
    begun: Instant,
    pause: Duration,
    /// When it is started again.
    again: Option<Instant>,
}

/// Starts the processes, starts those again that die, and passes signals on, until all have ended.
pub(super) fn supervise(global: &Global, count: usize) -> Result<ExitCode, Failure> {
    let signals = listen()?;
    let mut members = Vec::new();
    for _ in 0..count {
        members.push(Member::start()?);
    }
    let mut stopping = false;
    let mut code = ExitCode::SUCCESS;
    while members.iter().any(Member::is_there) {
        match signals.recv_timeout(LOOK) {
            Ok(signal) if STATUS.contains(&signal) => status(global, &members),
            Ok(signal) => {
                stopping = true;
                members.iter().for_each(|member| member.signal(signal));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK),
        }
        for member in &mut members {
            let Some(status) = member.ended()? else { continue };
            if let Some(hopeless) = hopeless(status, member.begun) {
                // The others are told the same.
                code = ExitCode::from(hopeless);
                stopping = true;
            } else if !status.success() && !stopping {
                output::complain(&format!("a worker process ended by {status}; another takes its place"));
                member.start_again_later();
            }
        }
        if stopping {
            members.iter_mut().for_each(|member| member.again = None);
        }
        for member in &mut members {
            member.start_if_due()?;
        }
    }
    Ok(code)
}

/// The exit code of a process that would fail again: its words or its table are wrong.
fn hopeless(status: ExitStatus, begun: Instant) -> Option<u8> {
    let code = status.code().and_then(|code| u8::try_from(code).ok())?;
    (matches!(code, 2 | 4) && begun.elapsed() < STEADY).then_some(code)
}

fn listen() -> Result<Receiver<i32>, Failure> {
    let mut signals = heeded()?;
    let (tell, told) = channel();
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if tell.send(signal).is_err() {
                return;
            }
        }
    });
    Ok(told)
}

/// One status for all: as they have told the store, or each by itself where that cannot be asked.
fn status(global: &Global, members: &[Member]) {
    let known = global.connect().and_then(|pq| Ok(pq.workers()?));
    match known {
        Ok(known) => {
            let ours: Vec<_> = known
                .iter()
                .filter(|worker| worker.supervisor == std::process::id() && workers::is_here(worker))
                .collect();
            output::report(&workers::describe_all(ours.iter().copied()));
        }
        Err(_) => members.iter().for_each(|member| member.signal(SIGUSR1)),
    }
}

impl Member {
    fn start() -> Result<Self, Failure> {
        Ok(Self { child: Some(spawn()?), begun: Instant::now(), pause: PAUSES.0, again: None })
    }

    /// Whether it runs, or will.
    fn is_there(&self) -> bool {
        self.child.is_some() || self.again.is_some()
    }

    fn signal(&self, number: i32) {
        let pid =
            self.child.as_ref().and_then(|child| i32::try_from(child.id()).ok()).and_then(Pid::from_raw);
        if let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(number)) {
            // One that has just ended needs no signal.
            let _ = kill_process(pid, signal);
        }
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let status = child.try_wait().map_err(|error| Failure::Io(error.to_string()))?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    fn start_again_later(&mut self) {
        if self.begun.elapsed() > STEADY {
            self.pause = PAUSES.0;
        }
        self.again = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(PAUSES.1);
    }

    fn start_if_due(&mut self) -> Result<(), Failure> {
        if self.again.is_some_and(|at| at <= Instant::now()) {
            self.again = None;
            self.child = Some(spawn()?);
            self.begun = Instant::now();
        }
        Ok(())
    }
}

/// The same command line in a process of its own. It is a process group of its own, so that a terminal's signals reach
/// it once, through us; and it ends when its standard input does, so that it does not outlive us.
fn spawn() -> Result<Child, Failure> {
    let failed = |error: io::Error| Failure::Io(format!("a worker process cannot be started: {error}"));
    Command::new(std::env::current_exe().map_err(failed)?)
        .args(std::env::args_os().skip(1))
        .env(SUPERVISOR, std::process::id().to_string())
        .stdin(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(failed)
}
