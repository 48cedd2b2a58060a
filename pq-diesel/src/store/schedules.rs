//! Periodic jobs.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::pg::PgConnection;
use diesel::sql_types::{Bool, Text};
use pq_core::store::Schedules;
use pq_core::{Cron, CronEntry};

use super::{PgStore, micros};
use crate::Error;
use crate::prepared::Value;
use crate::rows::{CronRow, CronSql};

impl Schedules for PgStore {
    fn set_cron(
        &self,
        conn: &mut PgConnection,
        cron: &Cron,
        next_at: Option<DateTime<Utc>>,
    ) -> Result<bool, Error> {
        let values = [
            Value::Text(&cron.name),
            Value::Text(&cron.expression),
            Value::Text(&cron.time_zone),
            Value::Text(cron.queue.as_str()),
            Value::Text(cron.payload.as_str()),
            Value::Integer(cron.priority),
            Value::Integer(cron.catch_up.into()),
            Value::Instant(next_at),
        ];
        let is_new = self.statements.set_cron.with::<Bool>(&values).get_result(conn);
        is_new.map_err(|e| self.error(e))
    }

    fn crons(&self, conn: &mut PgConnection) -> Result<Vec<CronEntry>, Error> {
        let rows: Vec<CronRow> =
            self.statements.crons.with::<CronSql>(&[]).load(conn).map_err(|e| self.error(e))?;
        Ok(rows.into_iter().filter_map(CronRow::into_entry).collect())
    }

    fn remove_cron(&self, conn: &mut PgConnection, name: &str) -> Result<bool, Error> {
        self.any(conn, &self.statements.remove_cron, &[Value::Text(name)])
    }

    fn pause_cron(
        &self,
        conn: &mut PgConnection,
        name: &str,
        paused: bool,
        next_at: Option<DateTime<Utc>>,
    ) -> Result<bool, Error> {
        let values = [Value::Integer(paused.into()), Value::Instant(next_at), Value::Text(name)];
        self.any(conn, &self.statements.pause_cron, &values)
    }

    fn due_cron(&self, conn: &mut PgConnection, after: Option<&str>) -> Result<Option<CronEntry>, Error> {
        let row: Option<CronRow> = self.one::<CronSql, _>(
            conn,
            &self.statements.due_cron,
            &[Value::Text(after.unwrap_or_default())],
        )?;
        Ok(row.and_then(CronRow::into_entry))
    }

    fn advance_cron(
        &self,
        conn: &mut PgConnection,
        name: &str,
        last_at: Option<DateTime<Utc>>,
        next_at: Option<DateTime<Utc>>,
    ) -> Result<(), Error> {
        let values = [Value::Instant(last_at), Value::Instant(next_at), Value::Text(name)];
        let noted = self.statements.advance_cron.with::<Text>(&values).execute(conn);
        noted.map(drop).map_err(|e| self.error(e))
    }

    fn fail_cron(
        &self,
        conn: &mut PgConnection,
        name: &str,
        tick: DateTime<Utc>,
        error: &str,
        pause: Duration,
    ) -> Result<(), Error> {
        let error = self.storable_on(conn, error)?;
        let values = [
            Value::Text(&error),
            Value::BigInt(micros(pause)),
            Value::Text(name),
            Value::Instant(Some(tick)),
        ];
        self.any(conn, &self.statements.fail_cron, &values).map(drop)
    }

    fn bring_cron_forward(
        &self,
        conn: &mut PgConnection,
        name: &str,
        tick: DateTime<Utc>,
        earlier: DateTime<Utc>,
    ) -> Result<bool, Error> {
        let values = [Value::Instant(Some(earlier)), Value::Text(name), Value::Instant(Some(tick))];
        self.any(conn, &self.statements.bring_cron_forward, &values)
    }
}
