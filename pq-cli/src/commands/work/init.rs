//! The first process of a container: it runs the worker as a child, and reaps the processes that lose their parents.
//!
//! The kernel makes process 1 the parent of every orphan in its namespace. An orphan that has ended occupies an entry
//! of the process table until its parent asks for its status, and the worker asks only for those of its own commands.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};

use super::handled_signals;
use crate::failure::Failure;

/// Environment variable of the child, which does the work.
const CHILD: &str = "PQ_WORK_CHILD";

/// Returns whether this process must do the work of process 1.
pub(super) fn is_needed() -> bool {
    std::process::id() == 1 && std::env::var_os(CHILD).is_none()
}

/// Runs the same command line as a child, forwards signals to it, and reaps orphans until it has ended.
pub(super) fn run() -> Result<ExitCode, Failure> {
    let failed = |error: io::Error| Failure::Io(format!("cannot start the worker: {error}"));
    let mut signals = handled_signals()?;
    let child = Command::new(std::env::current_exe().map_err(failed)?)
        .args(std::env::args_os().skip(1))
        .env(CHILD, "1")
        // A terminal would send its signals to both, and a second one aborts.
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(signal)) {
                // An error means that the worker has ended.
                let _ = kill_process(pid, signal);
            }
        }
    });
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((ended, status))) if Some(ended) == pid => {
                let killed = status.terminating_signal().map(|signal| 128 + signal);
                let code = status.exit_status().or(killed).and_then(|code| u8::try_from(code).ok());
                return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Failure::Io(format!("cannot wait for the worker: {error}"))),
        }
    }
}
