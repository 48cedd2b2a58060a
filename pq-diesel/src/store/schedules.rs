//! Periodic jobs.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::pg::PgConnection;
use diesel::sql_types::Bool;
use pq_core::store::Schedules;
use pq_core::{Cron, CronEntry};

use super::{PgStore, SqlConnection, micros};
use crate::Error;
use crate::connection::blocking;
use crate::prepared::Value;
use crate::rows::{CronRow, CronSql};

impl Schedules for PgStore {
    fn set_cron(
        &self,
        conn: &mut PgConnection,
        cron: &Cron,
        next_at: Option<DateTime<Utc>>,
    ) -> Result<bool, Error> {
        blocking(self.set_cron_on(conn, cron, next_at))
    }

    fn crons(&self, conn: &mut PgConnection) -> Result<Vec<CronEntry>, Error> {
        blocking(self.crons_on(conn))
    }

    fn remove_cron(&self, conn: &mut PgConnection, name: &str) -> Result<bool, Error> {
        blocking(self.remove_cron_on(conn, name))
    }

    fn pause_cron(
        &self,
        conn: &mut PgConnection,
        name: &str,
        paused: bool,
        next_at: Option<DateTime<Utc>>,
        by: Option<&str>,
    ) -> Result<bool, Error> {
        blocking(self.pause_cron_on(conn, name, paused, next_at, by))
    }

    fn due_cron(&self, conn: &mut PgConnection, after: Option<&str>) -> Result<Option<CronEntry>, Error> {
        blocking(self.due_cron_on(conn, after))
    }

    fn advance_cron(
        &self,
        conn: &mut PgConnection,
        name: &str,
        last_at: Option<DateTime<Utc>>,
        next_at: Option<DateTime<Utc>>,
    ) -> Result<(), Error> {
        blocking(self.advance_cron_on(conn, name, last_at, next_at))
    }

    fn fail_cron(
        &self,
        conn: &mut PgConnection,
        name: &str,
        tick: DateTime<Utc>,
        error: &str,
        pause: Duration,
    ) -> Result<(), Error> {
        blocking(self.fail_cron_on(conn, name, tick, error, pause))
    }

    fn bring_cron_forward(
        &self,
        conn: &mut PgConnection,
        name: &str,
        tick: DateTime<Utc>,
        earlier: DateTime<Utc>,
    ) -> Result<bool, Error> {
        blocking(self.bring_cron_forward_on(conn, name, tick, earlier))
    }
}

/// The methods of [`Schedules`], on a connection of any kind.
#[allow(missing_docs, clippy::missing_errors_doc)]
impl PgStore {
    pub async fn set_cron_on(
        &self,
        conn: &mut impl SqlConnection,
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
        self.only::<Bool, bool>(conn, &self.statements.set_cron, &values).await
    }

    pub async fn crons_on(&self, conn: &mut impl SqlConnection) -> Result<Vec<CronEntry>, Error> {
        let rows: Vec<CronRow> = self.rows::<CronSql, _>(conn, &self.statements.crons, &[]).await?;
        Ok(rows.into_iter().filter_map(CronRow::into_entry).collect())
    }

    pub async fn remove_cron_on(&self, conn: &mut impl SqlConnection, name: &str) -> Result<bool, Error> {
        Ok(self.changed(conn, &self.statements.remove_cron, &[Value::Text(name)]).await? > 0)
    }

    pub async fn pause_cron_on(
        &self,
        conn: &mut impl SqlConnection,
        name: &str,
        paused: bool,
        next_at: Option<DateTime<Utc>>,
        by: Option<&str>,
    ) -> Result<bool, Error> {
        let by = self.optional_storable_on(conn, by).await?;
        let values = [
            Value::Integer(paused.into()),
            Value::Instant(next_at),
            Value::OptionalText(by.as_deref()),
            Value::Text(name),
        ];
        Ok(self.changed(conn, &self.statements.pause_cron, &values).await? > 0)
    }

    pub async fn due_cron_on(
        &self,
        conn: &mut impl SqlConnection,
        after: Option<&str>,
    ) -> Result<Option<CronEntry>, Error> {
        let values = [Value::Text(after.unwrap_or_default())];
        let row: Option<CronRow> = self.one::<CronSql, _>(conn, &self.statements.due_cron, &values).await?;
        Ok(row.and_then(CronRow::into_entry))
    }

    pub async fn advance_cron_on(
        &self,
        conn: &mut impl SqlConnection,
        name: &str,
        last_at: Option<DateTime<Utc>>,
        next_at: Option<DateTime<Utc>>,
    ) -> Result<(), Error> {
        let values = [Value::Instant(last_at), Value::Instant(next_at), Value::Text(name)];
        self.changed(conn, &self.statements.advance_cron, &values).await.map(drop)
    }

    pub async fn fail_cron_on(
        &self,
        conn: &mut impl SqlConnection,
        name: &str,
        tick: DateTime<Utc>,
        error: &str,
        pause: Duration,
    ) -> Result<(), Error> {
        let error = self.storable_on(conn, error).await?;
        let values = [
            Value::Text(&error),
            Value::BigInt(micros(pause)),
            Value::Text(name),
            Value::Instant(Some(tick)),
        ];
        self.changed(conn, &self.statements.fail_cron, &values).await.map(drop)
    }

    pub async fn bring_cron_forward_on(
        &self,
        conn: &mut impl SqlConnection,
        name: &str,
        tick: DateTime<Utc>,
        earlier: DateTime<Utc>,
    ) -> Result<bool, Error> {
        let values = [Value::Instant(Some(earlier)), Value::Text(name), Value::Instant(Some(tick))];
        Ok(self.changed(conn, &self.statements.bring_cron_forward, &values).await? > 0)
    }
}
