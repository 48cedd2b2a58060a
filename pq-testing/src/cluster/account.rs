//! The user that runs the server's programs.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use std::os::unix::fs::MetadataExt;

use nix::unistd::{Uid, User};

use crate::error::Error;

/// The user that runs the server, because PostgreSQL refuses to run as root.
#[derive(Debug, Clone, Copy)]
enum Runs {
    AsWeDo,
    As { uid: u32, gid: u32 },
}

/// The user that the server runs as.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    runs: Runs,
    name: Option<String>,
}

impl Account {
    /// Returns `postgres` or else `nobody` under root, and otherwise the current user.
    pub(crate) fn find() -> Result<Self, Error> {
        if !Uid::effective().is_root() {
            return Ok(Self { runs: Runs::AsWeDo, name: None });
        }
        ["postgres", "nobody"]
            .iter()
            .filter_map(|name| User::from_name(name).ok().flatten())
            .find(|user| !user.uid.is_root())
            .map(|user| Self {
                runs: Runs::As { uid: user.uid.as_raw(), gid: user.gid.as_raw() },
                name: Some(user.name),
            })
            .ok_or(Error::NoAccount)
    }

    /// Returns the user's name, if it is not the current user.
    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Has the command run as this user.
    pub(crate) fn apply(&self, command: &mut Command) {
        if let Runs::As { uid, gid } = self.runs {
            command.uid(uid).gid(gid);
        }
    }

    /// Changes the owner of a file or directory to the user.
    pub(crate) fn give(&self, path: &Path) -> Result<(), Error> {
        match self.runs {
            Runs::AsWeDo => Ok(()),
            Runs::As { uid, gid } => std::os::unix::fs::chown(path, Some(uid), Some(gid))
                .map_err(Error::io(format!("change the owner of {}", path.display()))),
        }
    }

    /// The user's id.
    pub(crate) fn uid(&self) -> u32 {
        match self.runs {
            Runs::AsWeDo => Uid::effective().as_raw(),
            Runs::As { uid, .. } => uid,
        }
    }

    /// Returns `true` if the user can enter this directory.
    pub(crate) fn can_enter(&self, directory: &Path) -> bool {
        let Runs::As { uid, gid } = self.runs else {
            return true;
        };
        directory.ancestors().all(|part| {
            part.metadata().is_ok_and(|found| {
                let search = match (found.uid() == uid, found.gid() == gid) {
                    (true, _) => 0o100,
                    (false, true) => 0o010,
                    (false, false) => 0o001,
                };
                found.mode() & search != 0
            })
        })
    }
}
