//! Operations on many jobs beside open transactions.

mod common;

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use pq_core::store::{Admin, Connect};
use pq_core::{Operation, OperationReport, PutOptions, PutOutcome};
use pq_diesel::{ChangeOutcome, Filter, JobId, JobState, Outcome as Settlement, Queue, Wait};
use pq_testing::Database;
use serde_json::{Value, json};

use self::common::*;

#[test]
fn an_operation_waits_for_no_transaction() -> Outcome {
    let database = database()?;
    let (queue, mut other) = (queue(&database)?, database.connect()?);
    let pq = queue.pq().clone();
    let unique = PutOptions::new().unique("u");
    let keyed = queue.put_with(&json!(1), &unique)?.id;
    queue.put(&json!(2))?;
    // The key of the first job is in a put to the target that has not been committed, and the second job is locked.
    other.batch_execute("BEGIN; SELECT FROM pq.queue WHERE unique_key IS NULL FOR UPDATE")?;
    let pears = pq.queue::<Value>("pears")?;
    pears.on(&mut other).put_with(&json!(3), &unique)?;
    let to_pears = Operation::Move { to: pears.name().clone() };
    let apples = Filter::queue("apples");
    assert_eq!(pq.operate(&to_pears, &apples, |_| ())?, OperationReport { changed: 0, skipped: 2 });
    assert_eq!(pq.change(keyed, &to_pears)?, ChangeOutcome::KeyInUse);
    other.batch_execute("ROLLBACK")?;
    assert_eq!(pq.operate(&to_pears, &apples, |_| ())?, OperationReport { changed: 2, skipped: 0 });
    Ok(())
}

#[test]
fn an_operation_with_a_time_limit_is_ended_by_the_server() -> Outcome {
    let database = database()?;
    let mut other = database.connect()?;
    let pq = queue(&database)?.pq().clone().with_operation_timeout(Duration::from_millis(200));
    let (queue, all) = (pq.queue::<serde_json::Value>("apples")?, Filter::queue("apples"));
    let id = queue.put(&json!(1))?.id;
    other.batch_execute("BEGIN; LOCK TABLE pq.queue, pq.queue_controls IN ACCESS EXCLUSIVE MODE")?;
    for (name, error) in [
        ("pause", queue.pause().err()),
        ("clear", queue.clear().err()),
        ("cancel", queue.cancel(id).err()),
        ("change", pq.change(id, &Operation::RunNow).err()),
        ("preview", pq.preview(&Operation::Delete, &all, 10).err()),
        ("operate", pq.operate(&Operation::Delete, &all, |_| ()).err()),
    ] {
        assert_eq!(error.as_ref().and_then(pq_diesel::Error::sqlstate), Some("57014"), "{name}: {error:?}");
    }
    other.batch_execute("ROLLBACK")?;
    assert_eq!(pq.preview(&Operation::Delete, &all, 10)?, 1);
    let left = pq.store().with_connection(|conn| {
        let setting = diesel::dsl::sql::<Text>("SELECT current_setting('statement_timeout')");
        Ok::<_, pq_diesel::Error>(setting.get_result::<String>(conn)?)
    })?;
    assert_eq!(left, "0", "the limit does not stay with the connection");
    Ok(())
}

#[test]
fn a_lease_that_a_transaction_settles_is_passed_by_an_operation() -> Outcome {
    let database = database()?;
    let (queue, mut other) = (queue(&database)?, database.connect()?);
    let pq = queue.pq().clone();
    queue.put_many(&[json!(1), json!(2), json!(3)])?;
    let jobs = queue.lease(2, PATIENCE, Wait::No)?;
    let alone = queue.lease(1, PATIENCE, Wait::No)?.remove(0);
    let apples = Filter::queue("apples");
    other.transaction(|conn| {
        queue.on(conn).settle(&jobs[0], Settlement::Complete)?;
        let report = pq.operate(&Operation::Cancel, &apples, |_| ())?;
        assert_eq!(report, OperationReport { changed: 1, skipped: 2 });
        assert_eq!(queue.extend(&alone, PATIENCE)?.cancelled, [alone.id]);
        Ok::<_, pq_diesel::Error>(())
    })?;
    let report = pq.operate(&Operation::Cancel, &apples, |_| ())?;
    assert_eq!(report, OperationReport { changed: 2, skipped: 0 }, "the settled job is gone");
    Ok(())
}

#[test]
fn an_archived_id_that_was_given_again_is_requeued_once() -> Outcome {
    let database = database()?;
    let (queue, mut conn) = (queue(&database)?, database.connect()?);
    for n in 0..2 {
        conn.batch_execute("ALTER SEQUENCE pq.queue_id_seq RESTART")?;
        queue.put(&json!(n))?;
        queue.settle(&queue.lease(1, PATIENCE, Wait::No)?[0], Settlement::dead("on purpose"))?;
    }
    let report = queue.pq().operate(&Operation::Retry, &Filter::queue("apples"), |_| ())?;
    assert_eq!(report, OperationReport { changed: 1, skipped: 1 });
    assert_eq!(queue.get(Wait::No)?.map(|job| job.data), Some(json!(1)), "the one that ended last");
    assert_eq!(queue.counts()?.dead, 1);
    Ok(())
}

#[test]
fn listing_leaves_the_settings_of_the_callers_transaction() -> Outcome {
    let database = database()?;
    let (queue, mut conn) = (queue(&database)?, database.connect()?);
    let id = queue.put(&json!(1))?.id;
    let jit = |conn: &mut PgConnection| diesel::dsl::sql::<Text>("SHOW jit").get_result::<String>(conn);
    conn.batch_execute("SET jit = on")?;
    conn.transaction(|conn| {
        queue.on(conn).put(&json!(2))?;
        let listed = queue.pq().store().list(conn, &Filter::queue("apples").state(JobState::Ready), 10)?;
        assert_eq!(listed.len(), 2);
        assert_eq!(jit(conn)?, "on");
        Ok::<_, pq_diesel::Error>(())
    })?;
    assert_eq!(jit(&mut conn)?, "on");
    assert_eq!(queue.counts()?.ready, 2, "the put of the transaction was kept");
    assert!(queue.find(id)?.is_some());
    Ok(())
}

/// Archives two jobs with id 1, which the restarted sequence gives twice, and returns their queue.
fn archived_twice(
    database: &Database,
    ends: [Settlement; 2],
) -> Result<Queue<Value>, Box<dyn std::error::Error>> {
    let (queue, mut conn) = (queue(database)?, database.connect()?);
    for (n, end) in ends.into_iter().enumerate() {
        conn.batch_execute("ALTER SEQUENCE pq.queue_id_seq RESTART")?;
        queue.put(&json!(n))?;
        queue.settle(&queue.lease(1, PATIENCE, Wait::No)?[0], end)?;
    }
    Ok(queue)
}

#[test]
fn an_id_means_the_job_that_ended_last() -> Outcome {
    let dead = || Settlement::dead("on purpose");
    let (id, only) = (JobId(1), Filter::id(JobId(1)));
    let database = database()?;
    let queue = archived_twice(&database, [dead(), dead()])?;
    let pq = queue.pq();
    assert_eq!(pq.preview(&Operation::Delete, &only, 10)?, 1);
    assert_eq!(pq.change(id, &Operation::Retry)?, ChangeOutcome::Changed);
    assert_eq!(queue.get(Wait::No)?.map(|job| job.data), Some(json!(1)));

    let database = self::database()?;
    let queue = archived_twice(&database, [dead(), dead()])?;
    assert_eq!(queue.pq().change(id, &Operation::Delete)?, ChangeOutcome::Changed);
    assert_eq!(queue.find(id)?.ok_or("the older one is gone")?.payload.as_str(), "0");

    let database = self::database()?;
    let queue = archived_twice(&database, [dead(), Settlement::Keep { result: None }])?;
    let (pq, retry) = (queue.pq(), Operation::Retry);
    assert_eq!(pq.change(id, &retry)?, ChangeOutcome::WrongState(JobState::Done));
    assert_eq!(pq.operate(&retry, &only, |_| ())?, OperationReport { changed: 0, skipped: 0 });
    assert!(!queue.retry(id)?, "the job that it shows is done");
    assert_eq!(queue.retry_all_dead()?, 1);
    Ok(())
}

/// Runs a call that must not wait for the transaction of `other`, which is rolled back afterwards.
fn beside_a_transaction<R: Send>(
    other: &mut PgConnection,
    call: impl FnOnce() -> Result<R, pq_diesel::Error> + Send,
) -> Result<R, Box<dyn std::error::Error>> {
    let (send, answer) = std::sync::mpsc::channel();
    std::thread::scope(|threads| {
        threads.spawn(move || send.send(call()));
        let answer = answer.recv_timeout(std::time::Duration::from_secs(5));
        other.batch_execute("ROLLBACK")?;
        Ok(answer.map_err(|_| "it waits for the transaction")??)
    })
}

#[test]
fn a_move_passes_a_unique_key_that_an_open_put_claims() -> Outcome {
    let database = database()?;
    let (queue, mut other) = (queue(&database)?, database.connect()?);
    let unique = PutOptions::new().unique("u");
    let id = queue.put_with(&json!(1), &unique)?.id;
    let pears = queue.pq().queue::<Value>("pears")?;
    for ids in [None, Some(&[id][..])] {
        other.batch_execute("BEGIN")?;
        pears.on(&mut other).put_with(&json!(2), &unique)?;
        assert_eq!(beside_a_transaction(&mut other, || queue.move_to(&pears, ids))?, 0);
    }
    assert_eq!(queue.move_to(&pears, None)?, 1);
    Ok(())
}

/// Python's pq keeps the row of a job that it has taken, and a put moves the job's unique key to another one.
#[test]
fn a_deletion_passes_a_unique_key_that_an_open_put_moves() -> Outcome {
    let database = database()?;
    let (queue, mut other) = (queue(&database)?, database.connect()?);
    let unique = PutOptions::new().unique("u");
    let taken = "UPDATE pq.queue SET dequeued_at = now()";
    let delete_all = || queue.pq().operate(&Operation::Delete, &Filter::queue("apples"), |_| ());
    queue.put_with(&json!(1), &unique)?;
    other.batch_execute(taken)?;
    other.batch_execute("BEGIN")?;
    queue.on(&mut other).put_with(&json!(2), &unique)?;
    let report = beside_a_transaction(&mut other, delete_all)?;
    assert_eq!(report, OperationReport { changed: 1, skipped: 0 });
    queue.put_with(&json!(3), &unique)?;
    other.batch_execute(taken)?;
    other.batch_execute("BEGIN")?;
    queue.on(&mut other).put_with(&json!(4), &unique)?;
    assert_eq!(beside_a_transaction(&mut other, || queue.clear())?, 1);
    assert_eq!(queue.put_with(&json!(5), &unique)?.outcome, PutOutcome::Added);
    Ok(())
}

/// Whether a job is blocked depends on the first job of its key. To look for it among all jobs, for each of them, would
/// take minutes here.
#[test]
fn blocked_jobs_of_one_key_and_of_many_are_told_apart_in_time() -> Outcome {
    let database = database()?;
    let (queue, mut conn) = (queue(&database)?, database.connect()?);
    conn.batch_execute(
        "INSERT INTO pq.queue (q_name, data, serial_key, priority)
             SELECT 'apples', '1', 'one', n FROM generate_series(1, 40000) AS n;
         INSERT INTO pq.queue (q_name, data, serial_key, schedule_at)
             SELECT 'apples', '1', n::text, now() - interval '1 hour' FROM generate_series(1, 40000) AS n;
         ANALYZE pq.queue;
         SET statement_timeout = '20s'",
    )?;
    let ready = Filter::queue("apples").state(JobState::Ready);
    let listed = queue.pq().store().list(&mut conn, &ready, 100_000)?;
    assert_eq!(listed.len(), 40_001);
    assert_eq!(listed[0].priority, 40_000);
    assert_eq!(queue.pq().preview(&Operation::Cancel, &ready, 100_000)?, 40_001);
    Ok(())
}

/// The jobs that are listed as ready are those that takes find, whatever their keys, priorities and times are.
#[test]
fn exactly_the_ready_jobs_are_taken() -> Outcome {
    let database = database()?;
    let (queue, mut conn) = (queue(&database)?, database.connect()?);
    conn.batch_execute(
        "SELECT setseed(0.5);
         INSERT INTO pq.queue (q_name, data, serial_key, priority, expected_at, schedule_at)
             SELECT 'apples', '1', CASE WHEN random() < 0.9 THEN (random() * 150)::integer END, (random() * 3)::integer,
                 CASE WHEN random() < 0.5 THEN now() + (random() * 3)::integer * interval '1 hour' END,
                 CASE WHEN random() < 0.6 THEN now() + (random() - 0.6) * interval '10 hours' END
             FROM generate_series(1, 600)",
    )?;
    queue.lease(20, PATIENCE, Wait::No)?;
    let ready = queue.list(&Filter::default().state(JobState::Ready), 1_000)?;
    let mut ready: Vec<JobId> = ready.into_iter().map(|job| job.id).collect();
    let mut taken = Vec::new();
    while let jobs @ [_, ..] = &queue.lease(1_000, PATIENCE, Wait::No)?[..] {
        taken.extend(jobs.iter().map(|job| job.id));
    }
    ready.sort();
    taken.sort();
    assert!(taken.len() > 100, "{}", taken.len());
    assert_eq!(ready, taken);
    Ok(())
}
