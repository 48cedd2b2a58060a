//! The hidden command `pq exec-guard`: kills the commands of a process that died.
//!
//! A worker that is killed cannot end the commands that it runs. They would go on beside the next attempt of their
//! jobs. So a process that runs commands starts one guard, in a process group of its own, and reports to it through a
//! pipe which process groups begin and end. The kernel closes the pipe when the process ends in whatever way. The
//! guard then kills the groups that are left.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Write};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, Command, ExitCode, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::failure::Failure;
use crate::signals::catch;

/// The name of the command.
const NAME: &str = "exec-guard";

/// The pipe to the guard of this process; `None` if the guard could not be started.
static GUARD: LazyLock<Mutex<Option<ChildStdin>>> = LazyLock::new(|| Mutex::new(start()));

/// Starts the guard if it does not run. A command that began before would outlive this process if it is killed
/// meanwhile.
pub(crate) fn prepare() {
    LazyLock::force(&GUARD);
}

/// Notes that a process group of a command has begun. It is killed if this process dies before [`ended`].
pub(crate) fn begun(group: u32) {
    send(&format!("+{group}\n"));
}

/// Notes that a command has ended.
pub(crate) fn ended(group: u32) {
    send(&format!("-{group}\n"));
}

fn send(line: &str) {
    let mut guard = GUARD.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pipe) = guard.as_mut()
        && let Err(error) = pipe.write_all(line.as_bytes())
    {
        tracing::error!(%error, "exec guard ended; commands will outlive this process if it is killed");
        *guard = None;
    }
}

fn start() -> Option<ChildStdin> {
    let started = std::env::current_exe().and_then(|program| {
        Command::new(program)
            .arg(NAME)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
    });
    match started {
        Ok(mut guard) => guard.stdin.take(),
        Err(error) => {
            tracing::error!(%error, "exec guard failed to start; commands will outlive this process if it is killed");
            None
        }
    }
}

/// Runs the guard until its standard input is closed.
pub(crate) fn run() -> Result<ExitCode, Failure> {
    // A service manager may signal all processes of a service. The guard must outlive the worker.
    let _ignored = catch([SIGHUP, SIGINT, SIGTERM])?;
    let mut groups = BTreeSet::new();
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        match (line.split_at_checked(1), line.get(1..).and_then(|group| group.parse::<i32>().ok())) {
            (Some(("+", _)), Some(group)) => drop(groups.insert(group)),
            (Some(("-", _)), Some(group)) => drop(groups.remove(&group)),
            _ => return Err(Failure::Usage("cannot run exec-guard: only `pq` starts it".to_owned())),
        }
    }
    for group in groups.into_iter().filter_map(Pid::from_raw) {
        // An error means that the process group has ended.
        let _ = kill_process_group(group, Signal::KILL);
    }
    Ok(ExitCode::SUCCESS)
}
