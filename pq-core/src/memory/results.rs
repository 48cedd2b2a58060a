//! Waiting for the end of a job.

use std::sync::Arc;

use chrono::Utc;

use super::MemoryStore;
use super::state::{Row, Subscribed, Subscription};
use super::transaction::MemoryConn;
use crate::store::Results;
use crate::{Error, JobId, JobRecord, JobState, WakeSignal};

impl Results for MemoryStore {
    fn look(&self, conn: &mut MemoryConn, id: JobId) -> Result<Option<JobRecord>, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            let row = state.rows.get(&id).filter(|row| row.seen_by(open.tx));
            let waits_or_runs = row.map(|row| {
                let state = match row.lease {
                    Some(_) => JobState::Running,
                    None if row.is_due(now) => JobState::Ready,
                    None => JobState::Scheduled,
                };
                JobRecord { state, ..row.job.clone() }
            });
            let archived = || state.archive.get(&id).filter(|archived| archived.seen_by(open.tx));
            Ok(waits_or_runs.or_else(|| archived().map(|archived| archived.job.clone())))
        })
    }

    fn mark_awaited(&self, conn: &mut MemoryConn, id: JobId) -> Result<bool, Error> {
        conn.operate(|state, open| {
            let is_free = |row: &&Row| {
                row.seen_by(open.tx)
                    && row.held_by.is_none()
                    && row.returned_by.is_none_or(|by| by == open.tx)
            };
            let Some(mut row) = state.rows.get(&id).filter(is_free).cloned() else { return Ok(false) };
            row.job.annotations = row.job.annotations.awaited();
            if row.lease.is_none() {
                row.returned_by = Some(open.tx);
            }
            open.set(state, row);
            Ok(true)
        })
    }

    fn is_in_transaction(&self, conn: &mut MemoryConn) -> Result<bool, Error> {
        Ok(conn.is_in_transaction())
    }

    fn subscribe_to_end(&self, id: JobId, signal: &Arc<WakeSignal>) -> Subscription {
        self.subscribe_to(Subscribed::End(id), signal)
    }
}
