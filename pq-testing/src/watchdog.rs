//! The process that cleans up when ours ends without doing so.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::error::Error;

const SCRIPT: &str = include_str!("watchdog.sh");

/// A shell that waits for the other end of a pipe to close, which the kernel does however this
/// process ends.
///
/// The standard library opens our end close-on-exec, so that no child of ours keeps it open.
#[derive(Debug)]
pub(crate) struct Watchdog {
    shell: Child,
    /// `None` only while dropping.
    pipe: Option<ChildStdin>,
}

impl Watchdog {
    /// Starts watching over `directory`, which is removed at the end.
    pub(crate) fn over(directory: Option<&Path>) -> Result<Self, Error> {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "pq-testing-watchdog"])
            .args(directory)
            .stdin(Stdio::piped())
            // Not ours: whoever reads our output to its end would wait for the watchdog's.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            // A terminal's Ctrl-C goes to our group, and the watchdog has to outlive it.
            .process_group(0)
            .spawn()
            .map_err(Error::io("start the watchdog, /bin/sh"))?;
        let pipe = shell.stdin.take();
        Ok(Self { shell, pipe })
    }

    /// From now on there is this process to end.
    pub(crate) fn process(&mut self, pid: u32) -> Result<(), Error> {
        self.tell(&format!("process {pid}\n"))
    }

    /// From now on there is this container to remove, if there is one of that name by then.
    #[cfg(feature = "container")]
    pub(crate) fn container(&mut self, name: &str) -> Result<(), Error> {
        self.tell(&format!("container {name}\n"))
    }

    /// From now on there is nothing but the directory.
    pub(crate) fn nothing(&mut self) -> Result<(), Error> {
        self.tell("nothing\n")
    }

    fn tell(&mut self, line: &str) -> Result<(), Error> {
        match &mut self.pipe {
            // One write, which a pipe takes whole: the watchdog never sees half a line.
            Some(pipe) => pipe.write_all(line.as_bytes()).map_err(Error::io("write to the watchdog")),
            None => Ok(()),
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.pipe.take());
        if let Err(error) = self.shell.wait() {
            tracing::warn!(%error, "the watchdog could not be waited for");
        }
    }
}
