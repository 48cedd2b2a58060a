//! Transactional handlers: what handlers of one transaction share, and conflicts with other transactions.

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::{Outcome, database};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::r2d2::ConnectionManager;
use diesel::sql_types::{BigInt, Nullable, Text};
use pq_diesel::{Error, Pq, Report, Task, Worker};
use pq_testing::Database;

const ROWS: i64 = 4;
const JOBS: i64 = 200;

/// A database with a table of four rows that handlers update, and a handle on it.
fn with_stock() -> Result<(Database, Pq), Box<dyn std::error::Error>> {
    let database = database()?;
    database.connect()?.batch_execute(
        "CREATE TABLE stock (id bigint PRIMARY KEY, n bigint NOT NULL);
        INSERT INTO stock SELECT id, 0 FROM generate_series(1, 4) AS id",
    )?;
    let pq = Pq::builder().url(database.url()).pool_size(8).build()?;
    Ok((database, pq))
}

fn add_one(conn: &mut PgConnection, row: i64) -> Result<(), Error> {
    let update = diesel::sql_query("UPDATE stock SET n = n + 1 WHERE id = $1").bind::<BigInt, _>(row);
    update.execute(conn).map(drop).map_err(Error::from)
}

fn transaction_id(conn: &mut PgConnection) -> Result<i64, Error> {
    let id = diesel::dsl::sql::<BigInt>("SELECT txid_current()");
    id.get_result(conn).map_err(Error::from)
}

/// Runs calls that each update one of four rows, and returns the report and the number of transactions.
fn update_stock(
    task: &Task<i64>,
    pq: &Pq,
    threads: usize,
) -> Result<(Report, usize), Box<dyn std::error::Error>> {
    // In an order that changes, so that two threads update the rows in different orders.
    task.call_many((0..JOBS).map(|n| (n * 5 + n / 3) % ROWS + 1).collect::<Vec<_>>())?;
    let transactions = Arc::new(Mutex::new(BTreeMap::<i64, u32>::new()));
    let seen = Arc::clone(&transactions);
    let handler = task.transactional(move |conn, job| {
        add_one(conn, job.data)?;
        let id = transaction_id(conn)?;
        *seen.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default() += 1;
        Ok::<_, Error>(())
    });
    let report = Worker::new(pq).threads(threads).serve(handler).run_until_empty()?;
    let transactions = transactions.lock().unwrap_or_else(PoisonError::into_inner).len();
    Ok((report, transactions))
}

fn total(database: &Database) -> Result<i64, Box<dyn std::error::Error>> {
    Ok(diesel::dsl::sql::<BigInt>("SELECT sum(n)::bigint FROM stock").get_result(&mut database.connect()?)?)
}

#[test]
fn handlers_that_update_the_same_rows_do_not_deadlock() -> Outcome {
    let (database, pq) = with_stock()?;
    let task = pq.queue::<()>("apples")?.task::<i64>("stock");
    let time = |threads: usize| {
        let begun = Instant::now();
        update_stock(&task, &pq, threads).map(|done| (begun.elapsed(), done))
    };
    let (one, _) = time(1)?;
    let (four, (report, transactions)) = time(4)?;
    assert_eq!((report.done, report.failed, report.dead), (JOBS as u64, 0, 0));
    assert_eq!(transactions, JOBS as usize);
    assert_eq!(total(&database)?, 2 * JOBS);
    // A single deadlock takes a second.
    assert!(four < 2 * one + Duration::from_millis(700), "one thread: {one:?}, four threads: {four:?}");
    Ok(())
}

#[test]
fn a_deadlock_of_shared_transactions_is_the_failure_of_no_job() -> Outcome {
    let (database, pq) = with_stock()?;
    database.connect()?.batch_execute(
        "DO $$ BEGIN
            EXECUTE format('ALTER DATABASE %I SET deadlock_timeout TO ''20ms''', current_database());
        END $$",
    )?;
    let task = pq.queue::<()>("apples")?.task::<i64>("stock").share_transaction(50);
    let (report, transactions) = update_stock(&task, &pq, 4)?;
    assert_eq!((report.done, report.failed, report.dead), (JOBS as u64, 0, 0));
    assert!(transactions < JOBS as usize, "no handlers shared a transaction");
    assert_eq!(total(&database)?, JOBS);
    Ok(())
}

#[test]
fn a_setting_of_one_handler_does_not_reach_the_next() -> Outcome {
    let (_database, pq) = with_stock()?;
    let task = pq.queue::<()>("apples")?.task::<i64>("tenant");
    for shared_by in [1, 4] {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let note = Arc::clone(&seen);
        let handler = task.transactional(move |conn, job| {
            let tenant: Option<String> =
                diesel::dsl::sql::<Nullable<Text>>("SELECT nullif(current_setting('shop.tenant', true), '')")
                    .get_result(conn)?;
            note.lock().unwrap_or_else(PoisonError::into_inner).push(tenant.is_some());
            let set = diesel::sql_query("SELECT set_config('shop.tenant', $1, true)");
            set.bind::<Text, _>(job.data.to_string()).execute(conn).map(drop).map_err(Error::from)
        });
        task.call_many([1, 2, 3, 4])?;
        let worker = Worker::new(&pq).batch(4, 4).serve(handler.share_transaction(shared_by));
        assert_eq!(worker.run_until_empty()?.done, 4);
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // In a shared transaction it does, which shows that this test would notice.
        assert_eq!(seen, [false, shared_by > 1, shared_by > 1, shared_by > 1], "shared by {shared_by}");
    }
    Ok(())
}

/// Runs two handlers on two threads that update two rows each, in opposite orders. The first attempts deadlock.
fn deadlock(task: &Task<i64>, pq: &Pq) -> Result<(Report, u32), Box<dyn std::error::Error>> {
    let (both, begun) = (Arc::new(Barrier::new(2)), Arc::new(AtomicU32::new(0)));
    let count = Arc::clone(&begun);
    let handler = task.transactional(move |conn, job| {
        let is_first = count.fetch_add(1, Ordering::SeqCst) < 2;
        add_one(conn, job.data)?;
        if is_first {
            both.wait();
        }
        add_one(conn, 3 - job.data)
    });
    task.call_many([1, 2])?;
    let report = Worker::new(pq).threads(2).batch(1, 1).serve(handler).run_until_empty()?;
    Ok((report, begun.load(Ordering::SeqCst)))
}

#[test]
fn a_deadlock_of_two_handlers_is_run_again_and_not_counted() -> Outcome {
    let (database, pq) = with_stock()?;
    let queue = pq.queue::<()>("apples")?;
    let (report, begun) = deadlock(&queue.task("swap"), &pq)?;
    assert_eq!((report.done, report.failed), (2, 0));
    assert_eq!(begun, 3, "no attempt deadlocked");
    assert_eq!(total(&database)?, 4);
    Ok(())
}

#[test]
fn a_conflict_that_recurs_is_a_failure_after_four_runs() -> Outcome {
    let (_database, pq) = with_stock()?;
    let queue = pq.queue::<()>("apples")?;
    for shared_by in [1, 9] {
        let task = queue.task::<i64>("conflict").share_transaction(shared_by);
        let runs = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&runs);
        let handler = task.transactional(move |conn, _| {
            count.fetch_add(1, Ordering::SeqCst);
            conn.batch_execute("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$").map_err(Error::from)
        });
        task.call(&1)?;
        let report = Worker::new(&pq).serve(handler).run_until_empty()?;
        assert_eq!((report.done, report.dead), (0, 1));
        assert_eq!(runs.load(Ordering::SeqCst), 4);
    }
    Ok(())
}

#[test]
fn handlers_on_an_applications_pool_are_alone_in_their_transactions() -> Outcome {
    let (database, own) = with_stock()?;
    let manager = ConnectionManager::<PgConnection>::new(database.url());
    let pool = r2d2::Pool::builder().max_size(6).min_idle(Some(0)).build(manager)?;
    let pq = Pq::builder().pool(pool).listen(false).build()?;
    let task = pq.queue::<()>("apples")?.task::<i64>("stock");
    let (report, transactions) = update_stock(&task, &pq, 4)?;
    assert_eq!((report.done, report.failed), (JOBS as u64, 0));
    assert_eq!(transactions, JOBS as usize);
    drop(own);
    Ok(())
}
