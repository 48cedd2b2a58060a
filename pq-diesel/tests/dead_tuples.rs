//! Takes from a queue with many dead tuples that vacuum cannot remove.

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

/// Puts jobs behind many dead tuples. Vacuum cannot remove them while the second connection lives.
fn put_behind_dead_tuples(
    database: &Database,
    jobs: u32,
) -> Result<(PgConnection, PgConnection), Box<dyn StdError>> {
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

/// Takes one by one until a take resumes where the last one ended, and returns what was taken.
fn take_until_resumed(conn: &mut PgConnection, queue: &Queue<i64>) -> Result<Vec<i64>, Box<dyn StdError>> {
    let mut taken = Vec::new();
    let has_resumed = |conn: &mut PgConnection| {
        let sql = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%> ($3::bigint%'";
        diesel::dsl::sql::<BigInt>(sql).get_result::<i64>(conn).map(|count| count > 0)
    };
    while !has_resumed(conn)? {
        assert!(taken.len() < 1_000, "a thousand takes all scanned the dead tuples");
        taken.push(queue.on(conn).get()?.ok_or("a job")?.data);
    }
    Ok(taken)
}

#[test]
fn takes_resume_behind_dead_tuples_that_vacuum_cannot_remove() -> Outcome {
    let database = database()?;
    let (mut conn, _elsewhere) = put_behind_dead_tuples(&database, 2_000)?;
    let queue = Pq::detached().queue::<i64>("apples")?;
    let mut taken = take_until_resumed(&mut conn, &queue)?;
    // This job sorts before the position where the next take resumes. Its own handle is notified of it.
    let first = pq_diesel::PutOptions::new().priority(5);
    queue.on(&mut conn).put_with(&-1, &first)?;
    assert_eq!(queue.on(&mut conn).get()?.map(|job| job.data), Some(-1));
    Pq::detached().queue::<i64>("apples")?.on(&mut conn).put_with(&-2, &first)?;
    while let Some(job) = queue.on(&mut conn).get()? {
        taken.push(job.data);
    }
    let late = taken.iter().position(|job| *job == -2).ok_or("the job of higher priority was never taken")?;
    assert!(late < 1_900, "the job of another handle was taken last: {late}");
    taken.remove(late);
    assert!(taken.into_iter().eq(1..=2_000), "the others must be taken once and in order");
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
    let scanned_a_range = |conn: &mut PgConnection| {
        let sql = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%id <= $8%'";
        diesel::dsl::sql::<BigInt>(sql).get_result::<i64>(conn).map(|count| count > 0)
    };
    let started = Instant::now();
    while !scanned_a_range(&mut conn)? {
        assert!(started.elapsed() < PATIENCE, "all takes scanned the dead tuples");
        queue.on(&mut conn).put_many(vec![0; 20_000])?;
        while !queue.on(&mut conn).get_many(500)?.is_empty() {}
        queue.on(&mut conn).put_many([0; 100])?;
        while queue.on(&mut conn).get()?.is_some() {}
    }
    let take = |conn: &mut PgConnection| pq.store().take(conn, queue.name(), 1, Scan::Resume);
    let take_until = |conn: &mut PgConnection, until: fn(&pq_core::Taken) -> bool| -> Outcome {
        let started = Instant::now();
        loop {
            let taken = take(conn)?;
            if until(&taken) {
                return Ok(());
            }
            assert!(started.elapsed() < PATIENCE, "still {taken:?}");
            std::thread::sleep(taken.next_due.unwrap_or_default());
        }
    };
    // As if a transaction that began long ago had committed its put now.
    database
        .connect()?
        .batch_execute("INSERT INTO pq.queue (id, q_name, data) VALUES (10000, 'apples', '1')")?;
    take_until(&mut conn, |taken| taken.jobs.first().is_some_and(|job| job.id == JobId(10_000)))?;
    // Once vacuum has removed the dead tuples, no further scan is due.
    drop(elsewhere);
    database.connect()?.batch_execute("VACUUM pq.queue")?;
    take_until(&mut conn, |taken| taken.jobs.is_empty() && taken.next_due.is_none())?;
    Ok(())
}

#[test]
fn a_poll_skips_the_scan_over_dead_tuples() -> Outcome {
    let database = database()?;
    let (mut conn, _elsewhere) = put_behind_dead_tuples(&database, 1_000)?;
    let pq = Pq::detached();
    let (queue, other) = (pq.queue::<i64>("apples")?, Pq::detached().queue::<i64>("apples")?);
    take_until_resumed(&mut conn, &queue)?;
    while queue.on(&mut conn).get()?.is_some() {}
    let (store, first) = (pq.store(), pq_diesel::PutOptions::new().priority(5));
    let take = |conn: &mut PgConnection| store.take(conn, queue.name(), 1, Scan::Resume);
    // A take that skips the scan says when the next scan is due. On a slow machine that time may have come already, so
    // the take scans and the next one skips.
    let started = Instant::now();
    loop {
        let nothing = take(&mut conn)?;
        assert!(nothing.jobs.is_empty());
        if nothing.next_due.is_some_and(|due| !due.is_zero()) {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "no take skips the scan: {nothing:?}");
    }
    // A job that sorts after all others is found at once.
    let last = other.on(&mut conn).put(&1)?;
    assert_eq!(take(&mut conn)?.jobs.first().map(|job| job.id), Some(last.id));
    // A job that sorts before them is found by a full scan at once, and by other takes when the next scan is due.
    let before = other.on(&mut conn).put_with(&2, &first)?;
    assert_eq!(queue.on(&mut conn).get()?.map(|job| job.id), Some(before.id));
    let before = other.on(&mut conn).put_with(&3, &first)?;
    let started = Instant::now();
    loop {
        let taken = take(&mut conn)?;
        if let Some(job) = taken.jobs.first() {
            assert_eq!(job.id, before.id);
            break;
        }
        assert!(started.elapsed() < PATIENCE, "the job is never found");
        std::thread::sleep(taken.next_due.ok_or("no time of the next scan")?);
    }
    // Jobs with keys are in another index, which is scanned as usual.
    other.on(&mut conn).put_with(&4, &pq_diesel::PutOptions::new().serialization_key("k"))?;
    assert_eq!(take(&mut conn)?.jobs.len(), 1);
    Ok(())
}
