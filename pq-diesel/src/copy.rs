//! COPY into a table that is chosen at run time.

use std::any::Any;
use std::cell::RefCell;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::ExecuteCopyFromDsl;
use diesel::connection::SimpleConnection;
use diesel::pg::{CopyFormat, CopyTarget};
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::query_builder::AstPass;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use pq_core::{Key, NewJob, QueueName, When};

use crate::Error;
use crate::call_timer::CallTimer;
use crate::connection::Failed;
use crate::pool::call_timer;
use crate::rows::since_epoch;
use crate::schema::queue;
use crate::table::Table;

thread_local! {
    /// The target of the COPY that runs on this thread. diesel asks a type for the target, and a type cannot know a
    /// name that is chosen at run time.
    static TARGET: RefCell<String> = const { RefCell::new(String::new()) };
}

struct Target;

impl CopyTarget for Target {
    type Table = queue::table;
    type SqlType = <queue::table as diesel::query_builder::AsQuery>::SqlType;

    fn walk_target(mut pass: AstPass<'_, '_, Pg>) -> QueryResult<()> {
        TARGET.with_borrow(|target| pass.push_sql(target));
        Ok(())
    }
}

/// Sets the target until it is dropped, and then the one before: the source of the rows may run a COPY elsewhere.
struct Named(String);

impl Named {
    fn new(target: &str) -> Self {
        Self(TARGET.replace(target.to_owned()))
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        TARGET.replace(std::mem::take(&mut self.0));
    }
}

/// The reason why a COPY stopped early.
enum Stopped {
    Refused(Error),
    Panicked(Box<dyn Any + Send>),
    /// A row could not be sent.
    Lost(String),
}

/// Copies the rows that `rows` writes into `target`, a table with its columns.
///
/// If `rows` fails or panics, nothing is copied, the connection can be used again, and the failure or panic continues.
/// The call timeout applies to each page that is sent, and not to the time that `rows` takes.
pub(crate) fn copy_in(
    conn: &mut PgConnection,
    table: &Table,
    target: &str,
    rows: impl FnOnce(&mut Rows<'_>) -> Result<(), Error>,
) -> Result<u64, Error> {
    let _named = Named::new(target);
    let timer = call_timer(conn);
    let rows = RefCell::new(Some(rows));
    let stopped = RefCell::new(None);
    let write = |out: &mut dyn Write| {
        let Some(rows) = rows.take() else { return Ok(()) };
        // A panic that passed through diesel would leave the connection in the middle of the COPY.
        let written = catch_unwind(AssertUnwindSafe(|| {
            stop(&timer);
            let mut sheet = Rows::new(out, timer.clone());
            rows(&mut sheet)?;
            sheet.end()
        }));
        // The server answers now.
        start(&timer);
        let reason = match written {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(Error::Unavailable(reason))) => Stopped::Lost(reason),
            Ok(Err(error)) => Stopped::Refused(error),
            Err(panic) => Stopped::Panicked(panic),
        };
        stopped.replace(Some(reason));
        Err(DieselError::RollbackTransaction)
    };
    let copied = diesel::copy_from(queue::table)
        .from_raw_data(Target, write)
        .with_format(CopyFormat::Binary)
        .execute(conn);
    match (stopped.into_inner(), copied) {
        (Some(Stopped::Refused(error)), _) => Err(error),
        (Some(Stopped::Panicked(panic)), _) => resume_unwind(panic),
        (Some(Stopped::Lost(reason)), _) => Err(Error::Unavailable(reason)),
        (None, Ok(count)) => Ok(count as u64),
        (None, Err(error)) => Err(lost(conn).unwrap_or_else(|| Error::of(table, Failed::on_blocking(error)))),
    }
}

/// Returns the error of a lost connection, if that is why a COPY failed. libpq gives no code for it while it sends.
fn lost(conn: &mut PgConnection) -> Option<Error> {
    conn.batch_execute("SELECT").err().map(Error::from).filter(|error| matches!(error, Error::Unavailable(_)))
}

/// Rows of jobs in PostgreSQL's binary format, which are sent page by page.
pub(crate) struct Rows<'a> {
    out: &'a mut dyn Write,
    page: Vec<u8>,
    timer: Option<Arc<CallTimer>>,
}

/// The byte before the text of a `jsonb` in binary.
pub(crate) const JSONB_VERSION: u8 = 1;

/// The number of bytes that are collected before they are sent.
const PAGE_BYTES: usize = 64 << 10;

impl<'a> Rows<'a> {
    fn new(out: &'a mut dyn Write, timer: Option<Arc<CallTimer>>) -> Self {
        let mut page = Vec::with_capacity(PAGE_BYTES + (PAGE_BYTES >> 2));
        // The signature of the format, no flags, and no header extension.
        page.extend_from_slice(b"PGCOPY\n\xff\r\n\0");
        page.extend_from_slice(&[0; 8]);
        Self { out, page, timer }
    }

    /// Writes a row with the columns that [`crate::statements`] names for a COPY, with or without an id. Delays begin
    /// at `now`.
    pub(crate) fn job(
        &mut self,
        id: Option<i64>,
        queue: &QueueName,
        job: &NewJob,
        now: DateTime<Utc>,
    ) -> Result<(), Error> {
        let columns: i16 = if id.is_some() { 8 } else { 7 };
        self.page.extend_from_slice(&columns.to_be_bytes());
        if let Some(id) = id {
            self.value(Some(&id.to_be_bytes()))?;
        }
        self.value(Some(queue.as_str().as_bytes()))?;
        self.value(Some(job.payload.as_str().as_bytes()))?;
        for time in [job.schedule_at, job.expected_at] {
            let micros = time.map(|when| micros(when, now).to_be_bytes());
            self.value(micros.as_ref().map(<[u8; 8]>::as_slice))?;
        }
        self.value(Some(&job.priority.to_be_bytes()))?;
        self.value(job.serialization_key.as_ref().map(|key| Key::as_str(key).as_bytes()))?;
        let annotations = job.annotations.as_json().map(|json| [&[JSONB_VERSION], json.as_bytes()].concat());
        self.value(annotations.as_deref())?;
        if self.page.len() >= PAGE_BYTES { self.send() } else { Ok(()) }
    }

    fn value(&mut self, value: Option<&[u8]>) -> Result<(), Error> {
        let Some(value) = value else {
            self.page.extend_from_slice(&(-1_i32).to_be_bytes());
            return Ok(());
        };
        let length = i32::try_from(value.len())
            .map_err(|error| Error::from(DieselError::SerializationError(Box::new(error))))?;
        self.page.extend_from_slice(&length.to_be_bytes());
        self.page.extend_from_slice(value);
        Ok(())
    }

    fn end(mut self) -> Result<(), Error> {
        self.page.extend_from_slice(&(-1_i16).to_be_bytes());
        self.send()
    }

    fn send(&mut self) -> Result<(), Error> {
        start(&self.timer);
        let sent = self.out.write_all(&self.page);
        stop(&self.timer);
        self.page.clear();
        sent.map_err(unsent)
    }
}

fn start(timer: &Option<Arc<CallTimer>>) {
    timer.iter().for_each(|timer| timer.start());
}

fn stop(timer: &Option<Arc<CallTimer>>) {
    timer.iter().for_each(|timer| timer.stop());
}

fn unsent(error: io::Error) -> Error {
    let kind = DatabaseErrorKind::UnableToSendCommand;
    DieselError::DatabaseError(kind, Box::new(error.to_string())).into()
}

/// Returns a time in PostgreSQL's microseconds. PostgreSQL refuses one that is out of its range. The greatest number
/// means infinity, so it is never returned.
fn micros(when: When, now: DateTime<Utc>) -> i64 {
    match when {
        When::At(instant) => since_epoch(instant),
        When::In(delay) => {
            let delay = TimeDelta::num_microseconds(&delay).unwrap_or(i64::MAX);
            since_epoch(now).saturating_add(delay).clamp(i64::MIN + 1, i64::MAX - 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::EPOCH_MICROS;

    #[test]
    fn times_are_microseconds_since_2000() {
        let now = DateTime::from_timestamp_micros(EPOCH_MICROS + 5).unwrap_or_default();
        assert_eq!(micros(When::At(now), now), 5);
        assert_eq!(micros(When::In(TimeDelta::microseconds(-7)), now), -2);
        assert_eq!(micros(When::In(TimeDelta::MAX), now), i64::MAX - 1);
    }
}
