//! What the tests share: a database with the table, and a queue.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::error::Error as StdError;
use std::time::{Duration, Instant};

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
