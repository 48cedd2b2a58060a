//! Periodic jobs whose job the database refuses.

mod common;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use pq_core::store::{Connect, Schedules};
use pq_diesel::{Pq, Queue, Retention, StopMode, Wait, Worker};
use serde_json::{Value, json};

use self::common::*;

/// Sets an entry for a tick that was due a moment ago.
fn set_due(pq: &Pq, conn: &mut PgConnection, name: &str, queue: &Queue<Value>) -> Outcome {
    let cron = queue.cron(name, "@yearly", &json!(name))?;
    let tick = pq.store().now(conn)? - TimeDelta::milliseconds(5);
    pq.store().set_cron(conn, &cron, DateTime::<Utc>::from_timestamp_micros(tick.timestamp_micros()))?;
    Ok(())
}

/// Ways in which the database refuses the jobs of a queue named `refused`.
const REFUSALS: [&str; 3] = [
    "ALTER TABLE pq.queue ADD CONSTRAINT tested CHECK (q_name <> 'refused')",
    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''not now''; END';
    CREATE TRIGGER tested BEFORE INSERT ON pq.queue FOR EACH ROW WHEN (NEW.q_name = 'refused')
    EXECUTE FUNCTION refuse()",
    // This one refuses at the commit.
    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''not now''; END';
    CREATE CONSTRAINT TRIGGER tested AFTER INSERT ON pq.queue DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (NEW.q_name = 'refused') EXECUTE FUNCTION refuse()",
];

#[test]
fn an_entry_that_cannot_be_put_stops_neither_others_nor_maintenance() -> Outcome {
    for refusal in REFUSALS {
        let database = database()?;
        let (pq, mut conn) = (Pq::builder().url(database.url()).build()?, database.connect()?);
        let (queue, refused) = (pq.queue::<Value>("apples")?, pq.queue::<Value>("refused")?);
        conn.batch_execute(refusal)?;
        queue.put(&json!("leased"))?;
        assert_eq!(queue.on(&mut conn).lease(1, Duration::ZERO)?.len(), 1);
        set_due(&pq, &mut conn, "a", &queue)?;
        set_due(&pq, &mut conn, "b", &refused)?;
        set_due(&pq, &mut conn, "c", &queue)?;

        let report = pq.maintain(&Retention::default())?;
        assert_eq!(report.map(|report| report.returned), Some(1), "{refusal}");
        let mut payloads: Vec<Value> =
            queue.get_many(10, Wait::No)?.into_iter().map(|job| job.data).collect();
        payloads.sort_by_key(Value::to_string);
        assert_eq!(payloads, [json!("a"), json!("c"), json!("leased")], "{refusal}");
        let entries = pq.crons()?;
        assert_eq!(entries.iter().map(|entry| entry.failures).collect::<Vec<_>>(), [0, 1, 0], "{refusal}");
        assert!(entries[1].error.is_some() && entries[1].next_at < Some(Utc::now()), "{refusal}");

        // It is tried again at its time, and then forgets its error.
        assert_eq!(pq.maintain(&Retention::default())?.map(|report| report.returned), Some(0));
        assert_eq!(pq.crons()?[1].failures, 1, "its pause has not ended");
        conn.batch_execute("DROP TRIGGER IF EXISTS tested ON pq.queue; ALTER TABLE pq.queue DROP CONSTRAINT IF EXISTS tested")?;
        conn.batch_execute("UPDATE pq.queue_cron SET retry_at = now() WHERE name = 'b'")?;
        pq.maintain(&Retention::default())?;
        assert_eq!(refused.get(Wait::No)?.map(|job| job.data), Some(json!("b")), "{refusal}");
        assert_eq!(pq.crons()?[1].error, None, "{refusal}");
    }
    Ok(())
}

#[test]
fn a_worker_that_may_not_read_periodic_jobs_still_returns_expired_leases() -> Outcome {
    let database = database()?;
    let (pq, mut conn) = (Pq::builder().url(database.url()).build()?, database.connect()?);
    let queue = pq.queue::<Value>("apples")?;
    queue.put(&json!(1))?;
    assert_eq!(queue.on(&mut conn).lease(1, Duration::ZERO)?.len(), 1);
    conn.batch_execute("ALTER TABLE pq.queue_cron RENAME TO hidden")?;
    let handler = queue.leased(|_, _| Ok::<_, pq_diesel::Error>(()));
    let worker = Worker::new(&pq).threads(1).serve(handler);
    let control = worker.control();
    std::thread::scope(|threads| -> Outcome {
        let runs = threads.spawn(move || worker.run());
        let done = until(
            &mut conn,
            "SELECT (NOT EXISTS (SELECT FROM pq.queue) AND NOT EXISTS (SELECT FROM pq.queue_leases))::int::bigint",
        );
        control.stop(StopMode::Finish);
        runs.join().map_err(|_| "the worker panicked")??;
        done
    })
}
