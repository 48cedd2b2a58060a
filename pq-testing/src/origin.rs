//! Where a server came from, for people to read.

use std::fmt;
use std::path::PathBuf;

/// What kind of server this is and where it came from; see [`Server::origin`](crate::Server::origin).
///
/// Its `Display` is one line for a log or a report, without anything secret:
/// `private cluster, PostgreSQL 15.18, binaries in /usr/lib/postgresql/15/bin`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// A server that was named, not started by us.
    Url {
        /// Its version.
        version: String,
        /// What named it: `Options::url` or `PQ_TEST_DATABASE_URL`.
        from: &'static str,
    },
    /// A cluster of our own, from programs on this machine.
    PrivateCluster {
        /// Its version.
        version: String,
        /// The directory of the programs.
        bin_dir: PathBuf,
        /// The user it runs as, if that is not the one that we run as.
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
                match user {
                    Some(user) => write!(f, ", run as {user}"),
                    None => Ok(()),
                }
            }
            Self::Container { version, image } => {
                write!(f, "container of {image}, PostgreSQL {version}")
            }
        }
    }
}
