//! Rows that the application inserts by its own statement.

use crate::{NewJob, QueueName};

use super::Store;

/// Describes jobs as rows, for applications that insert them by their own statements.
///
/// Optional: a store without statements does not implement it.
pub trait Rows: Store {
    /// A row that puts a job when it is inserted.
    type Row;

    /// Returns the row of a job. Nothing is sent.
    ///
    /// # Errors
    ///
    /// [`crate::Error::InvalidSetting`] for a job that a row cannot put, such as one with a unique key.
    fn row(&self, queue: &QueueName, job: NewJob) -> Result<Self::Row, Self::Error>;
}
