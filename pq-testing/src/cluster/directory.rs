//! A cluster's directory, and the removal of stale ones.

use std::env;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use tempfile::TempDir;

use super::account::Account;
use crate::error::Error;
use crate::owner::Owner;

const PREFIX: &str = "pq-testing-";

/// The longest parent directory: the path of a Unix socket must fit in 103 bytes (107 on Linux), and
/// it is `PARENT/pq-testing-XXXXXX/.s.PGSQL.65535`.
const LONGEST_PARENT: usize = 103 - "/pq-testing-XXXXXX/.s.PGSQL.65535".len();

/// Removes its directory when dropped.
///
/// Only the server's user can enter it. The file `owner` names the process that it belongs to.
#[derive(Debug)]
pub(crate) struct Directory {
    dir: TempDir,
}

impl Directory {
    /// Creates a directory in `parent`, or in the system's temporary directory, for the server's user.
    ///
    /// Removes stale directories beside it first.
    pub(crate) fn create(parent: Option<&Path>, account: &Account) -> Result<Self, Error> {
        let parent = choose_parent(parent, account)?;
        remove_stale(&parent, account);
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&parent)
            .map_err(Error::io(format!("make a directory in {}", parent.display())))?;
        let directory = Self { dir };
        let owner = directory.path().join("owner");
        fs::write(&owner, Owner::current().to_string())
            .map_err(Error::io(format!("write {}", owner.display())))?;
        account.give(directory.path())?;
        Ok(directory)
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path().join("log")
    }
}

fn choose_parent(named: Option<&Path>, account: &Account) -> Result<PathBuf, Error> {
    let tried: Vec<PathBuf> = match named {
        Some(dir) => vec![dir.to_path_buf()],
        None => vec![env::temp_dir(), "/tmp".into(), "/var/tmp".into()],
    };
    let mut problem = Error::NoAccount;
    for dir in tried {
        let refused = |reason: String| Error::Directory { dir: dir.clone(), reason };
        problem = match fs::canonicalize(&dir) {
            Err(error) => refused(error.to_string()),
            Ok(real) if real.as_os_str().as_bytes().len() > LONGEST_PARENT => refused(format!(
                "its path must have at most {LONGEST_PARENT} bytes, because of the Unix socket"
            )),
            Ok(real) if !account.can_enter(&real) => refused(format!(
                "the server's user, {}, cannot enter it",
                account.name().unwrap_or("the current user")
            )),
            Ok(real) => return Ok(real),
        };
    }
    Err(problem)
}

/// Removes the clusters in `parent` whose owners have ended, and their servers.
///
/// Leaves a directory alone if it may belong to others, if its owner may run, or if it cannot be removed.
fn remove_stale(parent: &Path, account: &Account) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let ours = entry.file_name().as_bytes().starts_with(PREFIX.as_bytes());
        if ours && is_stale(&entry.path(), account) {
            remove(&entry.path());
        }
    }
}

fn is_stale(dir: &Path, account: &Account) -> bool {
    let me = Uid::effective().as_raw();
    // Links are not followed, because any user can create one in a shared directory.
    let Ok(found) = fs::symlink_metadata(dir) else {
        return false;
    };
    if !found.is_dir() || ![me, account.uid()].contains(&found.uid()) {
        return false;
    }
    let file = dir.join("owner");
    match fs::symlink_metadata(&file) {
        Ok(owner) if owner.is_file() && owner.uid() == me => fs::read_to_string(&file)
            .ok()
            .and_then(|text| text.parse::<Owner>().ok())
            .is_some_and(|owner| owner.is_gone()),
        Ok(_) => false,
        // It was just created, or its owner was killed before it wrote the file.
        Err(_) => older_than_an_hour(&found),
    }
}

fn older_than_an_hour(found: &fs::Metadata) -> bool {
    let age = found.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
    age.is_some_and(|age| age > Duration::from_secs(3600))
}

fn remove(dir: &Path) {
    if let Some(postmaster) = postmaster_of(&dir.join("data")) {
        stop(postmaster);
    }
    match fs::remove_dir_all(dir) {
        Ok(()) => tracing::info!(dir = %dir.display(), "removed a stale cluster"),
        Err(error) => {
            tracing::debug!(dir = %dir.display(), %error, "cannot remove a stale cluster");
        }
    }
}

/// Returns the server that runs on this data, if `/proc` confirms it.
///
/// Without `/proc`, the server ends by itself within a minute after its directory was removed.
fn postmaster_of(data: &Path) -> Option<Pid> {
    let file = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let pid: i32 = file.lines().next()?.trim().parse().ok()?;
    let works_in = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    (pid > 1 && works_in == data).then(|| Pid::from_raw(pid))
}

fn stop(postmaster: Pid) {
    let deadline = Instant::now() + Duration::from_secs(8);
    let mut sent = kill(postmaster, Signal::SIGQUIT);
    while sent.is_ok() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
        sent = kill(postmaster, None);
    }
    if sent.is_ok() {
        tracing::debug!(pid = postmaster.as_raw(), "a stale server did not end");
    }
}
