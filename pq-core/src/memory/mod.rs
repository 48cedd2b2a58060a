//! The reference store: jobs in this process's memory.
//!
//! Small and obvious rather than fast. It says what the trait means, it is what the property tests
//! compare PostgreSQL with, and it lets applications test their handlers without a database. Nothing
//! in it outlives the process.
//!
//! What it does otherwise than a database: pauses and periodic jobs that a transaction has not committed
//! are seen by others, workers are noted whatever becomes of the transaction, and a put with a unique key that another transaction has
//! put and not committed does not wait for that, but keeps it.

mod admin;
mod archive;
mod connect;
mod jobs;
mod put;
mod schedules;
mod settle;
mod state;
mod take;
mod transaction;
mod workers;

use std::sync::Arc;

use self::state::Shared;
pub use self::state::Subscription;
pub use self::transaction::MemoryConn;

/// A store in memory. Clones share their jobs.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A connection to the store, such as another process would have.
    #[must_use]
    pub fn connect(&self) -> MemoryConn {
        MemoryConn::new(Arc::clone(&self.shared))
    }
}
