//! Takes from a line in which the remains of very many jobs stand that cannot be removed.

mod common;

use std::error::Error as StdError;
use std::time::Instant;

use common::{Outcome, PATIENCE, database};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use pq_core::Scan;
use pq_core::store::Jobs;
use pq_diesel::{JobId, Pq, Queue};
use pq_testing::Database;

/// So many jobs behind the remains of others that cannot be removed as long as the second connection lives.
fn behind_remains(database: &Database, jobs: u32) -> Result<(PgConnection, PgConnection), Box<dyn StdError>> {
    let (mut conn, mut elsewhere) = (database.connect()?, database.connect()?);
    conn.batch_execute(
        "ALTER TABLE pq.queue SET (autovacuum_enabled = off);
         INSERT INTO pq.queue (q_name, data) SELECT 'apples', '0' FROM generate_series(1, 150000)",
    )?;
    elsewhere.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pq.queue LIMIT 1")?;
    conn.batch_execute(&format!(
        "DELETE FROM pq.queue;
         INSERT INTO pq.queue (q_name, data) SELECT 'apples', to_json(number) FROM generate_series(1, {jobs}) AS number"
    ))?;
    Ok((conn, elsewhere))
}

/// Takes one by one until a take begins where the last one ended, and gives what was taken.
fn take_until_walked_on(conn: &mut PgConnection, queue: &Queue<i64>) -> Result<Vec<i64>, Box<dyn StdError>> {
    let mut taken = Vec::new();
    let walked_on = |conn: &mut PgConnection| {
        let sql = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%> ($3::bigint%'";
        diesel::dsl::sql::<BigInt>(sql).get_result::<i64>(conn).map(|count| count > 0)
    };
    while !walked_on(conn)? {
        assert!(taken.len() < 1_000, "each of a thousand takes has walked over all that is gone");
        taken.push(queue.on(conn).get()?.ok_or("a job")?.data);
    }
    Ok(taken)
}

#[test]
fn takes_resume_behind_dead_tuples_that_vacuum_cannot_remove() -> Outcome {
    let database = database()?;
    let (mut conn, _elsewhere) = behind_remains(&database, 2_000)?;
    let queue = Pq::detached().queue::<i64>("apples")?;
    let mut taken = take_until_walked_on(&mut conn, &queue)?;
    // Ahead of all others, and before the place where the next take begins: its own handle knows of it.
    let first = pq_diesel::PutOptions::new().priority(5);
    queue.on(&mut conn).put_with(&-1, &first)?;
    assert_eq!(queue.on(&mut conn).get()?.map(|job| job.data), Some(-1));
    Pq::detached().queue::<i64>("apples")?.on(&mut conn).put_with(&-2, &first)?;
    while let Some(job) = queue.on(&mut conn).get()? {
        taken.push(job.data);
    }
    let late = taken.iter().position(|job| *job == -2).ok_or("the job of higher priority was never taken")?;
    assert!(late < 1_900, "it came at the very end: {late}");
    taken.remove(late);
    assert!(taken.into_iter().eq(1..=2_000), "all others were taken once and in order");
    Ok(())
}

#[test]
fn a_job_that_commits_late_is_found_behind_the_scan_position() -> Outcome {
    let database = database()?;
    let (mut conn, mut elsewhere) = (database.connect()?, database.connect()?);
    conn.batch_execute("ALTER TABLE pq.queue SET (autovacuum_enabled = off)")?;
    elsewhere.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pq.queue LIMIT 1")?;
    let pq = Pq::detached();
    let queue = pq.queue::<i64>("apples")?;
    let went_by_pieces = |conn: &mut PgConnection| {
        let sql = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%id <= $6::bigint%'";
        diesel::dsl::sql::<BigInt>(sql).get_result::<i64>(conn).map(|count| count > 0)
    };
    let begun = Instant::now();
    while !went_by_pieces(&mut conn)? {
        assert!(begun.elapsed() < PATIENCE, "each take has walked over all that is gone");
        queue.on(&mut conn).put_many(&[0; 20_000])?;
        while !queue.on(&mut conn).get_many(500)?.is_empty() {}
        queue.on(&mut conn).put_many(&[0; 100])?;
        while queue.on(&mut conn).get()?.is_some() {}
    }
    let take = |conn: &mut PgConnection| pq.store().take(conn, queue.name(), 1, Scan::Resume);
    let look = |conn: &mut PgConnection, until: fn(&pq_core::Taken) -> bool| -> Outcome {
        let begun = Instant::now();
        loop {
            let taken = take(conn)?;
            if until(&taken) {
                return Ok(());
            }
            assert!(begun.elapsed() < PATIENCE, "it is still {taken:?}");
            std::thread::sleep(taken.next_due.unwrap_or_default());
        }
    };
    // As if somebody had begun to put it long ago.
    database
        .connect()?
        .batch_execute("INSERT INTO pq.queue (id, q_name, data) VALUES (10000, 'apples', '1')")?;
    look(&mut conn, |taken| taken.jobs.first().is_some_and(|job| job.id == JobId(10_000)))?;
    // When nothing is left of them there is nothing to come back for.
    drop(elsewhere);
    database.connect()?.batch_execute("VACUUM pq.queue")?;
    look(&mut conn, |taken| taken.jobs.is_empty() && taken.next_due.is_none())?;
    Ok(())
}

#[test]
fn a_poll_skips_the_scan_over_dead_tuples() -> Outcome {
    let database = database()?;
    let (mut conn, _elsewhere) = behind_remains(&database, 1_000)?;
    let pq = Pq::detached();
    let (queue, other) = (pq.queue::<i64>("apples")?, Pq::detached().queue::<i64>("apples")?);
    take_until_walked_on(&mut conn, &queue)?;
    while queue.on(&mut conn).get()?.is_some() {}
    let (store, first) = (pq.store(), pq_diesel::PutOptions::new().priority(5));
    let take = |conn: &mut PgConnection| store.take(conn, queue.name(), 1, Scan::Resume);
    let nothing = take(&mut conn)?;
    assert!(nothing.jobs.is_empty());
    assert!(nothing.next_due.is_some_and(|due| !due.is_zero()), "{nothing:?}");
    // What comes behind all others is found at once.
    let last = other.on(&mut conn).put(&1)?;
    assert_eq!(take(&mut conn)?.jobs.first().map(|job| job.id), Some(last.id));
    // What comes before them is found by whoever has to be sure, and by the others in time.
    let before = other.on(&mut conn).put_with(&2, &first)?;
    assert_eq!(queue.on(&mut conn).get()?.map(|job| job.id), Some(before.id));
    let before = other.on(&mut conn).put_with(&3, &first)?;
    let begun = Instant::now();
    loop {
        let taken = take(&mut conn)?;
        if let Some(job) = taken.jobs.first() {
            assert_eq!(job.id, before.id);
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "it is passed by for ever");
        std::thread::sleep(taken.next_due.ok_or("a time to look again")?);
    }
    // Scheduled jobs that are due, and those with keys, are none of the line's.
    other.on(&mut conn).put_with(&4, &pq_diesel::PutOptions::new().serialization_key("k"))?;
    assert_eq!(take(&mut conn)?.jobs.len(), 1);
    Ok(())
}
