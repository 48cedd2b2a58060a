//! The progress and the logs of jobs.

use std::sync::PoisonError;

use diesel::pg::PgConnection;
use diesel::sql_types::BigInt;
use pq_core::store::{Accepted, Notes};
use pq_core::{JobId, JobProgress, LogLine, NewNotes, StoredLine};

use super::transaction::single_statement;
use super::{PgStore, SqlConnection};
use crate::Error;
use crate::connection::blocking;
use crate::prepared::Value;
use crate::rows::{LinesRow, LinesSql, ProgressRow, ProgressSql};

impl Notes for PgStore {
    fn write_notes(
        &self,
        conn: &mut PgConnection,
        notes: &[NewNotes<'_>],
        are_last: bool,
    ) -> Result<Accepted, Error> {
        blocking(self.write_notes_on(conn, notes, are_last))
    }

    fn progress(&self, conn: &mut PgConnection, jobs: &[JobId]) -> Result<Vec<JobProgress>, Error> {
        blocking(self.progress_on(conn, jobs))
    }

    fn log(&self, conn: &mut PgConnection, job: JobId, after: Option<i64>) -> Result<Vec<StoredLine>, Error> {
        blocking(self.log_on(conn, job, after))
    }
}

/// The methods of [`Notes`], on a connection of any kind.
#[allow(missing_docs, clippy::missing_errors_doc)]
impl PgStore {
    pub async fn write_notes_on(
        &self,
        conn: &mut impl SqlConnection,
        notes: &[NewNotes<'_>],
        are_last: bool,
    ) -> Result<Accepted, Error> {
        // Lines and progress can always be written as JSON.
        let lines = |note: &NewNotes<'_>| {
            if note.lines.is_empty() { None } else { serde_json::to_string(note.lines).ok() }
        };
        let progress =
            |note: &NewNotes<'_>| note.progress.and_then(|found| serde_json::to_string(found).ok());
        let texts: Vec<[Option<String>; 2]> =
            notes.iter().map(|note| [lines(note), progress(note)]).collect();
        let is_ascii = texts.iter().flatten().flatten().all(|text| text.is_ascii());
        let encoding = self.encoding_for(conn, is_ascii).await?;
        let stored: Vec<[_; 2]> = texts
            .iter()
            .map(|texts| texts.each_ref().map(|text| text.as_deref().map(|text| encoding.escape_json(text))))
            .collect();
        let text = |position: usize| stored.iter().map(move |texts| texts[position].as_deref()).collect();
        let size = |note: &NewNotes<'_>| note.lines.iter().map(LogLine::size).sum::<usize>();
        let values = [
            Value::BigInts(notes.iter().map(|note| note.job.id.0).collect()),
            Value::BigInts(notes.iter().map(|note| note.job.lease().unwrap_or_default()).collect()),
            Value::Integers(notes.iter().map(|note| note.job.attempt).collect()),
            Value::Integers(notes.iter().map(|note| integer(size(note))).collect()),
            Value::OptionalTexts(text(0)),
            Value::OptionalTexts(text(1)),
            Value::Integer(integer(LogLine::MAX_KEPT)),
        ];
        let as_single = single_statement(conn)?;
        let statements = &self.statements;
        let write = if are_last { &statements.write_last_notes } else { &statements.write_notes };
        let held: Vec<i64> = self.rows::<BigInt, _>(conn, write, &values).await.map_err(as_single)?;
        let mut accepted = vec![false; notes.len()];
        // PostgreSQL numbers positions from 1.
        for position in held.into_iter().filter_map(|position| usize::try_from(position - 1).ok()) {
            accepted[position] = true;
        }
        Ok(Accepted::new(accepted))
    }

    pub async fn progress_on(
        &self,
        conn: &mut impl SqlConnection,
        jobs: &[JobId],
    ) -> Result<Vec<JobProgress>, Error> {
        let values = [Value::BigInts(jobs.iter().map(|job| job.0).collect())];
        let rows: Vec<ProgressRow> =
            self.rows::<ProgressSql, _>(conn, &self.statements.progress, &values).await?;
        Ok(rows.into_iter().filter_map(ProgressRow::into_progress).collect())
    }

    pub async fn log_on(
        &self,
        conn: &mut impl SqlConnection,
        job: JobId,
        after: Option<i64>,
    ) -> Result<Vec<StoredLine>, Error> {
        let values = [Value::BigInt(job.0), Value::OptionalBigInt(after)];
        let rows: Vec<LinesRow> = self.rows::<LinesSql, _>(conn, &self.statements.log, &values).await?;
        Ok(rows.into_iter().flat_map(LinesRow::into_lines).collect())
    }

    /// Deletes the notes of jobs that no longer exist, among the next thousand notes.
    pub(super) async fn forget_notes(&self, conn: &mut impl SqlConnection) -> Result<(), Error> {
        let (job, entry) = *self.notes_checked.lock().unwrap_or_else(PoisonError::into_inner);
        let values = [Value::BigInt(job), Value::BigInt(entry)];
        let last: Option<(i64, i64)> =
            self.one::<(BigInt, BigInt), _>(conn, &self.statements.forget_notes, &values).await?;
        *self.notes_checked.lock().unwrap_or_else(PoisonError::into_inner) = last.unwrap_or(FIRST_NOTE);
        Ok(())
    }
}

/// A position before all notes.
pub(super) const FIRST_NOTE: (i64, i64) = (i64::MIN, i64::MIN);

fn integer(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
