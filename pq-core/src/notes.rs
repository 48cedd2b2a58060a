//! What a handler notes while it runs: the progress of its job, and the job's own log.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{Claim, Error, JobId};

/// How far a handler has come with its job. See [`crate::Context::progress`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JobProgress {
    /// The job.
    pub id: JobId,
    /// The attempt that noted it.
    pub attempt: i32,
    /// When it was stored, on the store's clock.
    pub at: DateTime<Utc>,
    /// What the handler noted.
    #[serde(flatten)]
    pub progress: Progress,
}

/// How many units of work of how many a handler has done, with a note.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The units that are done.
    pub done: u64,
    /// All units, or 0 if their number is unknown.
    pub total: u64,
    /// A note, which may be empty.
    pub note: String,
}

impl Progress {
    /// The maximum length of a note, in characters.
    pub const MAX_NOTE_CHARS: usize = 200;

    /// Removes what stores cannot keep, and what is too long.
    pub(crate) fn new(done: u64, total: u64, note: &str) -> Self {
        let most = i64::MAX.unsigned_abs();
        let note = note.chars().filter(|c| *c != '\0').take(Self::MAX_NOTE_CHARS).collect();
        Self { done: done.min(most), total: total.min(most), note }
    }

    /// Returns the part that is done, from 0 to 1, or `None` if the number of units is unknown.
    #[must_use]
    pub fn fraction(&self) -> Option<f64> {
        #[allow(clippy::cast_precision_loss)]
        (self.total > 0).then(|| (self.done as f64 / self.total as f64).min(1.0))
    }
}

/// Writes `40/100 (40 %) note`.
impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { done, total, note } = self;
        match self.fraction() {
            Some(fraction) => write!(f, "{done}/{total} ({:.0} %)", (fraction * 100.0).floor())?,
            None => write!(f, "{done}")?,
        }
        if note.is_empty() { Ok(()) } else { write!(f, " {note}") }
    }
}

/// The level of a line of a job's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// Returns the word for the level, in lower case.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for LogLevel {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let all = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];
        let known = all.into_iter().find(|level| level.as_str() == text);
        known.ok_or_else(|| Error::InvalidSetting(format!("unknown level {text:?}")))
    }
}

/// A line of a job's log, as a handler wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When it was written, on the store's clock as far as the worker knows it.
    pub at: DateTime<Utc>,
    /// Its level.
    pub level: LogLevel,
    /// Its text. It can have line breaks.
    pub text: String,
}

impl LogLine {
    /// The size of the log that a job keeps, in bytes: the newest lines of all its attempts. Each line counts the
    /// bytes of its text and [`LogLine::OVERHEAD`].
    pub const MAX_KEPT: usize = 64 << 10;

    /// What a line counts besides its text, in bytes.
    pub const OVERHEAD: usize = 32;

    /// The maximum length of a line, in bytes. A longer one is cut.
    pub const MAX_BYTES: usize = 8 << 10;

    /// Removes what stores cannot keep, and what is too long.
    pub(crate) fn new(at: DateTime<Utc>, level: LogLevel, text: &str) -> Self {
        let mut text = text.replace('\0', "");
        if text.len() > Self::MAX_BYTES {
            let cut = '…'.len_utf8();
            let end = (0..=Self::MAX_BYTES - cut).rev().find(|end| text.is_char_boundary(*end));
            text.truncate(end.unwrap_or_default());
            text.push('…');
        }
        Self { at, level, text }
    }

    /// Returns what the line counts of [`LogLine::MAX_KEPT`].
    #[must_use]
    pub fn size(&self) -> usize {
        self.text.len() + Self::OVERHEAD
    }
}

/// A line of a job's log, as a store has it. See [`crate::Pq::log`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StoredLine {
    /// The attempt that wrote it.
    pub attempt: i32,
    /// The line.
    #[serde(flatten)]
    pub line: LogLine,
    /// The position in the log, for [`crate::Pq::log_after`]. Lines that were stored together have the same one.
    pub position: i64,
}

impl StoredLine {
    /// Returns the newest of these lines, as many as a job keeps.
    #[must_use]
    pub fn keep_newest(mut lines: Vec<Self>) -> Vec<Self> {
        let mut bytes = 0;
        let fits = |stored: &&Self| {
            bytes += stored.line.size();
            bytes <= LogLine::MAX_KEPT
        };
        let kept = lines.iter().rev().take_while(fits).count();
        lines.drain(..lines.len() - kept);
        lines
    }
}

/// What is to be stored of an attempt that runs.
#[derive(Debug)]
pub struct NewNotes<'a> {
    /// The job, under a lease.
    pub job: &'a Claim,
    /// The lines that are added to its log, which count at most [`LogLine::MAX_KEPT`].
    pub lines: &'a [LogLine],
    /// The newest progress of the attempt, if it has noted any.
    pub progress: Option<&'a Progress>,
}

/// Lines that are not stored yet: the newest, as many as a job keeps.
#[derive(Debug, Default)]
pub(crate) struct PendingLines {
    lines: VecDeque<LogLine>,
    bytes: usize,
}

impl PendingLines {
    pub(crate) fn push(&mut self, line: LogLine) {
        self.bytes += line.size();
        self.lines.push_back(line);
        self.trim();
    }

    /// Puts lines back that could not be stored, before those that came since.
    pub(crate) fn put_back(&mut self, lines: Vec<LogLine>) {
        for line in lines.into_iter().rev() {
            self.bytes += line.size();
            self.lines.push_front(line);
        }
        self.trim();
    }

    pub(crate) fn take(&mut self) -> Vec<LogLine> {
        self.bytes = 0;
        std::mem::take(&mut self.lines).into()
    }

    pub(crate) fn copy(&self) -> Vec<LogLine> {
        self.lines.iter().cloned().collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    fn trim(&mut self) {
        while self.bytes > LogLine::MAX_KEPT
            && let Some(oldest) = self.lines.pop_front()
        {
            self.bytes -= oldest.size();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let new = |text: &str| LogLine::new(DateTime::default(), LogLevel::Info, text);
        let line = new(&"ж".repeat(LogLine::MAX_BYTES));
        assert!(line.text.len() <= LogLine::MAX_BYTES && line.text.ends_with("ж…"), "{}", line.text.len());
        assert_eq!(new("a\0b").text, "ab");
    }

    #[test]
    fn pending_lines_are_bounded_and_keep_their_order() {
        let mut pending = PendingLines::default();
        let line = |text: &str| LogLine::new(DateTime::default(), LogLevel::Info, text);
        pending.push(line("third"));
        pending.put_back(vec![line("first"), line("second")]);
        let texts = |lines: Vec<LogLine>| lines.into_iter().map(|line| line.text).collect::<Vec<_>>();
        assert_eq!(texts(pending.take()), ["first", "second", "third"]);
        for number in 0..LogLine::MAX_KEPT {
            pending.push(line(&number.to_string()));
        }
        assert!(pending.bytes <= LogLine::MAX_KEPT);
        let kept = texts(pending.take());
        assert_eq!(kept.last().map(String::as_str), Some("65535"));
        assert!(kept.len() > 1_000 && pending.is_empty());
    }

    #[test]
    fn progress_is_written_for_people() {
        let shown = |done, total, note| Progress::new(done, total, note).to_string();
        assert_eq!(shown(2, 3, ""), "2/3 (66 %)");
        assert_eq!(shown(5, 3, "more than planned"), "5/3 (100 %) more than planned");
        assert_eq!(shown(7, 0, "lines"), "7 lines");
    }
}
