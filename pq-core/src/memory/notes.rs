//! The progress and the logs of jobs.

use chrono::Utc;

use super::MemoryStore;
use super::settle;
use super::state::State;
use super::transaction::{MemoryConn, Open};
use crate::store::{Accepted, Notes};
use crate::{Error, JobId, JobProgress, NewNotes, Progress, StoredLine};

/// What the store keeps of a job's notes.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    lines: Vec<StoredLine>,
    /// The newest progress, with the lease under which it was noted.
    progress: Option<(i64, JobProgress)>,
    /// The corrected cost, with the lease of the attempt.
    pub(super) cost: Option<(i64, u32)>,
}

/// Deletes the notes of jobs that neither wait nor run nor are archived.
pub(super) fn forget(state: &mut State, open: &mut Open) {
    let is_gone = |id: &&JobId| !state.rows.contains_key(id) && !state.archive.contains_key(id);
    let gone: Vec<JobId> = state.notes.keys().filter(is_gone).copied().collect();
    gone.into_iter().for_each(|id| open.set_notes(state, id, None));
}

impl Notes for MemoryStore {
    fn write_notes(&self, conn: &mut MemoryConn, notes: &[NewNotes<'_>], _: bool) -> Result<Accepted, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            let mut accepted = Vec::new();
            for NewNotes { job, lines, progress } in notes {
                let lease = job.lease().filter(|_| settle::held(state, job, open.tx).is_some());
                accepted.push(lease.is_some());
                let Some(lease) = lease else { continue };
                let mut kept = state.notes.get(&job.id).cloned().unwrap_or_default();
                let position = state.next_tx();
                let stored = |line| StoredLine { attempt: job.attempt, line, position };
                kept.lines.extend(lines.iter().cloned().map(stored));
                kept.lines = StoredLine::keep_newest(kept.lines);
                if let Some(progress) = progress {
                    let progress = Progress::clone(progress);
                    kept.progress =
                        Some((lease, JobProgress { id: job.id, attempt: job.attempt, at: now, progress }));
                }
                open.set_notes(state, job.id, Some(kept));
            }
            Ok(Accepted::new(accepted))
        })
    }

    fn progress(&self, conn: &mut MemoryConn, jobs: &[JobId]) -> Result<Vec<JobProgress>, Error> {
        conn.operate(|state, open| {
            let is_shown = |lease: i64, progress: &JobProgress| match state.rows.get(&progress.id) {
                Some(row) if row.seen_by(open.tx) => row.lease.is_some_and(|held| held.token == lease),
                _ => state
                    .archive
                    .get(&progress.id)
                    .is_some_and(|ended| ended.seen_by(open.tx) && ended.job.attempt == progress.attempt),
            };
            let noted = |id: &JobId| state.notes.get(id).and_then(|kept| kept.progress.clone());
            let mut found: Vec<JobProgress> = jobs
                .iter()
                .filter_map(noted)
                .filter(|(lease, progress)| is_shown(*lease, progress))
                .map(|(_, progress)| progress)
                .collect();
            found.sort_by_key(|progress| progress.id);
            found.dedup();
            Ok(found)
        })
    }

    fn log(&self, conn: &mut MemoryConn, job: JobId, after: Option<i64>) -> Result<Vec<StoredLine>, Error> {
        conn.operate(|state, _| {
            let lines = state.notes.get(&job).map(|kept| kept.lines.iter()).into_iter().flatten();
            let is_new = |line: &&StoredLine| after.is_none_or(|after| line.position > after);
            Ok(lines.filter(is_new).cloned().collect())
        })
    }
}
