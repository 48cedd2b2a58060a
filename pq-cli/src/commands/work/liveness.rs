//! How a supervisor learns whether its processes work: each reports once a second on a socket, its standard input.
//!
//! A report is a byte, the seconds since the worker of the process last showed that it works. A process that is stopped
//! or hangs sends none.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pq_diesel::Control;

use super::listen::SILENT_FOR;

/// The interval between two reports.
const INTERVAL: Duration = Duration::from_secs(1);

/// Reports to the supervisor until it ends.
pub(super) fn report(control: &Control) {
    let control = control.clone();
    std::thread::spawn(move || {
        let Ok(socket) = std::io::stdin().as_fd().try_clone_to_owned() else { return };
        let mut socket = File::from(socket);
        loop {
            let silent = control.silent_for().unwrap_or_default().as_secs();
            if socket.write_all(&[u8::try_from(silent).unwrap_or(u8::MAX)]).is_err() {
                return;
            }
            std::thread::sleep(INTERVAL);
        }
    });
}

/// The supervisor's end of the socket of a process. The process ends when it is dropped.
pub(super) struct Reports {
    socket: UnixStream,
    /// When the process last worked, as far as is known.
    worked_at: Instant,
}

impl Reports {
    /// Returns the reports of a process, and its standard input.
    pub(super) fn new() -> std::io::Result<(Self, Stdio)> {
        let (socket, stdin) = UnixStream::pair()?;
        socket.set_nonblocking(true)?;
        Ok((Self { socket, worked_at: Instant::now() }, Stdio::from(OwnedFd::from(stdin))))
    }

    /// Reads what has arrived, and returns when the process last worked.
    pub(super) fn worked_at(&mut self) -> Instant {
        let mut bytes = [0; 64];
        loop {
            match self.socket.read(&mut bytes) {
                Ok(length @ 1..) => {
                    let silent = Duration::from_secs(bytes[length - 1].into());
                    self.worked_at = Instant::now().checked_sub(silent).unwrap_or(self.worked_at);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // No more has arrived, or the process has ended.
                _ => return self.worked_at,
            }
        }
    }
}

/// When the supervisor last looked, and when each of its processes last worked.
pub(super) struct Liveness(Mutex<(Instant, Vec<(u32, Instant)>)>);

impl Liveness {
    pub(super) fn new() -> Self {
        Self(Mutex::new((Instant::now(), Vec::new())))
    }

    /// Notes when the processes of these ids last worked.
    pub(super) fn note(&self, processes: impl Iterator<Item = (u32, Instant)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), processes.collect());
    }

    /// Returns the reason if the supervisor or one of its processes hangs.
    pub(super) fn check(&self) -> Result<(), String> {
        let noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (looked, processes) = &*noted;
        if looked.elapsed() > SILENT_FOR {
            return Err(format!("the supervisor has not looked for {} s", looked.elapsed().as_secs()));
        }
        match processes.iter().find(|(_, worked_at)| worked_at.elapsed() > SILENT_FOR) {
            Some((pid, worked_at)) => {
                let silent = worked_at.elapsed().as_secs();
                Err(format!("process {pid} has neither extended leases nor sent a heartbeat for {silent} s"))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_reports_nothing_or_a_long_silence_hangs() -> std::io::Result<()> {
        let (socket, mut process) = UnixStream::pair()?;
        socket.set_nonblocking(true)?;
        let now = Instant::now();
        let long_ago = now.checked_sub(SILENT_FOR * 2).ok_or(ErrorKind::Unsupported)?;
        let mut reports = Reports { socket, worked_at: long_ago };
        let liveness = Liveness::new();
        assert_eq!(liveness.check(), Ok(()));
        let mut check = || {
            liveness.note([(7, reports.worked_at())].into_iter());
            liveness.check().is_ok()
        };
        assert!(!check(), "it has reported nothing");
        process.write_all(&[0, 200])?;
        assert!(!check(), "the last report counts");
        process.write_all(&[200, 3])?;
        assert!(check());
        Ok(())
    }
}
