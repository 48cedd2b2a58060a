//! The audit log.

use super::Connect;
use crate::{AuditEntry, AuditRecord};

/// Keeps a record of the operations of operators.
pub trait Audit: Connect {
    /// Adds an entry and returns its id. Part of the transaction of `conn`, as the operation is.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn record(&self, conn: &mut Self::Conn, record: &AuditRecord) -> Result<i64, Self::Error>;

    /// Adds to the count of an entry: for an operation of several transactions.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn add_to_record(&self, conn: &mut Self::Conn, entry: i64, count: u64) -> Result<(), Self::Error>;

    /// Returns up to `count` entries, the latest first. With `before`, only those with lower ids.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn audit(
        &self,
        conn: &mut Self::Conn,
        before: Option<i64>,
        count: usize,
    ) -> Result<Vec<AuditEntry>, Self::Error>;
}
