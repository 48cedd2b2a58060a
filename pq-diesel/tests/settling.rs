//! Settling beside other sessions: each statement that waits for a lock must see what was committed meanwhile.
//!
//! Every test runs two sessions in a fixed order. One of them changes a lease in an open transaction, the other waits
//! for it, and the transaction ends.

mod common;

use std::time::Duration;

use common::{Outcome, PATIENCE, close_gate, database, open_gate, queue, until};
use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use pq_core::store::{Extension, Jobs};
use pq_diesel::{
    CancelOutcome, Error, Job, JobResult, Outcome as Ending, Pq, Queue, Retention, Settlement, Wait,
};
use pq_testing::Database;
use serde_json::{Value, json};

type Tested<T> = Result<T, Box<dyn std::error::Error>>;

/// Counts the sessions that wait for a lock of another one.
const WAITING: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'";

/// Returns a queue with as many jobs, which one lease holds.
fn leased(database: &Database, jobs: usize) -> Tested<(Queue<Value>, Vec<Job<Value>>)> {
    let queue = queue(database)?;
    queue.put_many((0..jobs).map(|n| json!(n)))?;
    let held = queue.lease(jobs, PATIENCE, Wait::No)?;
    assert_eq!(held.len(), jobs);
    Ok((queue, held))
}

/// Begins a transaction whose snapshot is taken at once, if it has only one.
fn begin(conn: &mut PgConnection, isolation: &str) -> Outcome {
    AnsiTransactionManager::begin_transaction(conn)?;
    Ok(conn.batch_execute(&format!(
        "SET TRANSACTION ISOLATION LEVEL {isolation}; SELECT FROM pg_class LIMIT 1"
    ))?)
}

fn end_by(conn: &mut PgConnection, end: &str) -> Outcome {
    match end {
        "COMMIT" => AnsiTransactionManager::commit_transaction(conn)?,
        _ => AnsiTransactionManager::rollback_transaction(conn)?,
    }
    Ok(())
}

fn retry() -> Ending {
    Ending::Retry { after: Duration::ZERO, error: "again".to_owned(), payload: None }
}

/// Settles jobs on this connection and returns which outcomes were accepted.
fn settle(conn: &mut PgConnection, outcomes: &[(&Job<Value>, Ending)]) -> Result<Vec<bool>, Error> {
    let settlements: Vec<Settlement<'_>> =
        outcomes.iter().map(|(job, outcome)| Settlement { job, outcome: outcome.clone() }).collect();
    Ok(Pq::detached().store().settle(conn, &settlements)?.into_iter().collect())
}

/// Returns a connection with an open transaction in which these outcomes were accepted.
fn open_with(database: &Database, outcomes: &[(&Job<Value>, Ending)]) -> Tested<PgConnection> {
    let mut open = database.connect()?;
    begin(&mut open, "READ COMMITTED")?;
    assert_eq!(settle(&mut open, outcomes)?, vec![true; outcomes.len()]);
    Ok(open)
}

/// Runs `late` on a connection of its own until it waits for the transaction of `open`, then ends that transaction by
/// `end`, and returns what `late` returned.
fn run_late<T: Send>(
    database: &Database,
    mut open: PgConnection,
    late: impl FnOnce(&mut PgConnection) -> Result<T, Error> + Send,
    end: impl FnOnce(&mut PgConnection) -> Outcome,
) -> Tested<T> {
    let (mut conn, mut watcher) = (database.connect()?, database.connect()?);
    std::thread::scope(move |threads| {
        let late = threads.spawn(move || late(&mut conn));
        // If this fails, the connection is closed, and `late` ends.
        until(&mut watcher, WAITING)?;
        end(&mut open)?;
        Ok(late.join().map_err(|_| "the late session panicked")??)
    })
}

/// Returns the payloads of the jobs that are ready.
fn ready(queue: &Queue<Value>) -> Result<Vec<Value>, Error> {
    Ok(queue.get_many(100, Wait::No)?.into_iter().map(|job| job.data).collect())
}

#[test]
fn a_settle_of_a_whole_lease_that_waited_for_an_outcome_respects_it() -> Outcome {
    // The first form deletes the lease's row, the second one moves jobs as well.
    for of_all in [Ending::Complete, retry()] {
        for end in ["COMMIT", "ROLLBACK"] {
            let database = database()?;
            let (queue, jobs) = leased(&database, 2)?;
            let open = open_with(&database, &[(&jobs[0], Ending::Complete)])?;
            let accepted = run_late(
                &database,
                open,
                |conn| settle(conn, &[(&jobs[0], of_all.clone()), (&jobs[1], of_all.clone())]),
                |open| end_by(open, end),
            )?;
            let committed = end == "COMMIT";
            assert_eq!(accepted, [!committed, true], "{of_all:?}, {end}");
            let mut expected = Vec::new();
            if matches!(of_all, Ending::Retry { .. }) {
                expected = if committed { vec![json!(1)] } else { vec![json!(0), json!(1)] };
            }
            assert_eq!(ready(&queue)?, expected, "{of_all:?}, {end}");
            assert_eq!(queue.counts()?.live(), 0);
        }
    }
    Ok(())
}

/// The heartbeat updates the row for whose lock the settle waits.
#[test]
fn a_settle_that_waited_while_the_lease_was_extended_respects_the_outcome_before_it() -> Outcome {
    for end in ["COMMIT", "ROLLBACK"] {
        let database = database()?;
        let (queue, jobs) = leased(&database, 2)?;
        let open = open_with(&database, &[(&jobs[0], Ending::Complete)])?;
        let accepted = run_late(
            &database,
            open,
            |conn| settle(conn, &[(&jobs[0], Ending::Complete), (&jobs[1], Ending::Complete)]),
            |open| {
                queue.extend(&jobs[0], PATIENCE)?;
                end_by(open, end)
            },
        )?;
        assert_eq!(accepted, [end == "ROLLBACK", true]);
        assert_eq!(queue.counts()?.live(), 0);
    }
    Ok(())
}

#[test]
fn an_outcome_that_waited_for_a_settle_of_the_whole_lease_respects_it() -> Outcome {
    for end in ["COMMIT", "ROLLBACK"] {
        let database = database()?;
        let (queue, jobs) = leased(&database, 2)?;
        let whole = [(&jobs[0], Ending::Complete), (&jobs[1], Ending::Complete)];
        let open = open_with(&database, &whole)?;
        let accepted =
            run_late(&database, open, |conn| settle(conn, &[(&jobs[0], retry())]), |open| end_by(open, end))?;
        let rolled_back = end == "ROLLBACK";
        assert_eq!(accepted, [rolled_back]);
        assert_eq!(ready(&queue)?.len(), usize::from(rolled_back));
    }
    Ok(())
}

#[test]
fn of_two_outcomes_of_one_job_the_one_that_waited_is_refused() -> Outcome {
    for end in ["COMMIT", "ROLLBACK"] {
        let database = database()?;
        let (queue, jobs) = leased(&database, 2)?;
        let open = open_with(&database, &[(&jobs[0], Ending::Complete)])?;
        let accepted =
            run_late(&database, open, |conn| settle(conn, &[(&jobs[0], retry())]), |open| end_by(open, end))?;
        let rolled_back = end == "ROLLBACK";
        assert_eq!(accepted, [rolled_back]);
        assert_eq!(ready(&queue)?.len(), usize::from(rolled_back));
        queue.settle(&jobs[1], Ending::Complete)?;
        assert_eq!(queue.counts()?.live(), 0);
    }
    Ok(())
}

/// A lost connection leaves a COMMIT in progress. The worker does not know its result, and settles the whole batch.
#[test]
fn a_batch_settled_while_a_commit_of_one_of_its_jobs_is_in_progress_does_not_repeat_that_job() -> Outcome {
    let database = database()?;
    let (queue, jobs) = leased(&database, 2)?;
    let mut gate = database.connect()?;
    gate.batch_execute("CREATE TABLE effect (job integer)")?;
    close_gate(
        &mut gate,
        &["CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON effect DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"],
    )?;
    let mut handlers = database.connect()?;
    let accepted = std::thread::scope(|threads| {
        // If this fails, the gate is closed, and the threads end.
        let mut gate = gate;
        let commits = threads.spawn(|| {
            handlers.transaction(|conn| {
                conn.batch_execute("INSERT INTO effect VALUES (0)")?;
                settle(conn, &[(&jobs[0], Ending::Complete)])
            })
        });
        until(
            &mut database.connect()?,
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND query LIKE 'COMMIT%'
                AND datname = current_database()",
        )?;
        let settled = threads.spawn(|| {
            queue.settle_many(&[
                Settlement { job: &jobs[0], outcome: retry() },
                Settlement { job: &jobs[1], outcome: Ending::Complete },
            ])
        });
        until(
            &mut database.connect()?,
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND wait_event <> 'advisory'
                AND datname = current_database()",
        )?;
        open_gate(&mut gate)?;
        assert_eq!(commits.join().map_err(|_| "the handler panicked")??, [true]);
        Ok::<_, Box<dyn std::error::Error>>(settled.join().map_err(|_| "the worker panicked")??)
    })?;
    assert_eq!(accepted, [false, true]);
    assert_eq!(
        ready(&queue)?,
        [json!(null); 0],
        "the job is attempted again, although its effect was committed"
    );
    Ok(())
}

/// In a snapshot of the whole transaction no function sees what was committed since, so the unique index decides.
#[test]
fn a_settle_in_an_old_snapshot_cannot_repeat_an_outcome() -> Outcome {
    for isolation in ["REPEATABLE READ", "SERIALIZABLE"] {
        let database = database()?;
        let (queue, jobs) = leased(&database, 2)?;
        let (mut old, mut other) = (database.connect()?, database.connect()?);
        begin(&mut old, isolation)?;
        assert_eq!(settle(&mut other, &[(&jobs[0], Ending::Complete)])?, [true]);
        let whole = [(&jobs[0], retry()), (&jobs[1], retry())];
        let accepted = settle(&mut old, &whole);
        assert!(accepted.as_ref().is_err_and(Error::is_conflict), "{isolation}: {accepted:?}");
        end_by(&mut old, "ROLLBACK")?;
        assert_eq!(ready(&queue)?, [json!(null); 0]);
        // Without a conflict it is accepted, job by job.
        begin(&mut old, isolation)?;
        assert_eq!(settle(&mut old, &[(&jobs[1], Ending::Complete)])?, [true]);
        end_by(&mut old, "COMMIT")?;
        assert_eq!(queue.counts()?.live(), 0);
        let (queue, jobs) = leased(&database, 2)?;
        begin(&mut old, isolation)?;
        let whole = [(&jobs[0], Ending::Complete), (&jobs[1], Ending::Complete)];
        assert_eq!(settle(&mut old, &whole)?, [true, true]);
        end_by(&mut old, "COMMIT")?;
        assert_eq!(queue.counts()?.live(), 0);
    }
    Ok(())
}

/// A job that is retried or given back by the transaction for which the cancellation waited is cancelled in the queue.
#[test]
fn a_cancellation_that_waited_for_an_outcome_is_not_forgotten() -> Outcome {
    for outcome in [retry(), Ending::GiveBack, Ending::Complete] {
        for end in ["COMMIT", "ROLLBACK"] {
            let database = database()?;
            let (queue, jobs) = leased(&database, 2)?;
            let open = open_with(&database, &[(&jobs[0], outcome.clone())])?;
            let answer = run_late(
                &database,
                open,
                |conn| queue.on(conn).cancel(jobs[0].id),
                |open| end_by(open, end),
            )?;
            let expected = match (end, &outcome) {
                ("ROLLBACK", _) => CancelOutcome::Requested,
                (_, Ending::Complete) => CancelOutcome::NotFound,
                _ => CancelOutcome::Cancelled,
            };
            assert_eq!(answer, expected, "{outcome:?}, {end}");
            if end == "ROLLBACK" {
                queue.settle(&jobs[0], retry())?;
            }
            assert_eq!(ready(&queue)?, [json!(null); 0], "{outcome:?}, {end}");
        }
    }
    Ok(())
}

#[test]
fn an_outcome_that_waited_for_a_cancellation_respects_it() -> Outcome {
    for end in ["COMMIT", "ROLLBACK"] {
        let database = database()?;
        let (queue, jobs) = leased(&database, 2)?;
        let mut open = database.connect()?;
        begin(&mut open, "READ COMMITTED")?;
        assert_eq!(queue.on(&mut open).cancel(jobs[0].id)?, CancelOutcome::Requested);
        let accepted =
            run_late(&database, open, |conn| settle(conn, &[(&jobs[0], retry())]), |open| end_by(open, end))?;
        assert_eq!(accepted, [true]);
        assert_eq!(ready(&queue)?.len(), usize::from(end == "ROLLBACK"));
    }
    Ok(())
}

/// A key-share lock returns an updated row as the old snapshot has it, unless the update conflicts with the lock.
#[test]
fn an_outcome_in_an_old_snapshot_cannot_overlook_a_cancellation() -> Outcome {
    for extended_first in [false, true] {
        let database = database()?;
        let (queue, jobs) = leased(&database, 2)?;
        let mut old = database.connect()?;
        begin(&mut old, "REPEATABLE READ")?;
        if extended_first {
            queue.extend(&jobs[0], PATIENCE)?;
        }
        assert_eq!(queue.cancel(jobs[0].id)?, CancelOutcome::Requested);
        let accepted = settle(&mut old, &[(&jobs[0], retry())]);
        assert!(accepted.as_ref().is_err_and(Error::is_conflict), "{accepted:?}");
        end_by(&mut old, "ROLLBACK")?;
    }
    Ok(())
}

/// Otherwise the end would notify nobody, and the job would be unknown afterwards.
#[test]
fn an_outcome_in_an_old_snapshot_cannot_overlook_that_it_is_awaited() -> Outcome {
    for isolation in ["REPEATABLE READ", "SERIALIZABLE"] {
        let database = database()?;
        let (queue, jobs) = leased(&database, 2)?;
        let mut old = database.connect()?;
        begin(&mut old, isolation)?;
        let waited = queue.pq().wait_for::<()>(jobs[0].id, Wait::For(Duration::from_secs(1)))?;
        assert!(matches!(waited, JobResult::Running), "{waited:?}");
        let accepted = settle(&mut old, &[(&jobs[0], Ending::Complete)]);
        assert!(accepted.as_ref().is_err_and(Error::is_conflict), "{isolation}: {accepted:?}");
        end_by(&mut old, "ROLLBACK")?;
        begin(&mut old, isolation)?;
        assert_eq!(settle(&mut old, &[(&jobs[0], Ending::Complete)])?, [true]);
        end_by(&mut old, "COMMIT")?;
        assert!(matches!(queue.pq().result::<()>(jobs[0].id)?, JobResult::Done(())), "{isolation}");
    }
    Ok(())
}

/// A cancellation in an old snapshot cannot see that the job was retried.
#[test]
fn a_cancellation_in_an_old_snapshot_is_not_forgotten() -> Outcome {
    let database = database()?;
    let (queue, jobs) = leased(&database, 2)?;
    let (mut old, mut other) = (database.connect()?, database.connect()?);
    begin(&mut old, "REPEATABLE READ")?;
    assert_eq!(settle(&mut other, &[(&jobs[0], retry())])?, [true]);
    let answer = queue.on(&mut old).cancel(jobs[0].id);
    assert!(answer.as_ref().is_err_and(Error::is_conflict), "{answer:?}");
    end_by(&mut old, "ROLLBACK")?;
    assert_eq!(queue.cancel(jobs[0].id)?, CancelOutcome::Cancelled);
    Ok(())
}

#[test]
fn a_cancellation_does_not_wait_for_a_long_transaction() -> Outcome {
    let database = database()?;
    let (queue, jobs) = leased(&database, 1)?;
    let mut open = open_with(&database, &[(&jobs[0], Ending::Complete)])?;
    let mut conn = database.connect()?;
    // A timeout of the session, which would be an error, is longer.
    conn.batch_execute("SET lock_timeout = '20s'")?;
    begin(&mut conn, "READ COMMITTED")?;
    assert_eq!(queue.on(&mut conn).cancel(jobs[0].id)?, CancelOutcome::Held);
    // The caller's transaction can go on.
    queue.on(&mut conn).put(&json!("after"))?;
    end_by(&mut conn, "COMMIT")?;
    end_by(&mut open, "ROLLBACK")?;
    assert_eq!(queue.cancel(jobs[0].id)?, CancelOutcome::Requested);
    assert_eq!(ready(&queue)?, [json!("after")]);
    Ok(())
}

#[test]
fn a_lease_that_is_being_reclaimed_is_not_extended() -> Outcome {
    let database = database()?;
    let (queue, jobs) = leased(&database, 2)?;
    let (mut gate, mut conn) = (database.connect()?, database.connect()?);
    close_gate(&mut gate, &["CREATE TRIGGER wait AFTER DELETE ON pq.queue_leases FOR EACH ROW"])?;
    let (pq, token) = (Pq::builder().url(database.url()).build()?, jobs[0].token);
    queue.extend(&jobs[0], Duration::ZERO)?;
    std::thread::scope(|threads| {
        // If this fails, the gate is closed, and the thread ends.
        let mut gate = gate;
        let reclaims = threads.spawn(|| pq.maintain(&Retention::default()));
        until(&mut conn, WAITING)?;
        assert_eq!(pq.store().extend(&mut conn, &[token], PATIENCE)?, [Extension::Locked(token)]);
        open_gate(&mut gate)?;
        let report = reclaims.join().map_err(|_| "the reclaim panicked")??;
        assert_eq!(report.map(|report| report.returned), Some(2));
        assert_eq!(pq.store().extend(&mut conn, &[token], PATIENCE)?, []);
        Ok(())
    })
}

#[test]
fn a_lease_is_extended_beside_an_outcome_of_one_of_its_jobs_only() -> Outcome {
    let database = database()?;
    let (queue, jobs) = leased(&database, 2)?;
    let (mut open, mut conn) = (database.connect()?, database.connect()?);
    let (pq, token) = (Pq::detached(), jobs[0].token);
    let mut extend = || pq.store().extend(&mut conn, &[token], PATIENCE);
    begin(&mut open, "READ COMMITTED")?;
    assert_eq!(settle(&mut open, &[(&jobs[0], Ending::Complete)])?, [true]);
    let answers = extend()?;
    assert!(matches!(answers[..], [Extension::Extended(_)]), "{answers:?}");
    end_by(&mut open, "ROLLBACK")?;
    begin(&mut open, "READ COMMITTED")?;
    let whole = [(&jobs[0], Ending::Complete), (&jobs[1], Ending::Complete)];
    assert_eq!(settle(&mut open, &whole)?, [true, true]);
    assert_eq!(extend()?, [Extension::Locked(token)]);
    let refused = queue.extend(&jobs[0], PATIENCE);
    assert!(matches!(refused, Err(Error::Refused(pq_core::Error::LeaseLocked { .. }))), "{refused:?}");
    end_by(&mut open, "COMMIT")?;
    assert_eq!(extend()?, []);
    Ok(())
}

/// The payloads of a lease are stored out of line. The server counts the blocks of those that it reads.
#[test]
fn settling_one_job_does_not_read_the_payloads_of_the_others() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    conn.batch_execute(
        "INSERT INTO pq.queue (q_name, data)
         SELECT 'apples', to_json((SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 1000) WHERE n > 0))
         FROM generate_series(1, 100) AS n",
    )?;
    let queue = queue(&database)?;
    let jobs = queue.lease(100, PATIENCE, Wait::No)?;
    let read = |conn: &mut PgConnection| -> Tested<i64> {
        conn.batch_execute("SELECT pg_stat_force_next_flush()").or_else(|_| {
            // An older server flushes its statistics after a second.
            std::thread::sleep(Duration::from_millis(1_200));
            conn.batch_execute("SELECT 1")
        })?;
        Ok(diesel::dsl::sql::<BigInt>(
            "SELECT toast_blks_read + toast_blks_hit FROM pg_statio_user_tables WHERE relid = 'pq.queue_leases'::regclass",
        )
        .get_result(conn)?)
    };
    let before = read(&mut conn)?;
    assert_eq!(settle(&mut conn, &[(&jobs[0], Ending::Complete)])?, [true]);
    let completed = read(&mut conn)? - before;
    assert_eq!(settle(&mut conn, &[(&jobs[1], retry())])?, [true]);
    let retried = read(&mut conn)? - before;
    assert!(completed < 20 && retried > 300, "{completed} blocks were read, and {retried} for a retry");
    assert_eq!(ready(&queue)?, [jobs[1].data.clone()]);
    Ok(())
}
