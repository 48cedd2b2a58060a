//! The row of a call of a task, for statements of the application.

use std::io::Write;

use chrono::{DateTime, Utc};
use diesel::expression::{AppearsOnTable, AsExpression};
use diesel::pg::Pg;
use diesel::pg::data_types::PgInterval;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::serialize::{self, IsNull, Output, ToSql};
use diesel::sql_types::{Interval, Json, Jsonb, Nullable, Timestamptz};
use pq_core::store::Rows;
use pq_core::{Annotations, Key, NewJob, Payload, QueueName, When};

use super::queue;
use crate::Error;
use crate::copy::JSONB_VERSION;
use crate::store::PgStore;
use crate::table::Table;

/// A row of [`queue`](super::queue) that calls a task. [`Task::row`](pq_core::Task::row) creates it.
///
/// It can be inserted with other rows in one statement. A delay begins when that statement starts.
///
/// ```no_run
/// use diesel::prelude::*;
/// use pq_diesel::{CallOptions, Pq, schema};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let mut conn = PgConnection::establish("postgres://localhost/shop")?;
/// let shop = Pq::detached().queue("shop")?;
/// let (mail, bill) = (shop.task::<String>("mail"), shop.task::<i64>("bill"));
/// let later = CallOptions::new().schedule_at("5m");
/// diesel::insert_into(schema::queue::table)
///     .values(vec![mail.row(&"ada@example.com".to_owned())?, bill.row_with(&42, &later)?])
///     .execute(&mut conn)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Insertable)]
#[diesel(table_name = queue)]
pub struct NewRow {
    q_name: String,
    data: JsonText,
    schedule_at: Time,
    expected_at: Time,
    priority: i32,
    serial_key: Option<String>,
    annotations: Noted,
}

impl Rows for PgStore {
    type Row = NewRow;

    fn row(&self, queue: &QueueName, job: NewJob) -> Result<NewRow, Error> {
        let refused = |reason: &str| Error::from(pq_core::Error::InvalidSetting(reason.to_owned()));
        if self.table != Table::default() {
            return Err(refused(&format!(
                "cannot create a row: the task's jobs are in {}, and the row is one of {}; use `on(conn).call`",
                self.table,
                Table::default()
            )));
        }
        if job.unique.is_some() {
            return Err(refused(
                "cannot create a row with a unique key: an INSERT cannot keep or replace the job that has the key; \
                 use `on(conn).call_with`",
            ));
        }
        if !job.links.is_empty() {
            return Err(refused(
                "cannot create a row of a job that waits for others or belongs to a batch: that is stored in another \
                 table; use `on(conn).call_with`",
            ));
        }
        Ok(NewRow {
            q_name: queue.to_string(),
            data: JsonText(job.payload),
            schedule_at: job.schedule_at.into(),
            expected_at: job.expected_at.into(),
            priority: job.priority,
            serial_key: job.serialization_key.as_ref().map(Key::as_str).map(str::to_owned),
            annotations: Noted(job.annotations),
        })
    }
}

/// JSON that is sent as it is.
#[allow(unreachable_pub, reason = "the values of the row name it")]
#[derive(Clone, Debug, AsExpression)]
#[diesel(sql_type = Json)]
pub struct JsonText(Payload);

impl ToSql<Json, Pg> for JsonText {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        out.write_all(self.0.as_str().as_bytes())?;
        Ok(IsNull::No)
    }
}

/// The annotations of a job, or NULL.
#[allow(unreachable_pub, reason = "the values of the row name it")]
#[derive(Clone, Debug, AsExpression)]
#[diesel(sql_type = Nullable<Jsonb>)]
pub struct Noted(Annotations);

impl ToSql<Nullable<Jsonb>, Pg> for Noted {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        let Some(json) = self.0.as_json() else { return Ok(IsNull::Yes) };
        out.write_all(&[JSONB_VERSION])?;
        out.write_all(json.as_bytes())?;
        Ok(IsNull::No)
    }
}

/// A time, as an expression: the database's clock begins a delay.
#[allow(unreachable_pub, reason = "the values of the row name it")]
#[derive(Clone, Copy, Debug)]
pub enum Time {
    None,
    At(DateTime<Utc>),
    In(PgInterval),
}

impl From<Option<When>> for Time {
    fn from(when: Option<When>) -> Self {
        match when {
            None => Self::None,
            Some(When::At(instant)) => Self::At(instant),
            // A delay has less than 2^63 microseconds, see `When::MAX_DELAY`.
            Some(When::In(delay)) => {
                Self::In(PgInterval::from_microseconds(delay.num_microseconds().unwrap_or(i64::MAX)))
            }
        }
    }
}

impl Expression for Time {
    type SqlType = Nullable<Timestamptz>;
}

impl<Source> AppearsOnTable<Source> for Time {}

impl QueryId for Time {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl QueryFragment<Pg> for Time {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        match self {
            Self::None => out.push_sql("NULL"),
            Self::At(instant) => out.push_bind_param::<Timestamptz, _>(instant)?,
            Self::In(delay) => {
                out.push_sql("statement_timestamp() + ");
                out.push_bind_param::<Interval, _>(delay)?;
            }
        }
        Ok(())
    }
}
