//! What the tests share: a database with the table, and a queue.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::error::Error as StdError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use pq_diesel::{Error, Pq, Queue};
use pq_testing::{Database, Server};
use serde_json::Value;

pub(crate) type Outcome = Result<(), Box<dyn StdError>>;

/// How long something that must happen may take. Nothing is measured by it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn database() -> Result<Database, Box<dyn StdError>> {
    let database = Server::shared()?.database()?;
    Pq::detached().migrate_on(&mut database.connect()?)?;
    Ok(database)
}

pub(crate) fn queue(database: &Database) -> Result<Queue<Value>, Error> {
    Ok(Pq::builder().url(database.url()).pool_size(4).build()?.queue("apples")?)
}

/// Runs `sql`, which counts something, until it counts at least one.
pub(crate) fn until(conn: &mut PgConnection, sql: &str) -> Outcome {
    let begun = Instant::now();
    while diesel::dsl::sql::<BigInt>(sql).get_result::<i64>(conn)? == 0 {
        assert!(begun.elapsed() < PATIENCE, "it never came to {sql}");
        std::thread::yield_now();
    }
    Ok(())
}

pub(crate) const LISTENING: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND query LIKE 'LISTEN%' AND state = 'idle'";

/// The sessions of those who tell for others.
pub(crate) const TELLERS: &str =
    "SELECT pg_locks.pid FROM pg_locks JOIN pg_database ON pg_database.oid = database
    WHERE datname = current_database() AND locktype = 'advisory' AND mode = 'ExclusiveLock'";

pub(crate) fn until_nobody_tells(conn: &mut PgConnection) -> Outcome {
    until(conn, &format!("SELECT (NOT EXISTS ({TELLERS}))::int::bigint"))
}

/// Puts by plain SQL.
pub(crate) fn put(conn: &mut PgConnection, queue: &str) -> QueryResult<()> {
    conn.batch_execute(&format!("INSERT INTO pq.queue (q_name, data) VALUES ('{queue}', '1')"))
}

/// Puts by six sessions, each put a transaction that tells of it, until a listener tells in their place.
pub(crate) fn crowd(database: &Database, queue: &str) -> Outcome {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let write = || -> Result<(), String> {
            let mut conn = database.connect().map_err(|e| e.to_string())?;
            while !is_over.load(Ordering::Relaxed) {
                put(&mut conn, queue).map_err(|e| e.to_string())?;
            }
            Ok(())
        };
        let writers: Vec<_> = (0..6).map(|_| threads.spawn(write)).collect();
        let end = End(&is_over);
        until(&mut database.connect()?, &format!("SELECT count(*) FROM ({TELLERS} AND granted) AS teller"))?;
        drop(end);
        for writer in writers {
            writer.join().map_err(|_| "a writer panicked")??;
        }
        Ok(())
    })
}

/// Ends the writers, also where it never came to what they are for.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
