//! From rows to what an operator sees. What other writers stored and cannot be shown is left out.

use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types::{Array, BigInt, Bool, Double, Integer, Nullable, Text, Timestamptz};
use pq_core::{Cron, CronEntry, JobId, Key, Listed, Overview, Payload, QueueName, WorkerId, WorkerInfo};

use super::{nearest, span};

pub(crate) type OverviewSql = (
    Text,
    BigInt,
    BigInt,
    BigInt,
    BigInt,
    BigInt,
    BigInt,
    BigInt,
    BigInt,
    Nullable<BigInt>,
    Nullable<Timestamptz>,
    Double,
);
pub(crate) type OverviewRow =
    (String, i64, i64, i64, i64, i64, i64, i64, i64, Option<i64>, Option<PgTimestamp>, f64);

pub(crate) fn overview(row: OverviewRow) -> Option<Overview> {
    let (name, ready, blocked, scheduled, running, dequeued, dead, cancelled, done, oldest, paused_at, rate) =
        row;
    let number = |count: i64| count.max(0).unsigned_abs();
    let mut overview = Overview::of(QueueName::new(name).ok()?);
    (overview.ready, overview.blocked, overview.scheduled) =
        (number(ready), number(blocked), number(scheduled));
    (overview.running, overview.dequeued, overview.dead) = (number(running), number(dequeued), number(dead));
    (overview.cancelled, overview.done) = (number(cancelled), number(done));
    overview.oldest = oldest.map(span);
    overview.paused_at = paused_at.map(nearest);
    overview.per_second = rate;
    Some(overview)
}

pub(crate) type ListedSql = (
    BigInt,
    Text,
    Text,
    Text,
    Timestamptz,
    Nullable<Timestamptz>,
    Nullable<Timestamptz>,
    Integer,
    Integer,
    Nullable<Text>,
    Nullable<Text>,
    Nullable<Text>,
    Nullable<Text>,
    Nullable<Timestamptz>,
    Nullable<Timestamptz>,
);
pub(crate) type ListedRow = (
    i64,
    String,
    String,
    String,
    PgTimestamp,
    Option<PgTimestamp>,
    Option<PgTimestamp>,
    i32,
    i32,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<PgTimestamp>,
    Option<PgTimestamp>,
);

pub(crate) fn listed(row: ListedRow) -> Option<Listed> {
    let (
        id,
        queue,
        state,
        data,
        enqueued_at,
        schedule_at,
        expected_at,
        priority,
        attempt,
        serial,
        unique,
        error,
        result,
        lease_until,
        ended_at,
    ) = row;
    Some(Listed {
        id: JobId(id),
        queue: QueueName::new(queue).ok()?,
        state: state.parse().ok()?,
        payload: Payload::from_stored(data),
        enqueued_at: nearest(enqueued_at),
        schedule_at: schedule_at.map(nearest),
        expected_at: expected_at.map(nearest),
        priority,
        attempt,
        serialization_key: serial.map(Key::from_stored),
        unique_key: unique.map(Key::from_stored),
        error,
        result: result.map(Payload::from_stored),
        lease_until: lease_until.map(nearest),
        ended_at: ended_at.map(nearest),
    })
}

pub(crate) type BeatSql = (BigInt, Nullable<Text>);
pub(crate) type BeatRow = (i64, Option<String>);

pub(crate) type WorkerSql =
    (BigInt, Text, BigInt, BigInt, Array<Text>, Integer, Timestamptz, BigInt, Nullable<Text>, Text);
pub(crate) type WorkerRow =
    (i64, String, i64, i64, Vec<String>, i32, PgTimestamp, i64, Option<String>, String);

pub(crate) fn worker(row: WorkerRow) -> WorkerInfo {
    let (id, host, pid, supervisor, queues, threads, started_at, heard, stop, status) = row;
    WorkerInfo {
        id: WorkerId(id),
        host,
        pid: u32::try_from(pid).unwrap_or_default(),
        supervisor: u32::try_from(supervisor).unwrap_or_default(),
        queues,
        threads: usize::try_from(threads).unwrap_or_default(),
        started_at: nearest(started_at),
        heard: span(heard),
        stop: stop.and_then(|mode| mode.parse().ok()),
        // One of another version may tell other things.
        status: serde_json::from_str(&status).unwrap_or_default(),
    }
}

pub(crate) type CronSql =
    (Text, Text, Text, Text, Text, Integer, Bool, Bool, Nullable<Timestamptz>, Nullable<Timestamptz>);
pub(crate) type CronRow =
    (String, String, String, String, String, i32, bool, bool, Option<PgTimestamp>, Option<PgTimestamp>);

pub(crate) fn cron(row: CronRow) -> Option<CronEntry> {
    let (name, expression, time_zone, queue, data, priority, catch_up, paused, next_at, last_at) = row;
    let cron = Cron {
        name,
        expression,
        time_zone,
        queue: QueueName::new(queue).ok()?,
        payload: Payload::from_stored(data),
        priority,
        catch_up,
    };
    Some(CronEntry { cron, paused, next_at: next_at.map(nearest), last_at: last_at.map(nearest) })
}
