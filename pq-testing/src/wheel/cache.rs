//! The directory that keeps unpacked wheels.

use std::env;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::Uid;

use crate::cluster::Account;

/// Returns a directory for unpacked wheels that the server's user can enter.
///
/// Tries the user's cache directory, then one of this user's in `/var/tmp` and in the temporary directory: under root
/// the server runs as another user, who cannot enter root's home.
pub(super) fn directory(account: &Account) -> Result<PathBuf, String> {
    let mut problems = Vec::new();
    for dir in candidates() {
        match usable(&dir, account) {
            Ok(()) => return Ok(dir),
            Err(reason) => problems.push(format!("{} {reason}", dir.display())),
        }
    }
    Err(format!("no directory can keep it: {}", problems.join(", ")))
}

fn candidates() -> Vec<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let own = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    let shared = format!("pq-postgres-{}", Uid::effective());
    own.map(|cache| cache.join("pq-testing"))
        .into_iter()
        .chain([PathBuf::from("/var/tmp").join(&shared), env::temp_dir().join(&shared)])
        .collect()
}

/// Creates the directory, or returns the reason why it cannot be used.
fn usable(dir: &Path, account: &Account) -> Result<(), String> {
    fs::create_dir_all(dir).map_err(|error| format!("cannot be created: {error}"))?;
    // Programs of another user must not be run: anybody can create a directory in `/var/tmp`.
    let found = fs::symlink_metadata(dir).map_err(|error| format!("cannot be read: {error}"))?;
    if !found.is_dir() || found.uid() != Uid::effective().as_raw() {
        return Err("belongs to another user".to_owned());
    }
    fs::set_permissions(dir, Permissions::from_mode(0o755))
        .map_err(|error| format!("cannot be made readable: {error}"))?;
    match account.can_enter(dir) {
        true => Ok(()),
        false => {
            Err(format!("cannot be entered by the server's user {}", account.name().unwrap_or_default()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_another_kind_is_refused() {
        let account = Account::find().expect("a user for the server");
        let dir = tempfile::tempdir().expect("a directory");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).expect("a link");
        assert!(usable(&link, &account).is_err_and(|reason| reason.contains("another user")));
    }
}
