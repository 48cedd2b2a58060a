//! The errors of the PostgreSQL store.

use std::time::Duration;

use diesel::result::{DatabaseErrorKind, Error as DieselError};
use pq_core::StoreError;

use crate::call_timer::take_cut_off;
use crate::connection::Failed;
use crate::grants::Role;
use crate::table::Table;

/// An error of a call on PostgreSQL.
///
/// Errors can be logged as they are: none contains a payload or a password. [`Error::Database`] shows the server's
/// message without its detail, which may contain values of rows.
///
/// Methods such as [`Error::is_unavailable`] answer the questions that a caller usually has, whichever variant it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The call was refused before anything was sent.
    #[error(transparent)]
    Refused(#[from] pq_core::Error),
    /// A schema, a table or a role cannot have this name.
    #[error("invalid {what} name {name:?}: {reason}")]
    #[non_exhaustive]
    InvalidIdentifier {
        /// The kind of object: `schema`, `table` or `role`.
        what: &'static str,
        /// The first characters of the name.
        name: String,
        /// The rule that the name violates.
        reason: String,
    },
    /// The server could not be reached, or refused the connection.
    #[error("cannot connect to {server}: {reason}")]
    #[non_exhaustive]
    Unreachable {
        /// The server and the database, without user and password.
        server: String,
        /// libpq's message, without passwords.
        reason: String,
    },
    /// All connections of the pool stayed in use.
    #[error(
        "cannot get a connection within {waited:?}: all {size} connections of the pool are in use; \
         enlarge the pool, or use fewer threads for each handle"
    )]
    #[non_exhaustive]
    PoolExhausted {
        /// The maximum number of connections in the pool.
        size: u32,
        /// The time that the call waited.
        waited: Duration,
    },
    /// The table does not exist, or lacks a migration.
    #[error(
        "cannot use the table {table}: it does not exist or is out of date; run `pq migrate` or call `migrate()`"
    )]
    #[non_exhaustive]
    NotMigrated {
        /// The table.
        table: String,
    },
    /// The server refuses changes: it is a standby, or its transactions are read-only by default. Nothing was changed.
    #[error("the server is read-only: {0}; connect to the primary")]
    ReadOnly(String),
    /// The server is shutting down or starting up, or the connection was lost before a change was sent.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// The connection was lost after a change was sent and before the commit was confirmed.
    ///
    /// The change may have been committed or not.
    #[error("the connection was lost during a commit, so its outcome is unknown: {0}")]
    OutcomeUnknown(String),
    /// The migrations cannot be run or reverted.
    #[error("cannot migrate: {0}")]
    Migration(String),
    /// The table has no migration of this version.
    #[error("unknown migration {version:?}; expected {known}, or 0 to revert all")]
    #[non_exhaustive]
    UnknownMigration {
        /// The requested version.
        version: String,
        /// The versions that exist.
        known: String,
    },
    /// The server did not grant privileges, because the session's role may not. Nothing was granted.
    #[error(
        "cannot grant {to:?} the privileges of a {kind}: {missing} are missing, first {first}; run it as the owner of the \
         schema and its tables"
    )]
    #[non_exhaustive]
    NotGranted {
        /// The role that should get them.
        to: String,
        /// The kind of process.
        kind: Role,
        /// The number of privileges that are missing.
        missing: usize,
        /// The first of them.
        first: String,
    },
    /// Any other error of the database.
    #[error("the database refused: {source}{}", remedy(source))]
    #[non_exhaustive]
    Database {
        /// The SQLSTATE, five characters. `None` if the error is not the server's. The error of a caller's own
        /// statement has none either, unless diesel knows its kind.
        sqlstate: Option<String>,
        /// diesel's error.
        source: DieselError,
    },
}

impl Error {
    /// Returns `true` if a wait ended because its [`pq_core::CancellationToken`] was cancelled.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        matches!(self, Self::Refused(refused) if refused.is_stopped())
    }

    /// Returns `true` if a job's lease had expired, or the job was settled already.
    ///
    /// Nothing was changed. In a transaction, roll back.
    #[must_use]
    pub fn is_lease_lost(&self) -> bool {
        matches!(self, Self::Refused(refused) if refused.is_lease_lost())
    }

    /// Returns `true` if the database could not be reached or was not ready, so that a later call may succeed.
    ///
    /// This includes an exhausted pool. If [`Error::is_outcome_unknown`] is also `true`, the change may have been made.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(
            self,
            Self::Unavailable(_)
                | Self::ReadOnly(_)
                | Self::Unreachable { .. }
                | Self::PoolExhausted { .. }
                | Self::OutcomeUnknown(_)
        )
    }

    /// Returns `true` if the transaction conflicted with another one, so that running it again may succeed.
    ///
    /// This is a serialization failure or a deadlock.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self.sqlstate(), Some("40001" | "40P01"))
            || matches!(self, Self::Database { source, .. } if is_conflict(source))
    }

    /// Returns `true` if the same call may succeed later, although nothing else changes.
    ///
    /// That is so if [`Error::is_unavailable`] or [`Error::is_conflict`] is `true`, and for a lock or statement
    /// timeout, a cancelled statement, and a lack of memory, disk space or connections.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        let passes = |sqlstate: &str| {
            matches!(sqlstate, "55P03" | "57014" | "57P01" | "57P02" | "57P03") || sqlstate.starts_with("53")
        };
        self.is_unavailable() || self.is_conflict() || self.sqlstate().is_some_and(passes)
    }

    /// Returns the error of a function of the schema that checks its arguments as the library does.
    pub(crate) fn into_refusal(self) -> Self {
        match self {
            Self::Database { sqlstate: Some(state), source: DieselError::DatabaseError(_, found) }
                if state == "22023" =>
            {
                pq_core::Error::InvalidSetting(found.message().to_owned()).into()
            }
            other => other,
        }
    }

    /// Returns the SQLSTATE of the server's error, if it is known.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Database { sqlstate, .. } => sqlstate.as_deref(),
            _ => None,
        }
    }

    /// Returns `true` if the connection was lost during a commit: the change may have been committed or not.
    #[must_use]
    pub fn is_outcome_unknown(&self) -> bool {
        matches!(self, Self::OutcomeUnknown(_))
    }

    /// Returns `true` if the table does not exist or lacks a migration.
    #[must_use]
    pub fn is_not_migrated(&self) -> bool {
        matches!(self, Self::NotMigrated { .. })
    }

    /// Returns the error for a server that cannot be reached. Neither text may contain a password.
    #[must_use]
    pub fn unreachable(server: &str, reason: &str) -> Self {
        Self::Unreachable { server: server.to_owned(), reason: reason.to_owned() }
    }

    /// Returns the error for a pool whose connections all stayed in use.
    #[must_use]
    pub fn pool_exhausted(size: u32, waited: Duration) -> Self {
        Self::PoolExhausted { size, waited }
    }

    /// Converts an error of a statement that used this table.
    pub(crate) fn of(table: &Table, error: Failed) -> Self {
        // A name in a trigger's statement has no position in this one.
        let is_of_this = matches!(
            &error.source,
            DieselError::DatabaseError(_, info) if info.statement_position().is_some()
        );
        match Self::from(error) {
            Self::Database { sqlstate: Some(sqlstate), .. } if is_of_this && is_missing(&sqlstate) => {
                Self::NotMigrated { table: table.to_string() }
            }
            other => other,
        }
    }

    /// Converts the error of a statement that was a transaction of its own.
    ///
    /// If its connection was lost, it may have been committed.
    #[must_use]
    pub fn unless_committed(self) -> Self {
        match self {
            Self::Unavailable(reason) => Self::OutcomeUnknown(reason),
            other => other,
        }
    }

    /// Copies the error of a statement that several calls shared, for another of these calls.
    ///
    /// Returns `None` if nothing was changed and one of the calls may be at fault: each call then runs alone.
    #[must_use]
    pub fn for_another(&self) -> Option<Self> {
        match self {
            Self::Unavailable(reason) => Some(Self::Unavailable(reason.clone())),
            Self::ReadOnly(reason) => Some(Self::ReadOnly(reason.clone())),
            Self::OutcomeUnknown(reason) => Some(Self::OutcomeUnknown(reason.clone())),
            Self::Unreachable { server, reason } => {
                Some(Self::Unreachable { server: server.clone(), reason: reason.clone() })
            }
            Self::PoolExhausted { size, waited } => {
                Some(Self::PoolExhausted { size: *size, waited: *waited })
            }
            // The server answered, so the statement was executed.
            Self::Database { source: DieselError::DeserializationError(found), .. } => {
                Some(DieselError::DeserializationError(found.to_string().into()).into())
            }
            _ => None,
        }
    }
}

/// Returns how to avoid an error, as the end of its text. SQL's words are the same in every language of the server.
fn remedy(error: &DieselError) -> &'static str {
    let is_prepare = |message: &str| message.contains("PREPARE") && message.contains("NOTIFY");
    match error {
        DieselError::DatabaseError(_, info) if is_prepare(info.message()) => {
            "; a put notifies, so put after `SET LOCAL pq.notify TO 'off'` in a transaction that will be prepared"
        }
        _ => "",
    }
}

/// Returns whether the SQLSTATE says that a schema, a table, a column or a function does not exist.
fn is_missing(sqlstate: &str) -> bool {
    matches!(sqlstate, "3F000" | "42P01" | "42703" | "42883")
}

/// Returns whether a statement failed because of a conflict with another transaction.
///
/// This works for errors of any origin, of which the SQLSTATE cannot be read. A deadlock is reported with the
/// processes in the detail, a hint to the server's log, and no position in the statement. The few other errors like
/// that are permanent, and to repeat one of them a few times does no harm.
pub(crate) fn is_conflict(error: &DieselError) -> bool {
    match error {
        DieselError::DatabaseError(DatabaseErrorKind::SerializationFailure, _) => true,
        DieselError::DatabaseError(DatabaseErrorKind::Unknown, info) => {
            info.details().is_some() && info.hint().is_some() && info.statement_position().is_none()
        }
        _ => false,
    }
}

impl From<DieselError> for Error {
    fn from(error: DieselError) -> Self {
        match error {
            DieselError::DatabaseError(DatabaseErrorKind::ReadOnlyTransaction, info) => {
                Self::ReadOnly(info.message().to_owned())
            }
            DieselError::DatabaseError(
                DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand,
                info,
            ) => Self::Unavailable(match take_cut_off() {
                Some(limit) => format!("the server did not answer within {limit:?}"),
                None => info.message().trim().to_owned(),
            }),
            DieselError::BrokenTransactionManager => {
                Self::Unavailable("the connection broke inside a transaction".to_owned())
            }
            source => {
                let is_conflict =
                    matches!(source, DieselError::DatabaseError(DatabaseErrorKind::SerializationFailure, _));
                Self::Database { sqlstate: is_conflict.then(|| "40001".to_owned()), source }
            }
        }
    }
}

impl From<Failed> for Error {
    fn from(Failed { sqlstate, source }: Failed) -> Self {
        match Self::from(source) {
            Self::Database { source, .. } => Self::Database { sqlstate, source },
            other => other,
        }
    }
}

impl StoreError for Error {
    fn is_unavailable(&self) -> bool {
        Self::is_unavailable(self)
    }

    fn is_conflict(&self) -> bool {
        Self::is_conflict(self)
    }

    fn is_passing(&self) -> bool {
        Self::is_passing(self)
    }

    fn is_read_only(&self) -> bool {
        matches!(self, Self::ReadOnly(_))
    }
}
