//! One run of the server, from its start to its end.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::directory::Directory;
use super::initdb::last_lines;
use crate::conninfo::Conninfo;
use crate::error::Error;

const POLL: Duration = Duration::from_millis(15);

/// Selects how [`Server::stop`](crate::Server::stop) stops a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stop {
    /// Ends the sessions and writes a checkpoint, like a regular restart.
    Fast,
    /// Ends at once. The next start recovers from the write-ahead log.
    Immediate,
    /// Kills the main process with SIGKILL. Its sessions end when they notice.
    Kill,
}

impl Stop {
    fn signal(self) -> Signal {
        match self {
            Self::Fast => Signal::SIGINT,
            Self::Immediate => Signal::SIGQUIT,
            Self::Kill => Signal::SIGKILL,
        }
    }
}

/// The server's main process.
#[derive(Debug)]
pub(super) struct Postmaster {
    child: Child,
}

/// The reason why a start failed.
pub(super) enum Failure {
    /// The port or the memory of the previous run is not free yet.
    Occupied(Error),
    Other(Error),
}

impl Postmaster {
    /// Starts the command, calls `begun` with the process id, and waits until the server answers.
    pub(super) fn start(
        mut command: Command,
        directory: &Directory,
        conninfo: &Conninfo,
        timeout: Duration,
        begun: impl FnOnce(u32) -> Result<(), Error>,
    ) -> Result<Self, Failure> {
        let (log, written) = open_log(directory).map_err(Failure::Other)?;
        let to_stderr = log.try_clone().map_err(Error::io("open the server's log"));
        let child = command
            .stdout(Stdio::from(log))
            .stderr(Stdio::from(to_stderr.map_err(Failure::Other)?))
            .spawn()
            .map_err(Error::io("run postgres"))
            .map_err(Failure::Other)?;
        let mut postmaster = Self { child };
        let ready = match begun(postmaster.child.id()) {
            Ok(()) => postmaster.wait_until_ready(directory, conninfo, timeout, written),
            Err(error) => Err(Failure::Other(error)),
        };
        match ready {
            Ok(()) => Ok(postmaster),
            Err(failure) => {
                postmaster.stop(Stop::Immediate);
                Err(failure)
            }
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns `true` while the process exists.
    pub(super) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends the server and waits for its end. Kills it after 30 s.
    pub(super) fn stop(mut self, how: Stop) {
        self.signal(how);
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.runs() && Instant::now() < deadline {
            thread::sleep(POLL);
        }
        if self.runs() {
            tracing::warn!(pid = self.pid(), ?how, "server did not stop; killing it");
            self.signal(Stop::Kill);
        }
        if let Err(error) = self.child.wait() {
            tracing::warn!(pid = self.pid(), %error, "cannot wait for the server");
        }
    }

    fn signal(&mut self, how: Stop) {
        // The process id cannot be reused before the process is reaped.
        if let (true, Ok(pid)) = (self.runs(), i32::try_from(self.pid())) {
            let pid = Pid::from_raw(pid);
            let sent = kill(pid, how.signal());
            // A test may have paused the process, and a paused process handles no signal except SIGKILL.
            let continued = kill(pid, Signal::SIGCONT);
            if let Err(error) = sent.and(continued) {
                tracing::debug!(%pid, %error, "cannot signal the server");
            }
        }
    }

    fn wait_until_ready(
        &mut self,
        directory: &Directory,
        conninfo: &Conninfo,
        timeout: Duration,
        written: u64,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + timeout;
        let mut seen = "it is not ready".to_owned();
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(exited(status, &read_log(directory, written)));
            }
            if self.says_ready(directory) {
                match conninfo.connect("the private cluster") {
                    Ok(_) => return Ok(()),
                    Err(error) => seen = error.to_string(),
                }
            }
            thread::sleep(POLL);
        }
        Err(Failure::Other(Error::Timeout { what: "starting the server", after: timeout, detail: seen }))
    }

    /// Reads the server's state from the last line of `postmaster.pid`, as `pg_ctl` does.
    fn says_ready(&self, directory: &Directory) -> bool {
        let file = fs::read_to_string(directory.data().join("postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = file.lines().map(str::trim).collect();
        lines.first() == Some(&self.pid().to_string().as_str()) && lines.get(7) == Some(&"ready")
    }
}

/// The log, and its length before this run.
fn open_log(directory: &Directory) -> Result<(File, u64), Error> {
    let path = directory.log();
    let open = || {
        let log = File::options().create(true).append(true).open(&path)?;
        let written = log.metadata()?.len();
        Ok((log, written))
    };
    open().map_err(Error::io(format!("open {}", path.display())))
}

fn read_log(directory: &Directory, from: u64) -> Vec<u8> {
    let mut log = Vec::new();
    let read = File::open(directory.log()).and_then(|mut file| {
        file.seek(SeekFrom::Start(from))?;
        file.read_to_end(&mut log)
    });
    match read {
        Ok(_) => log,
        Err(error) => format!("(unreadable: {error})").into_bytes(),
    }
}

fn exited(status: ExitStatus, log: &[u8]) -> Failure {
    let text = String::from_utf8_lossy(log);
    let occupied = ["could not bind", "shared memory block", "could not create any TCP/IP sockets"]
        .iter()
        .any(|sign| text.contains(sign));
    let error = Error::Exited { status: status.to_string(), log: last_lines(log) };
    if occupied { Failure::Occupied(error) } else { Failure::Other(error) }
}
