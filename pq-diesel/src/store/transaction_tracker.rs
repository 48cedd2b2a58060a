//! Tracks the transactions that handles have begun, and the queues that each has put jobs into.
//!
//! Waiters of those queues are notified when the transaction has committed, because only then can they take the jobs.

use std::cell::RefCell;

use diesel::PgConnection;
use pq_core::QueueName;

use super::PgStore;

thread_local! {
    /// The open transactions of this thread, the innermost last.
    static OPEN: RefCell<Vec<Transaction>> = const { RefCell::new(Vec::new()) };
}

struct Transaction {
    store: *const PgStore,
    conn: *const PgConnection,
    queues: Vec<QueueName>,
}

/// Keeps a transaction tracked until it is dropped.
pub(super) struct Open(());

impl Open {
    pub(super) fn new(store: &PgStore, conn: &PgConnection) -> Self {
        OPEN.with_borrow_mut(|open| open.push(Transaction { store, conn, queues: Vec::new() }));
        Self(())
    }

    /// Removes and returns the queues that the transaction has put jobs into.
    pub(super) fn queues(&self) -> Vec<QueueName> {
        OPEN.with_borrow_mut(|open| {
            open.last_mut().map(|last| std::mem::take(&mut last.queues)).unwrap_or_default()
        })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        OPEN.with_borrow_mut(|open| drop(open.pop()));
    }
}

/// Records a put into the queue, and returns whether this store began the transaction of the connection.
///
/// If it did, the store also commits it, and can notify waiters afterwards.
pub(super) fn record_put(store: &PgStore, conn: &PgConnection, queue: &QueueName) -> bool {
    OPEN.with_borrow_mut(|open| {
        let is_ours = |one: &&mut Transaction| std::ptr::eq(one.store, store) && std::ptr::eq(one.conn, conn);
        let Some(transaction) = open.iter_mut().rev().find(is_ours) else { return false };
        if !transaction.queues.contains(queue) {
            transaction.queues.push(queue.clone());
        }
        true
    })
}
