//! Operations on all jobs that a filter selects.

use chrono::{DateTime, Utc};

use super::state::{Archived, Lease, Row, State};
use super::transaction::{MemoryConn, Open};
use super::{MemoryStore, admin, archive, counting, follow_ups, put};
use crate::store::{Batch, Operations, Source, Wake};
use crate::{Error, Filter, JobRecord, JobState, Operation, WORKFLOWS};

impl Operations for MemoryStore {
    fn tally(&self, conn: &mut MemoryConn, filter: &Filter, limit: usize) -> Result<u64, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            let jobs = admin::list(state, open.tx, now);
            Ok(jobs.iter().filter(|job| filter.matches(job)).take(limit).count() as u64)
        })
    }

    fn apply(
        &self,
        conn: &mut MemoryConn,
        operation: &Operation,
        filter: &Filter,
        source: Source,
        after: i64,
        count: usize,
    ) -> Result<Batch, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            let mut jobs = admin::list(state, open.tx, now);
            jobs.retain(|job| Source::of(job.state) == source && job.id.0 > after && filter.matches(job));
            jobs.sort_by_key(|job| job.id);
            jobs.truncate(count);
            let mut batch =
                Batch { selected: jobs.len() as u64, changed: 0, last: jobs.last().map(|job| job.id.0) };
            for job in &jobs {
                let changed = match source {
                    Source::Queue => change_waiting(state, open, operation, job, now),
                    Source::Leases => request_cancellation(state, open, job),
                    Source::Archive => change_archived(state, open, operation, job),
                };
                batch.changed += u64::from(changed);
            }
            Ok(batch)
        })
    }
}

fn change_waiting(
    state: &mut State,
    open: &mut Open,
    operation: &Operation,
    job: &JobRecord,
    now: DateTime<Utc>,
) -> bool {
    let free = state.rows.get(&job.id).filter(|row| row.free_for(open.tx));
    let Some(mut row) = free.cloned() else { return false };
    match operation {
        Operation::Cancel if row.job.queue.as_str() == WORKFLOWS => {
            return follow_ups::wake(state, open, job.id, Some(Wake::Cancel), None);
        }
        Operation::Cancel => {
            counting::count(open, &row.job, |counters| counters.cancelled += 1);
            archive::archive(state, open, row, JobState::Cancelled, now);
            return true;
        }
        // Its jobs would stay.
        Operation::Delete if row.job.queue.as_str() == WORKFLOWS => return false,
        Operation::Delete => {
            open.set(state, Row { held_by: Some(open.tx), ended: true, ..row });
            return true;
        }
        Operation::Retry => return false,
        Operation::Move { to } => {
            let unique_key = row.job.unique_key.as_ref();
            if *to == row.job.queue
                || unique_key.is_some_and(|key| state.unique_job(to, key, open.tx).is_some())
            {
                return false;
            }
            row.job.queue = to.clone();
        }
        Operation::RunNow => row.job.schedule_at = None,
        Operation::Reschedule { to } => row.job.schedule_at = Some(put::instant(*to, now)),
        Operation::SetPriority { to } => row.job.priority = *to,
        Operation::EditPayload { from, to } => {
            if row.job.payload != *from {
                return false;
            }
            row.job.payload = to.clone();
        }
    }
    // Others skip the row until this transaction commits, and then waiters are notified of it.
    open.set(state, Row { returned_by: Some(open.tx), ..row });
    true
}

fn request_cancellation(state: &mut State, open: &mut Open, job: &JobRecord) -> bool {
    let free = |row: &&Row| row.held_by.is_none() && row.returned_by.is_none();
    let Some(row) = state.rows.get(&job.id).filter(free).cloned() else { return false };
    let Some(lease) = row.lease else { return false };
    open.set(state, Row { lease: Some(Lease { cancel_requested: true, ..lease }), ..row });
    true
}

fn change_archived(state: &mut State, open: &mut Open, operation: &Operation, job: &JobRecord) -> bool {
    let free = |archived: &&Archived| archived.seen_by(open.tx) && archived.removed_by.is_none();
    let Some(archived) = state.archive.get(&job.id).filter(free).cloned() else { return false };
    match operation {
        Operation::Retry => archive::return_archived(state, open, archived),
        Operation::Delete => {
            open.set_archived(state, Archived { removed_by: Some(open.tx), ..archived });
            true
        }
        _ => false,
    }
}
