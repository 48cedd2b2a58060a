//! Letting time pass, for tests.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::MemoryStore;
use super::limits::Bucket;
use super::state::{Archived, Lease, Paused, Periodic, Registered, Row, Step};
use super::take::before;
use super::transaction::MemoryConn;
use crate::store::TimeTravel;
use crate::{AttemptEntry, AuditEntry, Error, JobRecord, StepRecord};

/// Nothing waits here: what other open transactions hold is moved too, and a rollback of theirs restores the times.
impl TimeTravel for MemoryStore {
    fn advance(&self, conn: &mut MemoryConn, duration: Duration) -> Result<(), Error> {
        let (now, back) = (Utc::now(), |at: DateTime<Utc>| before(at, duration));
        conn.operate(|state, open| {
            for row in state.rows.values().cloned().collect::<Vec<_>>() {
                let moved = |lease: Lease| Lease { until: back(lease.until), ..lease };
                let (lease, returned_from) = (row.lease.map(moved), row.returned_from.map(moved));
                // The commit notifies of a row that this transaction returns.
                let returned_by = if row.free_for(open.tx) { Some(open.tx) } else { row.returned_by };
                open.set(state, Row { job: older(&row.job, back), lease, returned_from, returned_by, ..row });
            }
            for archived in state.archive.values().cloned().collect::<Vec<_>>() {
                open.set_archived(state, Archived { job: older(&archived.job, back), ..archived });
            }
            for (queue, paused) in state.paused.clone() {
                open.set_paused(state, &queue, Some(Paused { at: back(paused.at), ..paused }));
            }
            for (key, bucket) in state.buckets.clone() {
                open.set_bucket(state, key, Bucket { at: back(bucket.at), ..bucket });
            }
            for (id, entry) in state.audit.clone() {
                open.set_audit(state, id, Some(AuditEntry { at: back(entry.at), ..entry }));
            }
            for (name, periodic) in state.crons.clone() {
                if periodic.held_by.is_some_and(|by| by != open.tx) {
                    continue;
                }
                let mut entry = periodic.entry;
                // A tick that has passed by more than a minute would be missed.
                entry.next_at = entry.next_at.map(|next| back(next).max(now).min(next));
                entry.last_at = entry.last_at.map(back);
                entry.paused_at = entry.paused_at.map(back);
                let retry_at = periodic.retry_at.map(back);
                open.set_cron(state, &name, Some(Periodic { entry, retry_at, ..periodic }));
            }
            for (key, step) in state.steps.clone() {
                let (at, until) = (back(step.record.at), step.record.until.map(back));
                let record = StepRecord { at, until, ..step.record };
                open.set_step(state, key, Some(Step { record, ..step }));
            }
            for Registered { started_at, heartbeat_at, .. } in state.workers.values_mut() {
                (*started_at, *heartbeat_at) = (back(*started_at), back(*heartbeat_at));
            }
            Ok(())
        })
    }
}

fn older(job: &JobRecord, back: impl Fn(DateTime<Utc>) -> DateTime<Utc>) -> JobRecord {
    JobRecord {
        enqueued_at: back(job.enqueued_at),
        schedule_at: job.schedule_at.map(&back),
        expected_at: job.expected_at.map(&back),
        ended_at: job.ended_at.map(&back),
        attempt_log: job
            .attempt_log
            .iter()
            .map(|entry| AttemptEntry { at: back(entry.at), ..entry.clone() })
            .collect(),
        ..job.clone()
    }
}
