//! The reference store, which keeps jobs in the memory of this process.
//!
//! It is simple rather than fast. It shows what the store traits mean, property tests compare PostgreSQL with it, and
//! applications test their handlers with it without a database. Its jobs end with the process.
//!
//! Each operation locks the whole state. A change is made in place and marked with its transaction, which keeps a list
//! of the values before: a rollback restores them, and a commit removes the marks.
//!
//! It differs from a database in three ways. Other transactions see pauses and periodic jobs before they are
//! committed. Workers are registered even if the transaction is rolled back. A put with a unique key that another
//! open transaction has put or runs does not wait for that transaction.

mod admin;
mod archive;
mod audit;
mod connect;
mod counting;
mod explain;
mod follow_ups;
mod jobs;
mod limits;
mod notes;
mod operations;
mod put;
mod results;
mod schedules;
mod settle;
mod state;
mod steps;
mod take;
mod time_travel;
mod transaction;
mod turns;
mod workers;

use std::sync::Arc;

pub use self::state::Subscription;
use self::state::{Shared, Subscribed};
pub use self::transaction::MemoryConn;
use crate::WakeSignal;

/// Keeps jobs in memory. Clones share their jobs.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

impl MemoryStore {
    /// Creates an empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn subscribe_to(&self, subscribed: Subscribed, signal: &Arc<WakeSignal>) -> Subscription {
        let signal = Arc::downgrade(signal);
        self.shared.lock().signals.entry(subscribed.clone()).or_default().push(signal.clone());
        Subscription { shared: Arc::clone(&self.shared), subscribed, signal }
    }

    /// Opens another connection to the store, like that of another process.
    #[must_use]
    pub fn connect(&self) -> MemoryConn {
        MemoryConn::new(Arc::clone(&self.shared))
    }
}
