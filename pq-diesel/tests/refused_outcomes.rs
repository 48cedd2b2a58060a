//! Outcomes that PostgreSQL refuses once: for a reason that passes they are passed again, and one that it never accepts
//! does not take others with it.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::{Outcome, database, until};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use pq_core::store::Archive;
use pq_diesel::{Backoff, Error, Handler, JobState, Pq, Report, Retention, Task, Worker};
use pq_testing::Database;

const LOCK_TIMEOUT: Duration = Duration::from_millis(300);

const WAITING_FOR_A_TABLE: &str =
    "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database
    WHERE datname = current_database() AND locktype = 'relation' AND NOT granted";

fn pq_with_lock_timeout(database: &Database) -> Result<Pq, Error> {
    let url = database.url();
    let separator = if url.contains('?') { '&' } else { '?' };
    let options = format!("options=-c%20lock_timeout%3D{}", LOCK_TIMEOUT.as_millis());
    Pq::builder().url(&format!("{url}{separator}{options}")).build()
}

/// Runs two jobs by a handler that calls `locked` at its first run. The table stays locked then until a session has
/// waited for it longer than the lock timeout.
///
/// Returns the report, how often the handler ran, and the errors of dead jobs.
fn run_with_locked(
    table: &'static str,
    handlers: impl FnOnce(&Task<i64>, Box<dyn Fn() + Send + Sync>) -> Vec<Handler>,
) -> Result<(Report, u32, Vec<String>), Box<dyn std::error::Error>> {
    let database = database()?;
    let pq = pq_with_lock_timeout(&database)?;
    let queue = pq.queue::<()>("apples")?;
    let task = queue.task::<i64>("eat");
    task.call_many([1, 2])?;
    let (runs, url) = (Arc::new(AtomicU32::new(0)), database.url().to_owned());
    let counted = Arc::clone(&runs);
    let lock = move || {
        if counted.fetch_add(1, Ordering::SeqCst) > 0 {
            return;
        }
        let mut locker = PgConnection::establish(&url).expect("a connection");
        locker.batch_execute(&format!("BEGIN; LOCK TABLE {table} IN EXCLUSIVE MODE")).expect("the lock");
        std::thread::spawn(move || {
            // The worker settles when the handler has returned.
            until(&mut locker, WAITING_FOR_A_TABLE).expect("a session waits for the lock");
            std::thread::sleep(LOCK_TIMEOUT + LOCK_TIMEOUT / 2);
            locker.batch_execute("COMMIT").expect("the lock is released");
        });
    };
    let mut worker = Worker::new(&pq).batch(1, 1);
    for handler in handlers(&task, Box::new(lock)) {
        worker = worker.serve(handler);
    }
    let report = worker.run_jobs(2)?;
    let dead = queue.archived(JobState::Dead, None, 9)?;
    Ok((report, runs.load(Ordering::SeqCst), dead.into_iter().filter_map(|dead| dead.error).collect()))
}

#[test]
fn a_leased_outcome_that_a_lock_timeout_refuses_is_passed_again() -> Outcome {
    let (report, runs, dead) = run_with_locked("pq.queue_leases", |task, lock| {
        vec![task.leased(move |_, _| {
            lock();
            Ok::<_, Error>(())
        })]
    })?;
    assert_eq!((report.done, report.lost, runs), (2, 0, 2), "{dead:?}");
    Ok(())
}

#[test]
fn a_transaction_that_a_lock_timeout_refuses_runs_again_uncounted() -> Outcome {
    let (report, runs, dead) = run_with_locked("pq.queue_archive", |task, lock| {
        let handler = task.transactional(move |_, _| {
            lock();
            Ok::<_, Error>(())
        });
        vec![handler.keep_history(true)]
    })?;
    assert_eq!((report.done, report.failed), (2, 0), "{dead:?}");
    assert!(runs > 2, "the first transaction was not refused");
    Ok(())
}

/// The other handler makes the queue leased, so that the transaction is not the one that took the job.
#[test]
fn a_transaction_under_a_lease_that_a_lock_timeout_refuses_runs_again_uncounted() -> Outcome {
    let (report, _, dead) = run_with_locked("pq.queue_archive", |task, lock| {
        let handler = task.transactional(move |_, _| {
            lock();
            Ok::<_, Error>(())
        });
        let other = task.queue().task::<i64>("other").leased(|_, _| Ok::<_, Error>(()));
        vec![handler.keep_history(true), other]
    })?;
    assert_eq!((report.done + report.snoozed, report.failed, report.lost), (2, 0, 0), "{dead:?}");
    Ok(())
}

#[test]
fn an_outcome_that_is_refused_for_good_is_lost_alone() -> Outcome {
    let database = database()?;
    database.connect()?.batch_execute("ALTER TABLE pq.queue_archive ADD CHECK (error <> 'a bad outcome')")?;
    let pq = Pq::builder().url(database.url()).build()?;
    let task = pq.queue::<()>("apples")?.task::<i64>("eat");
    task.call_many([1, 2, 3, 4, 5])?;
    let handler = task.leased(|_, job| match job.data {
        3 => Ok(pq_diesel::Outcome::dead("a bad outcome")),
        4 => Err("a failure"),
        _ => Ok(pq_diesel::Outcome::Complete),
    });
    let report = Worker::new(&pq).batch(5, 5).serve(handler).run_jobs(5)?;
    assert_eq!((report.done, report.dead, report.lost), (3, 1, 1));
    Ok(())
}

/// The extension of the lease is refused, as it is when the store answers again only after it was tried.
#[test]
fn a_worker_does_not_requeue_the_jobs_of_its_own_leases() -> Outcome {
    let database = database()?;
    database.connect()?.batch_execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE 'not now' USING ERRCODE = '55P03'; END $$;
        CREATE TRIGGER refuse BEFORE UPDATE ON pq.queue_leases FOR EACH ROW EXECUTE FUNCTION refuse()",
    )?;
    let pq = Pq::builder().url(database.url()).build()?;
    let task = pq.queue::<()>("apples")?.task::<i64>("eat").max_retries(5);
    task.clone().backoff(Backoff::fixed(Duration::ZERO)).call(&1)?;
    let lease = Duration::from_millis(200);
    let expired =
        "SELECT count(*) FROM pq.queue_leases WHERE lease_until < clock_timestamp() - interval '300 ms'";
    let url = database.url().to_owned();
    let handler = task.leased(move |_, _| {
        let mut conn = PgConnection::establish(&url).map_err(|error| error.to_string())?;
        until(&mut conn, expired).map_err(|error| error.to_string())
    });
    let worker = Worker::new(&pq).lease(lease).maintain_every(Duration::from_millis(20));
    let report = worker.serve(handler).run_jobs(1)?;
    assert_eq!((report.done, report.lost), (1, 0));
    Ok(())
}

/// The refusal lasts for three leases. Another process runs maintenance meanwhile.
#[test]
fn a_lease_is_extended_while_its_outcome_is_refused() -> Outcome {
    const LEASE: Duration = Duration::from_secs(1);
    let database = database()?;
    database.connect()?.batch_execute(
        "CREATE TABLE refused (since timestamptz);
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF EXISTS (SELECT FROM public.refused WHERE since > clock_timestamp() - interval '3 s') THEN
                RAISE 'not now' USING ERRCODE = '55P03';
            END IF;
            RETURN OLD;
        END $$;
        CREATE TRIGGER refuse BEFORE DELETE ON pq.queue_leases FOR EACH ROW
            WHEN (current_setting('application_name') <> 'other') EXECUTE FUNCTION refuse()",
    )?;
    let pq = Pq::builder().url(database.url()).build()?;
    let (task, runs) = (pq.queue::<()>("apples")?.task::<i64>("eat"), Arc::new(AtomicU32::new(0)));
    task.call(&1)?;
    let (counted, url) = (Arc::clone(&runs), database.url().to_owned());
    let handler = task.leased(move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        let mut conn = PgConnection::establish(&url).map_err(|error| error.to_string())?;
        conn.batch_execute("INSERT INTO refused VALUES (clock_timestamp())")
            .map_err(|error| error.to_string())
    });
    let worker = Worker::new(&pq).lease(LEASE).maintain_every(Duration::MAX).serve(handler);
    let mut other = database.connect()?;
    other.batch_execute("SET application_name TO other")?;
    let report = std::thread::scope(|threads| -> Result<Report, Box<dyn std::error::Error>> {
        let working = threads.spawn(|| worker.run_jobs(1));
        while !working.is_finished() {
            let report = Pq::detached().store().maintain(&mut other, &Retention::default())?;
            assert_eq!(report.map_or(0, |report| report.returned), 0, "the lease was not extended");
            std::thread::sleep(LEASE / 20);
        }
        Ok(working.join().map_err(|_| "the worker panicked")??)
    })?;
    assert_eq!((report.done, report.lost, runs.load(Ordering::SeqCst)), (1, 0, 1));
    Ok(())
}
