//! Pid files that are locked for as long as their process lives.
//!
//! A process that is killed leaves its pid file behind, and another process may get its pid. The kernel releases the
//! lock on the file however the process ends, so a file without a lock is stale.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

use crate::failure::Failure;

/// This process's pid file. Dropping it removes the file.
pub(crate) struct PidFile {
    path: PathBuf,
    _locked: File,
}

impl PidFile {
    /// Creates and locks the file, or takes over a stale one. Fails if a live process holds it.
    pub(crate) fn take(path: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| failure(path, &error);
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
                .map_err(failed)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(in_use(path, read(&mut file))),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
            // The previous holder may have removed the file after this process opened it and before it locked it.
            // The lock would then be on a file that no other process finds, so the file must be opened again.
            let is_there = fs::metadata(path)
                .is_ok_and(|there| file.metadata().is_ok_and(|ours| there.ino() == ours.ino()));
            if !is_there {
                continue;
            }
            if !is_pid_file(&mut file).map_err(failed)? {
                return Err(Failure::Usage(format!(
                    "cannot use the pid file {}: it exists and is no pid file; name another file",
                    path.display()
                )));
            }
            file.set_len(0).map_err(failed)?;
            file.rewind().map_err(failed)?;
            writeln!(file, "{}", std::process::id()).map_err(failed)?;
            return Ok(Self { path: path.to_owned(), _locked: file });
        }
    }

    /// Returns the process that holds the file, or `None` if the file is missing or stale.
    pub(crate) fn holder(path: &Path) -> Result<Option<Pid>, Failure> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failure(path, &error)),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => match read(&mut file) {
                Some(pid) => Ok(Some(pid)),
                None => {
                    Err(Failure::Io(format!("invalid pid file {}: it holds no process id", path.display())))
                }
            },
            Err(TryLockError::Error(error)) => Err(failure(path, &error)),
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Returns whether the file is a regular one that is empty or holds one process id.
fn is_pid_file(file: &mut File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    // A process id has at most ten digits.
    Ok(metadata.is_file() && (metadata.len() == 0 || metadata.len() < 16 && read(file).is_some()))
}

fn failure(path: &Path, error: &io::Error) -> Failure {
    Failure::Io(format!("cannot use the pid file {}: {error}", path.display()))
}

fn in_use(path: &Path, holder: Option<Pid>) -> Failure {
    let holder = holder.map_or_else(String::new, |pid| format!(" (process {})", pid.as_raw_nonzero()));
    Failure::Usage(format!(
        "cannot use the pid file {}: a running worker{holder} holds it; \
         stop it with `pq stop --pid-file`, or name another file",
        path.display()
    ))
}

fn read(file: &mut File) -> Option<Pid> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    Pid::from_raw(text.trim().parse().ok().filter(|id| *id > 0)?)
}
