//! Pid files. Whoever lives holds a lock on the file, which ends with the process however that ends; so a file that
//! a dead one left is told from a live one's, whoever has the number now.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::failure::Failure;

/// This process's pid file. It is removed when this is dropped.
pub(crate) struct PidFile {
    path: PathBuf,
    _locked: File,
}

impl PidFile {
    /// Makes the file, or takes over one that a dead process left. An error where a live one holds it.
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
            if !lock(&file).map_err(failed)? {
                let holder = read(&mut file)
                    .map_or_else(String::new, |pid| format!(", process {}", pid.as_raw_nonzero()));
                return Err(Failure::Usage(format!(
                    "{} is held by a worker that lives{holder}; stop it by `pq stop --pid-file`, or name another file",
                    path.display()
                )));
            }
            // The one before may have removed the file between our opening and our locking it.
            let is_there = fs::metadata(path)
                .is_ok_and(|there| file.metadata().is_ok_and(|ours| there.ino() == ours.ino()));
            if !is_there {
                continue;
            }
            file.set_len(0).map_err(failed)?;
            writeln!(file, "{}", std::process::id()).map_err(failed)?;
            return Ok(Self { path: path.to_owned(), _locked: file });
        }
    }

    /// The process that holds the file; none where nobody does.
    pub(crate) fn holder(path: &Path) -> Result<Option<Pid>, Failure> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failure(path, &error)),
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(None),
            Err(Errno::WOULDBLOCK) => match read(&mut file) {
                Some(pid) => Ok(Some(pid)),
                None => Err(Failure::Io(format!("{} holds no process's number", path.display()))),
            },
            Err(error) => Err(failure(path, &error.into())),
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn failure(path: &Path, error: &io::Error) -> Failure {
    Failure::Io(format!("the pid file {} cannot be used: {error}", path.display()))
}

fn lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn read(file: &mut File) -> Option<Pid> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    Pid::from_raw(text.trim().parse().ok()?)
}
