//! The transactions that handles have begun, and the queues that they have put into: whoever waits for those is
//! told once the commit is through, for only then is there anything to find.

use std::cell::RefCell;

use diesel::PgConnection;
use pq_core::QueueName;

use super::PgStore;

thread_local! {
    /// Those of this thread, each within the one before.
    static OPEN: RefCell<Vec<Transaction>> = const { RefCell::new(Vec::new()) };
}

struct Transaction {
    store: *const PgStore,
    conn: *const PgConnection,
    queues: Vec<QueueName>,
}

/// An open transaction; it is over when this is dropped.
pub(super) struct Open(());

impl Open {
    pub(super) fn new(store: &PgStore, conn: &PgConnection) -> Self {
        OPEN.with_borrow_mut(|open| open.push(Transaction { store, conn, queues: Vec::new() }));
        Self(())
    }

    /// The queues that were put into.
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

/// Notes a put into the queue, and says whether this store has begun the transaction that it is in, so that its
/// commit is the store's as well.
pub(super) fn note(store: &PgStore, conn: &PgConnection, queue: &QueueName) -> bool {
    OPEN.with_borrow_mut(|open| {
        let mut all = open.iter_mut().rev();
        let Some(ours) = all.find(|one| std::ptr::eq(one.store, store) && std::ptr::eq(one.conn, conn))
        else {
            return false;
        };
        if !ours.queues.contains(queue) {
            ours.queues.push(queue.clone());
        }
        true
    })
}
