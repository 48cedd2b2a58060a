//! The audit log.

use chrono::{DateTime, Utc};

use super::MemoryStore;
use super::state::State;
use super::transaction::{MemoryConn, Open};
use crate::store::Audit;
use crate::{AuditEntry, AuditRecord, Error};

impl Audit for MemoryStore {
    fn record(&self, conn: &mut MemoryConn, record: &AuditRecord) -> Result<i64, Error> {
        let at = Utc::now();
        conn.operate(|state, open| {
            let id = state.next_tx();
            open.set_audit(state, id, Some(AuditEntry { id, at, record: record.clone() }));
            Ok(id)
        })
    }

    fn add_to_record(&self, conn: &mut MemoryConn, entry: i64, count: u64) -> Result<(), Error> {
        conn.operate(|state, open| {
            if let Some(mut changed) = state.audit.get(&entry).cloned() {
                changed.record.count += count;
                open.set_audit(state, entry, Some(changed));
            }
            Ok(())
        })
    }

    fn audit(
        &self,
        conn: &mut MemoryConn,
        before: Option<i64>,
        count: usize,
    ) -> Result<Vec<AuditEntry>, Error> {
        conn.operate(|state, _| {
            let earlier = state.audit.values().rev().filter(|entry| before.is_none_or(|id| entry.id < id));
            Ok(earlier.take(count).cloned().collect())
        })
    }
}

/// Deletes entries that were recorded by `end`.
pub(super) fn prune(state: &mut State, open: &mut Open, end: DateTime<Utc>) {
    let old: Vec<i64> = state.audit.values().filter(|entry| entry.at <= end).map(|entry| entry.id).collect();
    old.into_iter().for_each(|id| open.set_audit(state, id, None));
}
