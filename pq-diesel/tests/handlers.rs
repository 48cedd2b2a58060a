//! Transactional handlers: the statements of one handler do not affect the others of its batch.

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::{Outcome, database};
use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use pq_diesel::{Backoff, Error, Isolation, JobState, Pq, Wait, Worker};
use pq_testing::Database;

/// A database with a table that handlers write to, and a handle on it.
fn with_notes() -> Result<(Database, Pq), Box<dyn std::error::Error>> {
    let database = database()?;
    database.connect()?.batch_execute("CREATE TABLE notes (note bigint PRIMARY KEY)")?;
    let pq = Pq::builder().url(database.url()).build()?;
    Ok((database, pq))
}

fn note(conn: &mut PgConnection, note: i64) -> Result<(), Error> {
    let insert = diesel::sql_query("INSERT INTO notes VALUES ($1)").bind::<BigInt, _>(note);
    insert.execute(conn).map(drop).map_err(Error::from)
}

fn notes(database: &Database) -> Result<Vec<i64>, Box<dyn std::error::Error>> {
    Ok(diesel::dsl::sql::<BigInt>("SELECT note FROM notes ORDER BY note").load(&mut database.connect()?)?)
}

/// Runs calls with 1 to 4 in batches of this size, in a database that `prepare` has changed.
///
/// Expects that 2 and 4 fail and leave nothing, and returns their errors.
fn even_calls_fail(
    size: usize,
    prepare: &str,
    work: impl Fn(&mut PgConnection, i64) -> Result<(), Error> + Send + Sync + 'static,
) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let (database, pq) = with_notes()?;
    database.connect()?.batch_execute(prepare)?;
    let queue = pq.queue::<()>("apples")?;
    let task = queue.task::<i64>("note").share_transaction(size);
    task.call_many([1, 2, 3, 4])?;
    let runs = AtomicU32::new(0);
    let handler = task.transactional(move |conn, job| {
        // Endless retries would keep the worker from ending.
        match runs.fetch_add(1, Ordering::Relaxed) {
            ..20 => work(conn, job.data),
            _ => Err(Error::Unavailable("too many attempts".to_owned())),
        }
    });
    let report = Worker::new(&pq).batch(size, size).serve(handler).run_until_empty()?;
    assert_eq!((report.done, report.failed, report.dead), (2, 2, 2), "batches of {size}");
    assert_eq!(notes(&database)?, [1, 3], "batches of {size}");
    let dead = queue.archived(JobState::Dead, None, 9)?;
    Ok(dead.into_iter().filter_map(|dead| dead.error).collect())
}

#[test]
fn a_handler_that_ignores_a_failed_statement_fails_alone() -> Outcome {
    for size in [1, 4] {
        let errors = even_calls_fail(size, "SELECT", |conn, data| {
            note(conn, data)?;
            if data % 2 == 0 {
                let _ = note(conn, 1);
            }
            Ok(())
        })?;
        let all = errors.iter().all(|error| error.contains("cannot keep the handler's writes"));
        assert!(all && errors.len() == 2, "{errors:?}");
    }
    Ok(())
}

#[test]
fn a_handler_whose_writes_fail_at_commit_fails_alone() -> Outcome {
    let deferred = "CREATE TABLE known (note bigint PRIMARY KEY);
        INSERT INTO known VALUES (1), (3);
        ALTER TABLE notes ADD FOREIGN KEY (note) REFERENCES known DEFERRABLE INITIALLY DEFERRED";
    for size in [1, 4] {
        let errors = even_calls_fail(size, deferred, note)?;
        let all = errors.iter().all(|error| error.contains("foreign key constraint"));
        assert!(all && errors.len() == 2, "{errors:?}");
    }
    Ok(())
}

#[test]
fn a_job_whose_closure_ignores_a_failed_statement_returns_alone() -> Outcome {
    let (database, pq) = with_notes()?;
    let queue = pq.queue::<i64>("apples")?;
    queue.put_many([1, 2, 3])?;
    let done = queue.get_each_with(3, Wait::No, |conn, job| {
        note(conn, job.data)?;
        if job.data == 2 {
            let _ = note(conn, 1);
        }
        Ok::<_, Error>(())
    })?;
    assert_eq!(done.iter().map(|(_, done)| done.is_ok()).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(notes(&database)?, [1, 3]);
    assert_eq!(queue.get_many(9, Wait::No)?.iter().map(|job| job.data).collect::<Vec<_>>(), [2]);
    Ok(())
}

#[test]
fn a_serialization_failure_at_commit_is_retried_and_not_counted() -> Outcome {
    for size in [1, 4] {
        let (database, pq) = with_notes()?;
        database.connect()?.batch_execute(
            "DO $$ BEGIN
                EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation TO serializable', current_database());
            END $$",
        )?;
        let task = pq.queue::<()>("apples")?.task::<i64>("note").isolation(Isolation::Serializable);
        task.call_many([1, 2])?;
        let (other, tries) = (Mutex::new(database.connect()?), Arc::new(AtomicU32::new(0)));
        let tried = Arc::clone(&tries);
        // Each of two transactions reads what the other writes, and the other one commits first. Under SERIALIZABLE the
        // second commit then fails.
        let write = |conn: &mut PgConnection, data| {
            diesel::sql_query("SELECT count(*) FROM notes").execute(conn)?;
            note(conn, data)
        };
        let handler = task.transactional(move |conn, job| {
            write(conn, job.data)?;
            if tried.fetch_add(1, Ordering::Relaxed) == 0 {
                let mut other = other.lock().unwrap_or_else(PoisonError::into_inner);
                other.transaction(|other| write(other, 100))?;
            }
            Ok::<_, Error>(())
        });
        let report = Worker::new(&pq).batch(size, size).serve(handler).run_until_empty()?;
        assert_eq!((report.done, report.failed), (2, 0), "batches of {size}");
        assert!(tries.load(Ordering::Relaxed) > 2, "the commit did not fail");
        assert_eq!(notes(&database)?, [1, 2, 100]);
    }
    Ok(())
}

/// Between the rollback of a failure and its record another thread may take the job. Then one attempt is not counted.
#[test]
fn failures_of_handlers_that_write_are_bounded_beside_other_threads() -> Outcome {
    const JOBS: usize = 60;
    const RETRIES: u32 = 3;
    let (_database, pq) = with_notes()?;
    let task = pq.queue::<()>("apples")?.task::<usize>("note").max_retries(RETRIES);
    let task = task.backoff(Backoff::fixed(Duration::ZERO));
    task.call_many(0..JOBS)?;
    let runs = Arc::new(Mutex::new(BTreeMap::<usize, u32>::new()));
    let count = Arc::clone(&runs);
    let handler = task.transactional(move |conn, job| {
        *count.lock().unwrap_or_else(PoisonError::into_inner).entry(job.data).or_default() += 1;
        diesel::sql_query("SELECT pg_sleep(0.001)").execute(conn)?;
        Err::<(), _>(Error::Unavailable("on purpose".to_owned()))
    });
    let report = Worker::new(&pq).threads(8).serve(handler).run_until_empty()?;
    assert_eq!((report.done, report.dead), (0, JOBS as u64), "{report:?}");
    let runs = runs.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(runs.values().all(|runs| (RETRIES + 1..=RETRIES + 2).contains(runs)), "{runs:?}");
    Ok(())
}

#[test]
fn a_transaction_left_open_by_a_handler_is_closed() -> Outcome {
    for size in [1, 4] {
        even_calls_fail(size, "SELECT", |conn, data| {
            let status = AnsiTransactionManager::transaction_manager_status_mut(conn);
            assert_eq!(status.transaction_depth()?.map(u32::from), Some(1));
            for _ in 0..2 {
                AnsiTransactionManager::begin_transaction(conn)?;
            }
            note(conn, data)?;
            match data {
                2 => Err(Error::from(diesel::result::Error::RollbackTransaction)),
                4 => panic!("on purpose"),
                _ => Ok(()),
            }
        })?;
    }
    Ok(())
}

#[test]
fn each_handler_has_its_own_statement_timeout() -> Outcome {
    let (_database, pq) = with_notes()?;
    let queue = pq.queue::<()>("apples")?;
    let limits = [("free", "0", None), ("short", "30s", Some(30)), ("long", "1min", Some(60))];
    let actions = ["nothing", "fail", "look", "look and fail", "set", "set and fail"];
    let seen = Arc::new(Mutex::new(Vec::new()));
    let mut worker = Worker::new(&pq).batch(500, 500);
    for (name, limit, seconds) in limits {
        let task = queue.task::<String>(name).share_transaction(500);
        let task = match seconds {
            Some(seconds) => task.timeout(Duration::from_secs(seconds)),
            None => task,
        };
        let seen = Arc::clone(&seen);
        worker = worker.serve(task.transactional(move |conn, job| {
            if !matches!(job.data.as_str(), "nothing" | "fail") {
                let now: String = diesel::dsl::sql::<Text>("SHOW statement_timeout").get_result(conn)?;
                seen.lock().unwrap_or_else(PoisonError::into_inner).push((limit, now));
            }
            // A handler without a timeout may set its own, which is not tested.
            if job.data.starts_with("set") && limit != "0" {
                conn.batch_execute("SET LOCAL statement_timeout TO 1000")?;
            }
            if job.data.ends_with("fail") { Err(Error::Unavailable("on purpose".to_owned())) } else { Ok(()) }
        }));
    }
    // Every pair of handlers in a row.
    let all: Vec<_> =
        limits.iter().flat_map(|(name, ..)| actions.map(|action| (*name, action.to_owned()))).collect();
    for (first, second) in all.iter().flat_map(|first| all.iter().map(move |second| (first, second))) {
        for (name, action) in [first, second] {
            queue.task::<String>(name).call(action)?;
        }
    }
    let report = worker.run_until_empty()?;
    assert_eq!((report.done, report.dead), (324, 324));
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(seen.len() >= 432, "{}", seen.len());
    assert_eq!(seen.iter().find(|(limit, now)| limit != now), None);
    Ok(())
}

/// Settles slowly, by a trigger that sleeps longer than the handler's timeout. The timeout is long enough for the
/// handler's own statement on a busy machine.
#[test]
fn a_handlers_timeout_does_not_apply_to_settling() -> Outcome {
    let settle_slowly = |size: usize| -> Result<(u64, u64), String> {
        let run = || -> Result<(u64, u64), Box<dyn std::error::Error>> {
            let (database, pq) = with_notes()?;
            database.connect()?.batch_execute(
                "CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS
                    $$ BEGIN PERFORM pg_sleep(2.5); RETURN NULL; END $$;
                CREATE TRIGGER sleep AFTER INSERT ON pq.queue_archive EXECUTE FUNCTION sleep()",
            )?;
            let queue = pq.queue::<()>("apples")?;
            let task = queue.task::<i64>("note").timeout(Duration::from_secs(2)).keep_history(true);
            let task = task.share_transaction(size);
            task.call_many([1, 2])?;
            let handler = task.transactional(|conn, job| note(conn, job.data));
            let report = Worker::new(&pq).batch(size, size).serve(handler).run_until_empty()?;
            Ok((report.done, queue.counts()?.done))
        };
        run().map_err(|error| error.to_string())
    };
    std::thread::scope(|threads| {
        let runs = [1, 4].map(|size| threads.spawn(move || settle_slowly(size)));
        for run in runs {
            assert_eq!(run.join().map_err(|_| "a run panicked")??, (2, 2));
        }
        Ok(())
    })
}
