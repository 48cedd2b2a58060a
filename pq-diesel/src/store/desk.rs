//! What an operator sees and does: queues, workers, periodic jobs.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Bool, Text, Timestamptz};
use pq_core::{
    Cron, CronEntry, Filter, Heartbeat, HeartbeatReply, JobId, JobState, Key, Listed, Overview, QueueName,
    StopMode, WorkerId, WorkerInfo,
};

use super::PgStore;
use crate::Error;
use crate::prepared::{Statement, Value};
use crate::rows::desk::{
    BeatRow, BeatSql, CronRow, CronSql, ListedRow, ListedSql, OverviewRow, OverviewSql, WorkerRow, WorkerSql,
    cron, listed, overview, worker,
};

impl PgStore {
    pub(super) fn clock(&self, conn: &mut PgConnection) -> Result<DateTime<Utc>, Error> {
        self.statements.now.with::<Timestamptz>(&[]).get_result(conn).map_err(|e| self.error(e))
    }

    pub(super) fn set_paused(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        paused: bool,
    ) -> Result<bool, Error> {
        let statement = if paused { &self.statements.pause } else { &self.statements.resume };
        let changed = self.any(conn, statement, &[Value::Text(queue.as_str())])?;
        if changed && !paused {
            self.notify_queues(conn, [queue])?;
        }
        Ok(changed)
    }

    pub(super) fn all_queues(&self, conn: &mut PgConnection) -> Result<Vec<Overview>, Error> {
        let rows: Vec<OverviewRow> =
            self.statements.overview.with::<OverviewSql>(&[]).load(conn).map_err(|e| self.error(e))?;
        Ok(rows.into_iter().filter_map(overview).collect())
    }

    pub(super) fn list_jobs(
        &self,
        conn: &mut PgConnection,
        filter: &Filter,
        count: usize,
    ) -> Result<Vec<Listed>, Error> {
        let states: Vec<&str> = filter.states.iter().map(|state| JobState::as_str(*state)).collect();
        let values = [
            Value::OptionalText(filter.queue.as_ref().map(QueueName::as_str)),
            Value::OptionalBigInt(filter.id.map(|id| id.0)),
            Value::OptionalBigInt(filter.after.map(|id| id.0)),
            Value::OptionalText(filter.serialization_key.as_ref().map(Key::as_str)),
            Value::SomeTexts((!states.is_empty()).then_some(states)),
            Value::BigInt(i64::try_from(count).unwrap_or(i64::MAX)),
        ];
        let rows: Vec<ListedRow> =
            self.statements.list.with::<ListedSql>(&values).load(conn).map_err(|e| self.error(e))?;
        Ok(rows.into_iter().filter_map(listed).collect())
    }

    pub(super) fn move_jobs(
        &self,
        conn: &mut PgConnection,
        from: &QueueName,
        to: &QueueName,
        ids: Option<&[JobId]>,
    ) -> Result<u64, Error> {
        let ids = ids.map(|ids| ids.iter().map(|id| id.0).collect());
        let values = [Value::Text(from.as_str()), Value::Text(to.as_str()), Value::OptionalBigInts(ids)];
        self.fast_path.forget_position(to);
        let moved = self.statements.transfer.with::<Text>(&values).execute(conn);
        moved.map(|count| count as u64).map_err(|e| self.error(e))
    }

    pub(super) fn note_beat(
        &self,
        conn: &mut PgConnection,
        beat: &Heartbeat,
    ) -> Result<HeartbeatReply, Error> {
        let status = serde_json::to_string(&beat.status)
            .map_err(|error| pq_core::Error::Encode(pq_core::CodecError::new(error.to_string())))?;
        let values = [
            Value::OptionalBigInt(beat.worker.map(|worker| worker.0)),
            Value::Text(&beat.host),
            Value::BigInt(i64::from(beat.pid)),
            Value::BigInt(i64::from(beat.supervisor)),
            Value::Texts(beat.queues.iter().map(QueueName::as_str).collect()),
            Value::Integer(i32::try_from(beat.threads).unwrap_or(i32::MAX)),
            Value::Text(&status),
        ];
        let (id, stop): BeatRow =
            self.statements.beat.with::<BeatSql>(&values).get_result(conn).map_err(|e| self.error(e))?;
        Ok(HeartbeatReply { worker: WorkerId(id), stop: stop.and_then(|mode| mode.parse().ok()) })
    }

    pub(super) fn forget_worker(&self, conn: &mut PgConnection, worker: WorkerId) -> Result<(), Error> {
        let left = self.statements.leave.with::<Text>(&[Value::BigInt(worker.0)]).execute(conn);
        left.map(drop).map_err(|e| self.error(e))
    }

    pub(super) fn forget_silent(&self, conn: &mut PgConnection, after: Duration) -> Result<(), Error> {
        let values = [Value::BigInt(super::micros(after))];
        let forgotten = self.statements.forget_silent.with::<Text>(&values).execute(conn);
        forgotten.map(drop).map_err(|e| self.error(e))
    }

    pub(super) fn known_workers(&self, conn: &mut PgConnection) -> Result<Vec<WorkerInfo>, Error> {
        let rows: Vec<WorkerRow> =
            self.statements.workers.with::<WorkerSql>(&[]).load(conn).map_err(|e| self.error(e))?;
        Ok(rows.into_iter().map(worker).collect())
    }

    pub(super) fn ask_to_stop(
        &self,
        conn: &mut PgConnection,
        worker: WorkerId,
        mode: StopMode,
    ) -> Result<bool, Error> {
        self.any(conn, &self.statements.stop_worker, &[Value::Text(mode.as_str()), Value::BigInt(worker.0)])
    }

    pub(super) fn put_cron(
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

    pub(super) fn load_crons(&self, conn: &mut PgConnection, due: bool) -> Result<Vec<CronEntry>, Error> {
        let statement = if due { &self.statements.due_crons } else { &self.statements.crons };
        let rows: Vec<CronRow> = statement.with::<CronSql>(&[]).load(conn).map_err(|e| self.error(e))?;
        Ok(rows.into_iter().filter_map(cron).collect())
    }

    pub(super) fn drop_cron(&self, conn: &mut PgConnection, name: &str) -> Result<bool, Error> {
        self.any(conn, &self.statements.remove_cron, &[Value::Text(name)])
    }

    pub(super) fn change_cron(
        &self,
        conn: &mut PgConnection,
        name: &str,
        paused: bool,
        next_at: Option<DateTime<Utc>>,
    ) -> Result<bool, Error> {
        let values = [Value::Integer(paused.into()), Value::Instant(next_at), Value::Text(name)];
        self.any(conn, &self.statements.pause_cron, &values)
    }

    pub(super) fn note_tick(
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

    /// Whether the statement touched a row.
    fn any(
        &self,
        conn: &mut PgConnection,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<bool, Error> {
        let rows = statement.with::<Text>(values).execute(conn).map_err(|e| self.error(e))?;
        Ok(rows > 0)
    }
}
