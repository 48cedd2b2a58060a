//! Acting as an operator: operations that are recorded in the audit log.

use std::sync::Arc;

use super::{Pq, Queue};
use crate::audit::{Action, check_actor};
use crate::{AuditEntry, Error, JobId, Store};

/// Returns the text of ids for the audit log: the first ones, and how many there are.
pub(super) fn describe_ids(ids: &[JobId]) -> String {
    const SHOWN: usize = 20;
    let shown: Vec<String> = ids.iter().take(SHOWN).map(ToString::to_string).collect();
    let rest = if ids.len() > SHOWN { format!(" and {} more", ids.len() - SHOWN) } else { String::new() };
    format!("jobs {}{rest}", shown.join(", "))
}

impl<S: Store> Pq<S> {
    /// Returns the same handle for an operator, whose operations are recorded in the audit log under this name.
    ///
    /// An operation is a call that manages queues, jobs, workers or periodic jobs. Its entry is written in its
    /// transaction, so it is recorded exactly if it took effect. One that changes nothing is not recorded, and
    /// neither are puts, takes and settled jobs. Maintenance deletes old entries ([`crate::Retention::audit`]).
    /// Default: no actor, and nothing is recorded.
    ///
    /// ```
    /// # use pq_core::{Pq, memory::MemoryStore};
    /// let pq = Pq::new(MemoryStore::new()).acting_as("alice")?;
    /// pq.queue::<()>("mail")?.pause()?;
    /// let entry = &pq.audit(None, 1)?[0].record;
    /// assert_eq!((entry.actor.as_str(), entry.action.as_str()), ("alice", "pause"));
    /// # Ok::<(), pq_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSetting`] unless the name has 1 to 200 bytes without NUL.
    pub fn acting_as(&self, actor: &str) -> Result<Self, Error> {
        check_actor(actor)?;
        Ok(Self { actor: Some(Arc::from(actor)), ..self.clone() })
    }

    /// Returns the operator whose operations the handle records, if there is one.
    #[must_use]
    pub fn actor(&self) -> Option<&str> {
        self.actor.as_deref()
    }

    /// Lists the audit log, the latest entry first: at most `count`.
    ///
    /// With `before`, lists only entries with lower ids. To page, pass the id of the last entry of the previous page.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn audit(&self, before: Option<i64>, count: usize) -> Result<Vec<AuditEntry>, S::Error> {
        self.store.with_connection(|conn| self.store.audit(conn, before, count))
    }

    /// Runs an operation on a connection of the handle, and records it if the handle has an actor.
    pub(super) fn recorded<R>(
        &self,
        action: &Action<'_>,
        count: impl FnOnce(&R) -> u64,
        work: impl FnOnce(&mut S::Conn) -> Result<R, S::Error>,
    ) -> Result<R, S::Error> {
        self.operation(|conn| self.recorded_on(conn, action, count, work))
    }

    /// Runs an operation on a connection of the handle: in a transaction, if its statements have a time limit.
    pub(super) fn operation<R>(
        &self,
        work: impl FnOnce(&mut S::Conn) -> Result<R, S::Error>,
    ) -> Result<R, S::Error> {
        self.store.with_connection(|conn| match self.operation_timeout {
            None => work(conn),
            limit => self.store.transaction(conn, |conn| {
                self.store.set_statement_timeout(conn, limit)?;
                work(conn)
            }),
        })
    }

    /// Runs an operation, and records it in the same transaction if the handle has an actor and `count` is not 0.
    pub(super) fn recorded_on<R>(
        &self,
        conn: &mut S::Conn,
        action: &Action<'_>,
        count: impl FnOnce(&R) -> u64,
        work: impl FnOnce(&mut S::Conn) -> Result<R, S::Error>,
    ) -> Result<R, S::Error> {
        let Some(actor) = &self.actor else { return work(conn) };
        self.store.transaction(conn, |conn| {
            let done = work(conn)?;
            let count = count(&done);
            if count > 0 {
                self.store.record(conn, &action.record(actor, count))?;
            }
            Ok(done)
        })
    }
}

impl<S: Store, T> Queue<S, T> {
    /// Returns an operation on this queue, for the audit log.
    pub(super) fn action<'a>(&'a self, name: &'a str) -> Action<'a> {
        Action::new(name).queue(self.name.as_str())
    }
}
