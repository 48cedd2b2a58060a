//! What pq-testing gives to the tests of an application, on PostgreSQL.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::{Outcome, database};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, Pool};
use diesel::sql_types::BigInt;
use pq_diesel::{Backoff, CallOptions, Error, Failure, JobState, Pq, Task, Worker};
use pq_testing::{
    Database, Expected, Fault, advance, advance_on, assert_called, assert_not_called, calls_of,
    test_transaction, work_all, work_one, work_one_with,
};

type TestPool = Pool<ConnectionManager<PgConnection>>;

const MINUTE: Duration = Duration::from_secs(60);

/// A database with a table that handlers write to, which is committed.
fn with_notes() -> Result<Database, Box<dyn std::error::Error>> {
    let database = database()?;
    database.connect()?.batch_execute("CREATE TABLE notes (note bigint PRIMARY KEY)")?;
    Ok(database)
}

/// A handle whose only connection is in a transaction that is rolled back.
fn in_test_transaction(database: &Database) -> Result<(TestPool, Pq), Box<dyn std::error::Error>> {
    let pool = test_transaction(database.url())?;
    let pq = Pq::builder().pool(pool.clone()).listen(false).build()?;
    Ok((pool, pq))
}

fn note(conn: &mut PgConnection, note: u32) -> Result<(), Error> {
    let insert = diesel::sql_query("INSERT INTO notes VALUES ($1)").bind::<BigInt, _>(i64::from(note));
    insert.execute(conn).map(drop).map_err(Error::from)
}

fn notes(conn: &mut PgConnection) -> QueryResult<Vec<i64>> {
    diesel::dsl::sql::<BigInt>("SELECT note FROM notes ORDER BY note").load(conn)
}

/// Returns a task whose jobs are retried after a minute.
fn task(pq: &Pq) -> Result<Task<u32>, Error> {
    Ok(pq.queue::<()>("notes")?.task("note").max_retries(3).backoff(Backoff::fixed(MINUTE)))
}

fn transactional(pq: &Pq) -> Result<Worker, Error> {
    Ok(Worker::new(pq).serve(task(pq)?.transactional(|conn, job| note(conn, job.data))))
}

/// Returns a worker whose leased handler settles its job together with what it writes.
fn leased(pq: &Pq) -> Result<Worker, Error> {
    let handler = task(pq)?.leased(|context, job| {
        context.transaction(|conn| {
            note(conn, job.data)?;
            context.complete_with(conn)
        })
    });
    Ok(Worker::new(pq).serve(handler))
}

/// Expects that another session sees no note and no job.
fn assert_nothing_is_committed(database: &Database) -> Outcome {
    let pq = Pq::builder().url(database.url()).listen(false).build()?;
    assert_eq!(notes(&mut database.connect()?)?, Vec::<i64>::new());
    assert!(pq.overview()?.is_empty(), "{:?}", pq.overview()?);
    assert!(pq.workers()?.is_empty());
    Ok(())
}

#[test]
fn calls_are_asserted_on_the_callers_connection_in_its_test_transaction() -> Outcome {
    let database = with_notes()?;
    let mut conn = database.connect()?;
    conn.begin_test_transaction()?;
    // The handle has no connections, so nothing else can have been looked at.
    let task = task(&Pq::detached())?;
    conn.transaction(|conn| {
        note(conn, 1)?;
        task.on(conn).call_with(&1, &CallOptions::new().schedule_at("1h").priority(2)).map(drop)
    })?;
    assert_called(task.on(&mut conn), Expected::arguments(&1).schedule_at("1h").priority(2));
    assert_not_called(task.on(&mut conn), &2);
    let failed = catch_unwind(AssertUnwindSafe(|| drop(assert_called(task.on(&mut conn), &2))));
    let message = failed.err().and_then(|panic| panic.downcast::<String>().ok()).ok_or("it was called")?;
    assert!(
        message.starts_with("task \"note\" was not called with 2\nit was called with\n  job 1, "),
        "{message}"
    );
    assert!(message.contains("scheduled: 1, priority 2, scheduled for "), "{message}");
    assert_nothing_is_committed(&database)
}

#[test]
fn schedules_of_a_bulk_put_match() -> Outcome {
    let database = database()?;
    let pq = Pq::builder().url(database.url()).listen(false).build()?;
    let task = task(&pq)?.with_defaults(CallOptions::new().schedule_at("1h"));
    task.call_all(0..2_500)?;
    assert_eq!(calls_of(&task)?.len(), 2_500);
    assert_called(&task, Expected::arguments(&2_499).schedule_at("1h"));
    Ok(())
}

#[test]
fn workers_run_in_a_transaction_that_is_rolled_back() -> Outcome {
    let database = with_notes()?;
    for (worker, kind) in [(transactional as fn(&Pq) -> _, "transactional"), (leased, "leased")] {
        let (pool, pq) = in_test_transaction(&database)?;
        let task = task(&pq)?;
        pool.get()?.transaction(|conn| {
            note(conn, 1)?;
            task.on(conn).call_many([2, 3, 4]).map(drop)
        })?;
        let one = work_one(&pq, worker(&pq)?)?.ok_or("no job is ready")?;
        assert_eq!((one.number, one.result.is_ok()), (1, true), "{kind}");
        assert_eq!(notes(&mut *pool.get()?)?, [1, 2], "{kind}");
        let worked = work_all(&pq, worker(&pq)?)?;
        assert_eq!((worked.report.failed, worked.attempts.len()), (0, 2), "{kind}");
        assert_eq!(notes(&mut *pool.get()?)?, [1, 2, 3, 4], "{kind}");
        assert_not_called(&task, Expected::any());
        assert_nothing_is_committed(&database)?;
        drop((task, pq, pool));
        assert_nothing_is_committed(&database)?;
    }
    Ok(())
}

#[test]
fn a_whole_worker_runs_in_a_transaction_that_is_rolled_back() -> Outcome {
    // As the application runs it: with threads, heartbeats and maintenance, which share the one connection.
    let database = with_notes()?;
    let (pool, pq) = in_test_transaction(&database)?;
    task(&pq)?.call_all(1..=50)?;
    let worker = leased(&pq)?.threads(3).heartbeat_every(Some(Duration::from_millis(50)));
    let report = worker.maintain_every(Duration::from_millis(50)).run_until_empty()?;
    assert_eq!((report.done, report.failed, report.lost), (50, 0, 0));
    assert_eq!(notes(&mut *pool.get()?)?.len(), 50);
    assert_nothing_is_committed(&database)
}

#[test]
fn a_failed_statement_of_a_handler_does_not_end_the_test_transaction() -> Outcome {
    let database = with_notes()?;
    for worker in [transactional as fn(&Pq) -> _, leased] {
        let (pool, pq) = in_test_transaction(&database)?;
        let task = task(&pq)?;
        note(&mut *pool.get()?, 1)?;
        // The note exists, so the handler fails until it is deleted.
        task.call(&1)?;
        for number in 1..=2 {
            let attempt = work_one(&pq, worker(&pq)?)?.ok_or("no job is ready")?;
            assert_eq!((attempt.number, attempt.result.is_err()), (number, true));
            assert!(work_one(&pq, worker(&pq)?)?.is_none(), "it backs off");
            advance(&pq, MINUTE)?;
        }
        diesel::sql_query("DELETE FROM notes").execute(&mut *pool.get()?)?;
        let attempt = work_one(&pq, worker(&pq)?)?.ok_or("no job is ready")?;
        assert_eq!((attempt.number, attempt.result.is_ok()), (3, true));
        assert_eq!(notes(&mut *pool.get()?)?, [1]);
        assert_nothing_is_committed(&database)?;
    }
    Ok(())
}

#[test]
fn injected_faults_are_followed_by_what_follows_real_ones() -> Outcome {
    for rolls_back in [true, false] {
        let database = with_notes()?;
        let (pool, in_transaction) = in_test_transaction(&database)?;
        let committing = Pq::builder().url(database.url()).listen(false).build()?;
        let pq = if rolls_back { &in_transaction } else { &committing };
        let task = task(pq)?;
        task.call(&1)?;
        let fail = |fault: Fault| work_one_with(pq, transactional(pq)?, fault);
        let failed = fail(Fault::Error("no".to_owned()))?.ok_or("no job is ready")?;
        assert_eq!(failed.result.err(), Some(Failure::Error("no".to_owned())));
        advance(pq, MINUTE)?;
        let failed = fail(Fault::Panic("oh".to_owned()))?.ok_or("no job is ready")?;
        assert_eq!((failed.number, failed.result.err()), (2, Some(Failure::Panic("oh".to_owned()))));
        advance(pq, MINUTE)?;
        // A retry runs under a lease, so this is a crash.
        fail(Fault::WorkerDies)?.ok_or("no job is ready")?;
        assert_called(&task, Expected::arguments(&1).state(JobState::Running));
        assert!(work_one(pq, transactional(pq)?)?.is_none(), "its lease has not expired");
        advance(pq, MINUTE)?;
        let done = work_one(pq, transactional(pq)?)?.ok_or("no job is ready")?;
        assert_eq!((done.number, done.job.crashes, done.result.is_ok()), (4, 1, true));
        assert_not_called(&task, Expected::any());
        let notes = if rolls_back { notes(&mut *pool.get()?)? } else { notes(&mut database.connect()?)? };
        assert_eq!(notes, [1], "each earlier attempt was rolled back");
    }
    Ok(())
}

#[test]
fn the_transaction_of_a_dead_worker_is_rolled_back_before_the_call_returns() -> Outcome {
    let database = with_notes()?;
    let pq = Pq::builder().url(database.url()).listen(false).build()?;
    task(&pq)?.call(&1)?;
    work_one_with(&pq, transactional(&pq)?, Fault::WorkerDies)?.ok_or("no job is ready")?;
    assert!(notes(&mut database.connect()?)?.is_empty());
    assert_called(&task(&pq)?, Expected::arguments(&1).state(JobState::Ready));
    // No transaction holds the job, so a single try takes it.
    assert!(work_one(&pq, transactional(&pq)?)?.is_some_and(|attempt| attempt.result.is_ok()));
    assert_eq!(notes(&mut database.connect()?)?, [1]);
    Ok(())
}

#[test]
fn jobs_of_one_serialization_key_run_in_a_transaction_that_is_rolled_back() -> Outcome {
    let database = with_notes()?;
    for worker in [transactional as fn(&Pq) -> _, leased] {
        let (pool, pq) = in_test_transaction(&database)?;
        let task = task(&pq)?.serialize_by(|_| "all".to_owned());
        task.call_many([1, 2, 3])?;
        work_all(&pq, worker(&pq)?)?;
        assert_eq!(notes(&mut *pool.get()?)?, [1, 2, 3]);
        assert_nothing_is_committed(&database)?;
    }
    Ok(())
}

#[test]
fn tests_that_share_a_table_do_not_disturb_each_other() -> Outcome {
    let database = with_notes()?;
    let (pool, one) = in_test_transaction(&database)?;
    let (_other_pool, other) = in_test_transaction(&database)?;
    for pq in [&one, &other] {
        task(pq)?.call(&1)?;
        task(pq)?.call_with(&2, &CallOptions::new().schedule_at("1m"))?;
        work_one_with(pq, leased_without_writes(pq)?, Fault::WorkerDies)?.ok_or("no job is ready")?;
    }
    advance(&one, MINUTE)?;
    assert_eq!(work_all(&one, leased_without_writes(&one)?)?.report.done, 2);
    // Maintenance of the other one works too, although the first transaction that has run it is still open.
    assert_eq!(work_all(&other, leased_without_writes(&other)?)?.report.done, 0, "no time has passed there");
    advance(&other, MINUTE)?;
    assert_eq!(work_all(&other, leased_without_writes(&other)?)?.report.done, 2);
    // Nor does it leave a time limit in the transaction.
    let limit: String = diesel::dsl::sql::<diesel::sql_types::Text>(
        "SELECT current_setting('idle_in_transaction_session_timeout')",
    )
    .get_result(&mut *pool.get()?)?;
    assert_eq!(limit, "0");
    Ok(())
}

fn leased_without_writes(pq: &Pq) -> Result<Worker, Error> {
    Ok(Worker::new(pq).serve(task(pq)?.leased(|_, _| Ok::<_, Error>(()))))
}

#[test]
fn time_passes_in_a_transaction_of_the_caller_only() -> Outcome {
    let database = with_notes()?;
    let pq = Pq::builder().url(database.url()).listen(false).build()?;
    task(&pq)?.call_with(&1, &CallOptions::new().schedule_at("1m"))?;
    let runs = Arc::new(AtomicU32::new(0));
    pq.transaction(|conn| {
        advance_on(&pq, conn, MINUTE)?;
        assert_called(task(&pq)?.on(conn), Expected::any().state(JobState::Ready));
        runs.fetch_add(1, Ordering::SeqCst);
        Err::<(), _>(Error::Unavailable("on purpose".to_owned()))
    })
    .expect_err("it is rolled back");
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    assert_called(&task(&pq)?, Expected::any().state(JobState::Scheduled));
    Ok(())
}

#[test]
fn a_handler_that_uses_the_handle_instead_of_its_connection_gets_an_error() -> Outcome {
    let database = with_notes()?;
    let manager = ConnectionManager::new(database.url());
    let pool = Pool::builder()
        .max_size(1)
        // The first connection is made within it, too.
        .connection_timeout(Duration::from_secs(2))
        .connection_customizer(Box::new(diesel::r2d2::TestCustomizer))
        .build(manager)?;
    let pq = Pq::builder().pool(pool).listen(false).build()?;
    let (first, second) = (task(&pq)?, pq.queue::<()>("notes")?.task::<u32>("other"));
    first.call(&1)?;
    let worker = Worker::new(&pq).serve(first.transactional(move |_, job| second.call(&job.data).map(drop)));
    let attempt = work_one(&pq, worker)?.ok_or("no job is ready")?;
    let failure = attempt.result.err().map(|failure| failure.to_string()).unwrap_or_default();
    assert!(failure.contains("all connections") || failure.contains("pool"), "{failure}");
    Ok(())
}

#[test]
fn a_nested_transaction_of_a_test_takes_one_job_of_a_serialization_key() -> Outcome {
    let database = with_notes()?;
    let (_pool, pq) = in_test_transaction(&database)?;
    let values = pq.queue::<serde_json::Value>("notes")?;
    task(&pq)?.serialize_by(|_| "all".to_owned()).call_many([1, 2, 3])?;
    for _ in 1..=2 {
        pq.transaction(|conn| {
            assert!(values.on(conn).get()?.is_some());
            assert!(values.on(conn).get()?.is_none(), "the transaction holds the key");
            Ok::<_, Error>(())
        })?;
    }
    // The job of a lease holds the key, also in the transaction that has taken it.
    let leased = values.lease(1, MINUTE, pq_diesel::Wait::No)?;
    task(&pq)?.serialize_by(|_| "all".to_owned()).call(&4)?;
    assert!(values.get(pq_diesel::Wait::No)?.is_none());
    values.settle(&leased[0], pq_diesel::Outcome::Complete)?;
    assert!(values.get(pq_diesel::Wait::No)?.is_some());
    Ok(())
}
