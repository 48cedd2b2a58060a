//! Rows of the progress and the logs of jobs.

use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types::{BigInt, Integer, Text, Timestamptz};
use pq_core::{JobId, JobProgress, LogLine, StoredLine};

use super::nearest;

row! {
    /// The progress of a job.
    ProgressRow, ProgressSql {
        job: i64 => BigInt,
        attempt: i32 => Integer,
        at: PgTimestamp => Timestamptz,
        progress: String => Text,
    }
}

impl ProgressRow {
    /// Returns the progress, or `None` if another program stored it in another form.
    pub(crate) fn into_progress(self) -> Option<JobProgress> {
        let progress = serde_json::from_str(&self.progress).ok()?;
        Some(JobProgress { id: JobId(self.job), attempt: self.attempt, at: nearest(self.at), progress })
    }
}

row! {
    /// Lines of a job's log that were stored together.
    LinesRow, LinesSql {
        position: i64 => BigInt,
        attempt: i32 => Integer,
        lines: String => Text,
    }
}

impl LinesRow {
    /// Returns the lines, or none if another program stored them in another form.
    pub(crate) fn into_lines(self) -> impl Iterator<Item = StoredLine> {
        let Self { position, attempt, lines } = self;
        let lines: Vec<LogLine> = serde_json::from_str(&lines).unwrap_or_default();
        lines.into_iter().map(move |line| StoredLine { attempt, line, position })
    }
}
