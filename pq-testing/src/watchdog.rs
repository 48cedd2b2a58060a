//! The process that cleans up if this one ends without doing so.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::error::Error;

const SCRIPT: &str = include_str!("watchdog.sh");

/// Runs a shell that waits until this process's end of a pipe closes.
///
/// The kernel closes it however this process ends. The standard library opens it close-on-exec, so no child
/// process keeps it open.
#[derive(Debug)]
pub(crate) struct Watchdog {
    shell: Child,
    /// `None` only while dropping.
    pipe: Option<ChildStdin>,
}

impl Watchdog {
    /// Starts a watchdog that removes `directory` at the end.
    pub(crate) fn over(directory: Option<&Path>) -> Result<Self, Error> {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "pq-testing-watchdog"])
            .args(directory)
            .stdin(Stdio::piped())
            // If the watchdog inherited the output, a reader such as `tee` would wait for the watchdog to end.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            // A terminal sends Ctrl-C to the process group, and the watchdog must survive it.
            .process_group(0)
            .spawn()
            .map_err(Error::io("start the watchdog, /bin/sh"))?;
        let pipe = shell.stdin.take();
        Ok(Self { shell, pipe })
    }

    /// Has the watchdog end this process.
    pub(crate) fn process(&mut self, pid: u32) -> Result<(), Error> {
        self.send(&format!("process {pid}\n"))
    }

    /// Has the watchdog remove this container, if it exists by then.
    #[cfg(feature = "container")]
    pub(crate) fn container(&mut self, name: &str) -> Result<(), Error> {
        self.send(&format!("container {name}\n"))
    }

    /// Has the watchdog remove only the directory.
    pub(crate) fn nothing(&mut self) -> Result<(), Error> {
        self.send("nothing\n")
    }

    fn send(&mut self, line: &str) -> Result<(), Error> {
        match &mut self.pipe {
            // One write to a pipe is atomic, so the watchdog never reads half a line.
            Some(pipe) => pipe.write_all(line.as_bytes()).map_err(Error::io("write to the watchdog")),
            None => Ok(()),
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.pipe.take());
        if let Err(error) = self.shell.wait() {
            tracing::warn!(%error, "cannot wait for the watchdog");
        }
    }
}
