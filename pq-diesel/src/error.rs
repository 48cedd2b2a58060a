//! What can go wrong on PostgreSQL.

use diesel::result::{DatabaseErrorKind, Error as DieselError};
use pq_core::StoreError;

use crate::table::Table;

/// What went wrong. No variant carries a payload or a password, so that errors can be logged as they
/// are; [`Error::Database`] shows the server's message without its detail, where row values stand.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The call itself was refused, before anything was sent.
    #[error(transparent)]
    Refused(#[from] pq_core::Error),
    /// A schema or a table cannot have this name.
    #[error("{name:?} cannot name a {what}: {reason}")]
    #[non_exhaustive]
    InvalidIdentifier {
        /// What it was to name.
        what: &'static str,
        /// The beginning of the name.
        name: String,
        /// Why not.
        reason: String,
    },
    /// The server could not be reached, or refused the connection.
    #[error("cannot connect to {server}: {reason}")]
    #[non_exhaustive]
    Unreachable {
        /// Where it was looked for, without its password.
        server: String,
        /// What libpq said, without the password.
        reason: String,
    },
    /// The table is not there, or lacks what a later migration makes.
    #[error(
        "there is no table {table} in this database, or not all of it; run `pq migrate`, or call `migrate()`"
    )]
    #[non_exhaustive]
    NotMigrated {
        /// The table that was looked for.
        table: String,
    },
    /// The server is not ready to serve: it is shutting down, starting up, or in recovery, or the
    /// connection was lost before anything could be changed.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// The connection was lost after a change was sent and before the server said that it was
    /// committed: it may have happened, or not.
    #[error("the connection was lost while the database committed, so the outcome is unknown: {0}")]
    OutcomeUnknown(String),
    /// The server's migrations cannot be run or undone.
    #[error("the schema cannot be migrated: {0}")]
    Migration(String),
    /// The schema has no migration of this version.
    #[error("there is no migration {version:?}; there are {known}, and 0 undoes all")]
    #[non_exhaustive]
    UnknownMigration {
        /// What was asked for.
        version: String,
        /// Those that there are.
        known: String,
    },
    /// Any other error of the database.
    #[error("the database refused: {0}")]
    Database(#[source] DieselError),
}

impl Error {
    /// An error of a statement about this table.
    pub(crate) fn of(table: &Table, error: DieselError) -> Self {
        match &error {
            // diesel keeps no SQLSTATE, but the name stands in the message in every language.
            DieselError::DatabaseError(DatabaseErrorKind::Unknown, info)
                if table.all_in_messages().any(|name| info.message().contains(&name)) =>
            {
                Self::NotMigrated { table: table.to_string() }
            }
            _ => Self::from(error),
        }
    }

    /// The error of a statement that was a transaction of its own and that may have been committed
    /// when its connection was lost.
    pub(crate) fn unless_committed(self) -> Self {
        match self {
            Self::Unavailable(reason) => Self::OutcomeUnknown(reason),
            other => other,
        }
    }

    /// The error of a statement that was a transaction of its own and that several calls shared, for another of
    /// them. `None` where nothing can have changed and it may be the fault of one call: the others try alone.
    pub(crate) fn for_another(&self) -> Option<Self> {
        match self {
            Self::Unavailable(reason) => Some(Self::Unavailable(reason.clone())),
            Self::OutcomeUnknown(reason) => Some(Self::OutcomeUnknown(reason.clone())),
            Self::Unreachable { server, reason } => {
                Some(Self::Unreachable { server: server.clone(), reason: reason.clone() })
            }
            // The answer cannot be read, so there was one.
            Self::Database(DieselError::DeserializationError(found)) => {
                Some(Self::Database(DieselError::DeserializationError(found.to_string().into())))
            }
            _ => None,
        }
    }
}

impl From<DieselError> for Error {
    fn from(error: DieselError) -> Self {
        match error {
            DieselError::DatabaseError(
                DatabaseErrorKind::ClosedConnection
                | DatabaseErrorKind::UnableToSendCommand
                | DatabaseErrorKind::ReadOnlyTransaction,
                info,
            ) => Self::Unavailable(info.message().trim().to_owned()),
            DieselError::BrokenTransactionManager => {
                Self::Unavailable("the connection broke inside a transaction".to_owned())
            }
            other => Self::Database(other),
        }
    }
}

impl StoreError for Error {
    fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Unreachable { .. } | Self::OutcomeUnknown(_))
    }

    fn is_conflict(&self) -> bool {
        matches!(self, Self::Database(DieselError::DatabaseError(DatabaseErrorKind::SerializationFailure, _)))
    }
}
