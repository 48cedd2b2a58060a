//! Puts and gets of many threads share statements. Each call returns its own error if a statement fails.

use std::error::Error as StdError;
use std::time::{Duration, Instant};

use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use pq_core::Wait;
use pq_testing::{Database, Server};
use serde_json::{Value, json};

use crate::group_commit::MAX_CONCURRENCY;
use crate::{Error, Pq, Queue};

type TestResult = Result<(), Box<dyn StdError>>;

const TIMEOUT: Duration = Duration::from_secs(30);

const THREADS: usize = 16;

/// Returns a database that records each statement that adds or removes jobs, a handle, and a queue.
fn recorded_database() -> Result<(Database, Pq, Queue<Value>), Box<dyn StdError>> {
    let database = Server::shared()?.database()?;
    // No call is stalled for as long as a test takes.
    let hour = Duration::from_secs(3_600);
    let pq = Pq::builder().url(database.url()).listen(false).call_timeout(hour).build()?;
    pq.migrate()?;
    database.connect()?.batch_execute(
        "CREATE TABLE statements (what text);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN INSERT INTO public.statements VALUES (TG_OP); RETURN NULL; END';
         CREATE TRIGGER note AFTER INSERT OR DELETE ON pq.queue FOR EACH STATEMENT EXECUTE FUNCTION note()",
    )?;
    let queue = pq.queue("apples")?;
    Ok((database, pq, queue))
}

/// Makes a call on each of [`THREADS`] threads while the table is locked, and returns their results.
///
/// Runs `meanwhile` when all calls run or are queued, and unlocks the table afterwards.
fn behind_a_lock<R: Send>(
    database: &Database,
    waiting: impl Fn() -> usize,
    call: impl Fn(usize) -> R + Sync,
    meanwhile: impl FnOnce(&mut PgConnection, &dyn Fn() -> bool) -> TestResult,
) -> Result<Vec<R>, Box<dyn StdError>> {
    let (mut lock, mut conn) = (database.connect()?, database.connect()?);
    lock.batch_execute("BEGIN; LOCK TABLE pq.queue IN SHARE MODE")?;
    std::thread::scope(|threads| {
        // Dropped if anything fails, which releases the lock and lets the calls end.
        let mut lock = lock;
        let call = &call;
        let calls: Vec<_> = (0..THREADS).map(|n| threads.spawn(move || call(n))).collect();
        wait_until(|| waiting() == THREADS - MAX_CONCURRENCY);
        let blocked = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'";
        wait_until(|| count(&mut conn, blocked) == MAX_CONCURRENCY as i64);
        meanwhile(&mut conn, &|| calls.iter().all(|call| call.is_finished()))?;
        lock.batch_execute("COMMIT")?;
        Ok(calls.into_iter().filter_map(|call| call.join().ok()).collect())
    })
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < TIMEOUT, "the condition did not become true in time");
        std::thread::yield_now();
    }
}

fn count(conn: &mut PgConnection, sql: &str) -> i64 {
    diesel::dsl::sql::<BigInt>(sql).get_result(conn).unwrap_or(-1)
}

fn recorded(database: &Database, what: &str) -> Result<i64, Box<dyn StdError>> {
    let sql = format!("SELECT count(*) FROM statements WHERE what = '{what}'");
    Ok(count(&mut database.connect()?, &sql))
}

#[test]
fn puts_that_wait_share_a_statement() -> TestResult {
    let (database, pq, queue) = recorded_database()?;
    let waiting = || pq.store().group_puts.queued(queue.name());
    let put = |n| queue.put(&json!(n)).map(|put| (put.id, json!(n)));
    let put = behind_a_lock(&database, waiting, put, |_, _| Ok(()))?;
    let mut put = put.into_iter().collect::<Result<Vec<_>, _>>()?;
    put.sort_by_key(|(id, _)| *id);
    // The calls that ran at once, and at most as many statements for all others.
    let statements = recorded(&database, "INSERT")?;
    assert!((MAX_CONCURRENCY as i64 + 1..=2 * MAX_CONCURRENCY as i64).contains(&statements), "{statements}");
    let stored: Vec<_> = queue.get_many(100, Wait::No)?.into_iter().map(|job| (job.id, job.data)).collect();
    assert_eq!(stored, put);
    assert_eq!(put.len(), THREADS);
    Ok(())
}

#[test]
fn gets_that_wait_share_statements() -> TestResult {
    let (database, pq, queue) = recorded_database()?;
    let numbers: Vec<Value> = (0..THREADS).map(|n| json!(n)).collect();
    let ids: Vec<_> = queue.put_many(&numbers)?.into_iter().map(|put| put.id).collect();
    let waiting = || pq.store().group_takes.queued(queue.name());
    let got = behind_a_lock(&database, waiting, |_| queue.get(Wait::No), |_, _| Ok(()))?;
    let got = got.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut got: Vec<_> = got.into_iter().flatten().map(|job| job.id).collect();
    got.sort();
    assert_eq!(got, ids);
    // The calls that ran at once, and at most as many statements for all others.
    let statements = recorded(&database, "DELETE")?;
    assert!((MAX_CONCURRENCY as i64 + 1..=2 * MAX_CONCURRENCY as i64).contains(&statements), "{statements}");
    Ok(())
}

#[test]
fn a_refused_job_does_not_affect_the_rest_of_its_group() -> TestResult {
    let (database, pq, queue) = recorded_database()?;
    database.connect()?.batch_execute("ALTER TABLE pq.queue ADD CHECK (data::text <> '5')")?;
    let waiting = || pq.store().group_puts.queued(queue.name());
    let put = behind_a_lock(&database, waiting, |n| (n, queue.put(&json!(n))), |_, _| Ok(()))?;
    for (n, put) in &put {
        assert_eq!(matches!(put, Err(Error::Database { .. })), *n == 5, "{n}: {put:?}");
    }
    let mut stored: Vec<_> =
        queue.get_many(100, Wait::No)?.into_iter().map(|job| (job.id, job.data)).collect();
    stored.sort_by_key(|(id, _)| *id);
    let mut put: Vec<_> =
        put.into_iter().filter_map(|(n, put)| put.ok().map(|put| (put.id, json!(n)))).collect();
    put.sort_by_key(|(id, _)| *id);
    assert_eq!(stored, put);
    Ok(())
}

/// Terminates all sessions that wait for the lock until all calls have ended, and returns their number.
fn terminate_waiting(conn: &mut PgConnection, all_ended: &dyn Fn() -> bool) -> i64 {
    let mut terminated = 0;
    wait_until(|| {
        terminated += count(
            conn,
            "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock'",
        );
        all_ended()
    });
    terminated
}

#[test]
fn all_puts_of_a_lost_connection_report_an_unknown_outcome() -> TestResult {
    let (database, pq, queue) = recorded_database()?;
    let waiting = || pq.store().group_puts.queued(queue.name());
    let mut lost = 0;
    let put = behind_a_lock(
        &database,
        waiting,
        |n| queue.put(&json!(n)),
        |conn, all_ended| {
            lost = terminate_waiting(conn, all_ended);
            Ok(())
        },
    )?;
    assert_eq!(put.len(), THREADS);
    assert!(put.iter().all(|put| matches!(put, Err(Error::OutcomeUnknown(_)))), "{put:?}");
    assert_eq!(queue.on(&mut database.connect()?).counts()?.ready, 0);
    assert!(lost <= 2 * MAX_CONCURRENCY as i64, "{lost} statements failed, so calls were repeated");
    Ok(())
}

#[test]
fn all_gets_of_a_lost_connection_fail_and_lose_no_job() -> TestResult {
    let (database, pq, queue) = recorded_database()?;
    queue.put_many((0..THREADS).map(|n| json!(n)))?;
    let waiting = || pq.store().group_takes.queued(queue.name());
    let got = behind_a_lock(
        &database,
        waiting,
        |_| queue.get(Wait::No),
        |conn, all_ended| {
            terminate_waiting(conn, all_ended);
            Ok(())
        },
    )?;
    assert_eq!(got.len(), THREADS);
    assert!(got.iter().all(|got| matches!(got, Err(Error::Unavailable(_)))), "{got:?}");
    assert_eq!(queue.on(&mut database.connect()?).counts()?.ready, THREADS as u64);
    Ok(())
}
