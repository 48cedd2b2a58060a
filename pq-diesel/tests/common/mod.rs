//! Helpers of the tests: a migrated database, a queue, and waiting for a condition.

#![allow(dead_code, reason = "each test binary uses a part of them")]

mod migrated;

use std::error::Error as StdError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use pq_diesel::{Error, Pq, Queue};
use pq_testing::Database;
use serde_json::Value;

use self::migrated::migrated;

pub(crate) type Outcome = Result<(), Box<dyn StdError>>;

/// The longest time that a test waits for something that must happen.
///
/// It is long enough for a machine whose processors are all busy. No test waits for all of it unless it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn database() -> Result<Database, Box<dyn StdError>> {
    Ok(migrated())
}

pub(crate) fn queue(database: &Database) -> Result<Queue<Value>, Error> {
    Pq::builder().url(database.url()).pool_size(4).build()?.queue("apples")
}

/// Runs a query that counts until it counts at least one.
pub(crate) fn until(conn: &mut PgConnection, sql: &str) -> Outcome {
    let started = Instant::now();
    while diesel::dsl::sql::<BigInt>(sql).get_result::<i64>(conn)? == 0 {
        assert!(started.elapsed() < PATIENCE, "still 0: {sql}");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Makes statements that fire one of the triggers wait until the gate is opened or its connection ends.
///
/// Each is the start of a definition: `CREATE TRIGGER wait AFTER DELETE ON t FOR EACH ROW`.
pub(crate) fn close_gate(gate: &mut PgConnection, triggers: &[&str]) -> QueryResult<()> {
    gate.batch_execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             PERFORM pg_advisory_xact_lock_shared(1);
             RETURN NULL;
         END $$;
         SELECT pg_advisory_lock(1)",
    )?;
    triggers.iter().try_for_each(|trigger| gate.batch_execute(&format!("{trigger} EXECUTE FUNCTION wait()")))
}

pub(crate) fn open_gate(gate: &mut PgConnection) -> QueryResult<()> {
    gate.batch_execute("SELECT pg_advisory_unlock(1)")
}

/// Counts the sessions that listen.
pub(crate) const LISTENING: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND query LIKE 'LISTEN%' AND state = 'idle'";

/// Selects the sessions that hold or request a notifier lock.
pub(crate) const NOTIFIERS: &str =
    "SELECT pg_locks.pid FROM pg_locks JOIN pg_database ON pg_database.oid = database
    WHERE datname = current_database() AND locktype = 'advisory' AND mode = 'ExclusiveLock'";

/// Waits until no session has a notifier lock.
pub(crate) fn until_no_notifier(conn: &mut PgConnection) -> Outcome {
    until(conn, &format!("SELECT (NOT EXISTS ({NOTIFIERS}))::int::bigint"))
}

/// Puts a job by plain SQL.
pub(crate) fn put(conn: &mut PgConnection, queue: &str) -> QueryResult<()> {
    conn.batch_execute(&format!("INSERT INTO pq.queue (q_name, data) VALUES ('{queue}', '1')"))
}

/// Puts from six sessions that notify, until a handle notifies on their behalf. Returns a session that has put since
/// then and has not committed.
pub(crate) fn contend(database: &Database, queue: &str) -> Result<PgConnection, Box<dyn StdError>> {
    contend_by(database, queue, |_, stop| {
        let mut conn = database.connect()?;
        while !stop.load(Ordering::Relaxed) {
            put(&mut conn, queue)?;
        }
        Ok(())
    })
}

/// Does the same with six writers. Each is called once with its number, and puts until the flag is set.
pub(crate) fn contend_by(
    database: &Database,
    queue: &str,
    write: impl Fn(usize, &AtomicBool) -> Outcome + Sync,
) -> Result<PgConnection, Box<dyn StdError>> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let (write, stop) = (&write, &stop);
        let write = move |n| write(n, stop).map_err(|e| e.to_string());
        let writers: Vec<_> = (0..6).map(|n| threads.spawn(move || write(n))).collect();
        let stops = StopOnDrop(stop);
        let mut conn = database.connect()?;
        until(&mut conn, &format!("SELECT count(*) FROM ({NOTIFIERS} AND granted) AS notifier"))?;
        conn.batch_execute("BEGIN")?;
        put(&mut conn, queue)?;
        drop(stops);
        for writer in writers {
            writer.join().map_err(|_| "a writer panicked")??;
        }
        Ok(conn)
    })
}

/// Sets the flag when it is dropped, so that other threads end even if the test fails.
pub(crate) struct StopOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
