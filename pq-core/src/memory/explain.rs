//! Explaining why a job waits.

use chrono::Utc;

use super::state::Row;
use super::transaction::MemoryConn;
use super::{MemoryStore, limits};
use crate::store::{Circumstances, Explain, KeyHolder};
use crate::{Error, JobId, Reason, Session};

impl Explain for MemoryStore {
    fn circumstances(&self, conn: &mut MemoryConn, id: JobId) -> Result<Circumstances, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            let mut found = Circumstances::new(now);
            let waits = |row: &&Row| row.seen_by(open.tx) && row.lease.is_none();
            let Some(row) = state.rows.get(&id).filter(waits) else { return Ok(found) };
            // Sessions have no numbers here.
            let unknown = Session { pid: None, application: None, age: None };
            found.held_by = (!row.free_for(open.tx)).then(|| unknown.clone());
            found.paused = state.paused.get(&row.job.queue).map(|paused| (paused.at, paused.by.clone()));
            found.limits = limits::reached(state, row, open.tx, now);
            let others =
                || state.rows.values().filter(|other| other.job.queue == row.job.queue && other.job.id != id);
            let comes_first = |other: &&Row| {
                other.seen_by(open.tx)
                    && other.lease.is_none()
                    && other.is_due(now)
                    && other.sort_key() < row.sort_key()
            };
            let open_waits = || {
                let of_job = state.waits.range((id, JobId(i64::MIN))..=(id, JobId(i64::MAX)));
                of_job.filter(|(_, wait)| wait.outcome.is_none()).map(|((_, job), _)| *job)
            };
            let waits = (open_waits().count() as u64).min(Reason::MAX_COUNTED);
            found.after = open_waits().next().map(|first| (waits, first));
            let limit = usize::try_from(Reason::MAX_COUNTED).unwrap_or(usize::MAX);
            found.ahead = others().filter(comes_first).take(limit).count() as u64;
            if state.limits.get(&row.job.queue).is_some_and(|limits| limits.fair) {
                let group = row.job.annotations.group();
                let is_ahead = |other: &&Row| {
                    comes_first(other)
                        && other.job.priority == row.job.priority
                        && other.job.annotations.group() == group
                };
                let jobs = others().filter(is_ahead).take(limit).count() as u64;
                found.turn = Some((group.clone(), jobs));
            }
            if let Some(key) = &row.job.serialization_key {
                let of_key = || others().filter(|other| other.job.serialization_key.as_ref() == Some(key));
                let holder = of_key().find(|other| other.occupies_key_for(open.tx));
                found.key_holder = holder.map(|holder| KeyHolder {
                    job: Some(holder.job.id),
                    session: holder.lease.is_none().then_some(unknown),
                });
                let keeper = state.keeping_keys(&row.job.queue, open.tx).get(key).copied();
                let first = match keeper {
                    Some(keeper) => of_key().find(|other| other.job.id == keeper),
                    None => of_key().filter(comes_first).min_by_key(|other| other.sort_key()),
                };
                found.first_of_key = first
                    .filter(|first| holder.is_none_or(|holder| holder.job.id != first.job.id))
                    .map(|first| first.job.id);
            }
            Ok(found)
        })
    }
}
