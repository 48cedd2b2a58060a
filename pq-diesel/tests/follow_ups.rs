//! What only PostgreSQL can show of jobs that wait for others: puts by SQL, roles, and who waits for whom.

mod common;

use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use common::{Outcome, database};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use pq_diesel::{
    CallOptions, EndedCounts, JobId, JobState, Operation, Pq, PutOptions, Retention, StopMode, Wait, Worker,
};
use serde_json::{Value, json};

fn put(conn: &mut PgConnection, sql: &str) -> QueryResult<JobId> {
    diesel::dsl::sql::<BigInt>(&format!("SELECT {sql}")).get_result(conn).map(JobId)
}

#[test]
fn a_put_by_sql_can_wait_for_others() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let pq = Pq::connect(database.url())?;
    let queue = pq.queue::<Value>("apples")?;
    let first = put(&mut conn, "pq.queue_put('apples', '1')")?;
    let other = put(&mut conn, "pq.queue_put('apples', '2')")?;
    let sql = format!(
        "pq.queue_put('apples', '3', after => '{{{first}}}', after_any_outcome => '{{{first},{other}}}')"
    );
    let last = put(&mut conn, &sql)?;
    let call = put(&mut conn, &format!("pq.queue_call('apples', 'eat', after => '{{{first}}}')"))?;
    let waits: Vec<_> = pq.predecessors(last, 10)?.iter().map(|one| (one.job, one.only_done)).collect();
    assert_eq!(waits, [(first, true), (other, false)]);
    assert_eq!(queue.get(Wait::No)?.ok_or("no job")?.id, first);
    pq.change(other, &Operation::Cancel)?;
    pq.maintain(&Retention::default())?;
    let found = |id| -> Result<_, pq_diesel::Error> { Ok(pq.find(id)?.map(|job| job.state)) };
    assert_eq!([found(last)?, found(call)?], [Some(JobState::Ready); 2]);
    let ended = pq.find(last)?.ok_or("no job")?.annotations.ended();
    assert_eq!(ended.map(|EndedCounts { done, cancelled, .. }| (done, cancelled)), Some((1, 1)));
    for refused in [
        "schedule_in => '1 h', after => '{1}'",
        "unique_key => 'u', after_any_outcome => '{1}'",
        "after => '{1,NULL}'",
    ] {
        let error = put(&mut conn, &format!("pq.queue_put('apples', '1', {refused})"))
            .expect_err("it is refused")
            .to_string();
        assert!(error.contains("after"), "{refused}: {error}");
    }
    assert!(put(&mut conn, "pq.queue_put('apples', '4', after => '{}')").is_ok());
    assert_eq!(queue.counts()?.ready, 3);
    Ok(())
}

/// The worker knows by itself that a job has ended, and not by a look.
#[test]
fn a_follow_up_starts_soon_after_the_last_end() -> Outcome {
    const MINUTE: Duration = Duration::from_secs(60);
    let database = database()?;
    let pq = Pq::builder().url(database.url()).poll_interval(MINUTE).connect()?;
    let queue = pq.queue::<u32>("apples")?;
    let first = queue.put(&1)?.id;
    queue.put_with(&2, &PutOptions::new().after([first]))?;
    let (end, ended) = (Arc::new(Barrier::new(2)), Arc::new(Mutex::new(None)));
    let (begun, has_begun) = std::sync::mpsc::channel();
    let (wait, last_end) = (Arc::clone(&end), Arc::clone(&ended));
    let handler = queue.leased(move |_, job| {
        if job.data == 1 {
            wait.wait();
            *last_end.lock().map_err(|error| error.to_string())? = Some(Instant::now());
        } else {
            begun.send(Instant::now()).map_err(|error| error.to_string())?;
        }
        Ok::<_, String>(())
    });
    let worker = Worker::new(&pq).serve(handler);
    let control = worker.control();
    let begun = std::thread::scope(|scope| {
        let running = scope.spawn(|| worker.run());
        // The worker has taken the job, and is idle otherwise.
        std::thread::sleep(Duration::from_millis(300));
        end.wait();
        let begun = has_begun.recv_timeout(MINUTE);
        control.stop(StopMode::Drain);
        running.join().unwrap_or_else(|e| std::panic::resume_unwind(e)).map(|_| begun)
    })??;
    let ended = ended.lock().map_err(|error| error.to_string())?.ok_or("the first job did not run")?;
    assert!(begun - ended < Duration::from_secs(2), "after {:?}", begun - ended);
    Ok(())
}

/// A run until its queues are empty looks again for what a transaction holds, and pauses for 20 ms between.
#[test]
fn a_run_until_empty_pauses_while_a_transaction_holds_a_follow_up() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let pq = Pq::builder().url(database.url()).listen(false).connect()?;
    let queue = pq.queue::<u32>("apples")?;
    let first = queue.put(&1)?.id;
    let last = queue.put_with(&2, &PutOptions::new().after([first]))?.id;
    conn.batch_execute(&format!("BEGIN; SELECT FROM pq.queue WHERE id = {last} FOR SHARE"))?;
    let worker = Worker::new(&pq).serve(queue.leased(|_, _| Ok::<_, String>(())));
    let report = std::thread::scope(|scope| {
        let running = scope.spawn(|| worker.run_until_empty());
        std::thread::sleep(Duration::from_secs(1));
        assert!(!running.is_finished(), "it ends although a job waits for one that has ended");
        conn.batch_execute("COMMIT")?;
        Ok::<_, Box<dyn std::error::Error>>(running.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?)
    })?;
    assert_eq!(report.done, 2);
    drop((queue, pq));
    // A session counts its transactions for others when it ends.
    let number = |conn: &mut PgConnection, sql: &str| diesel::dsl::sql::<BigInt>(sql).get_result::<i64>(conn);
    let sessions =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
        AND backend_type = 'client backend'";
    while number(&mut conn, sessions)? > 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let commits =
        number(&mut conn, "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")?;
    // At most 50 looks, each of some statements, beside the migration and the jobs.
    assert!(commits < 700, "{commits} commits");
    Ok(())
}

#[test]
fn a_put_by_sql_can_join_a_batch() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let pq = Pq::connect(database.url())?;
    let first = put(&mut conn, "pq.queue_put('apples', '1')")?;
    let batch = put(&mut conn, &format!("pq.queue_put('apples', '2', after => '{{{first}}}')"))?;
    let third =
        put(&mut conn, &format!("pq.queue_call('apples', 'eat', batch => {batch}, unique_key => 'once')"))?;
    let again = format!("pq.queue_put('apples', '3', batch => {batch}, unique_key => 'once')");
    assert_eq!(put(&mut conn, &again)?, third, "it is kept, and is in the batch already");
    assert_eq!(pq.find(third)?.ok_or("no job")?.annotations.batch(), Some(batch));
    let waits: Vec<_> = pq.predecessors(batch, 10)?.iter().map(|one| (one.job, one.only_done)).collect();
    assert_eq!(waits, [(first, true), (third, false)]);
    let behind = put(&mut conn, &format!("pq.queue_put('apples', '4', after => '{{{batch}}}')"))?;
    for (arguments, expected) in [
        (
            format!("batch => {first}"),
            format!("cannot add a job to batch {first}: job {first} does not wait"),
        ),
        (format!("batch => {batch}, after => '{{{batch}}}'"), "they would wait for each other".to_owned()),
        (
            format!("batch => {batch}, after => '{{{behind}}}'"),
            format!("cannot let job {batch} wait for job {behind}: job {behind} waits for job {batch}"),
        ),
    ] {
        let refused = put(&mut conn, &format!("pq.queue_put('apples', '5', {arguments})"));
        let error = refused.expect_err("it is refused").to_string();
        assert!(error.contains(&expected), "{arguments}: {error}");
    }
    assert_eq!(pq.queue::<Value>("apples")?.get_many(3, Wait::No)?.len(), 2);
    pq.maintain(&Retention::default())?;
    assert_eq!(pq.find(batch)?.ok_or("no job")?.state, JobState::Ready);
    Ok(())
}

#[test]
fn a_row_cannot_wait_for_others() -> Outcome {
    let task = Pq::detached().queue("apples")?.task::<u32>("eat");
    for options in [CallOptions::new().after([JobId(1)]), CallOptions::new().in_batch(JobId(1))] {
        let error = task.row_with(&1, &options).expect_err("it is refused").to_string();
        assert!(error.contains("waits for others or belongs to a batch"), "{error}");
    }
    Ok(())
}

/// Maintenance passes a follow-up to whose batch an open transaction adds a job, and others are not kept waiting.
#[test]
fn maintenance_waits_for_no_transaction_that_adds_to_a_batch() -> Outcome {
    let database = database()?;
    let pq = Pq::connect(database.url())?;
    let queue = pq.queue::<Value>("apples")?;
    let report = pq.queue("apples")?.task::<u32>("report");
    let batch = || report.batch(&1, |conn, batch| queue.on(conn).put_with(&json!(1), &in_batch(batch.id())));
    let ((adds, _), (other, _)) = (batch()?, batch()?);
    let mut conn = database.connect()?;
    let state = |id| -> Result<_, pq_diesel::Error> { Ok(pq.find(id)?.map(|job| job.state)) };
    conn.transaction::<_, Box<dyn std::error::Error>, _>(|conn| {
        queue.on(conn).put_with(&json!(2), &in_batch(adds))?;
        assert_eq!(queue.get_many(10, Wait::No)?.len(), 2);
        pq.maintain(&Retention::default())?;
        assert_eq!([state(adds)?, state(other)?], [Some(JobState::Scheduled), Some(JobState::Ready)]);
        Ok(())
    })?;
    pq.maintain(&Retention::default())?;
    assert_eq!(state(adds)?, Some(JobState::Scheduled));
    let late = queue.put_with(&json!(3), &in_batch(other)).expect_err("it is refused");
    assert!(late.to_string().contains("cannot add a job to batch"), "{late}");
    Ok(())
}

fn in_batch(follow_up: JobId) -> PutOptions {
    PutOptions::new().in_batch(follow_up)
}

/// A job that a Python `pq` has taken keeps its row. Its outcome is unknown.
#[test]
fn a_job_that_python_has_taken_has_ended() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let pq = Pq::connect(database.url())?;
    let queue = pq.queue::<Value>("apples")?;
    let first = queue.put(&json!(1))?.id;
    queue.put_with(&json!(2), &PutOptions::new().after([first]))?;
    conn.batch_execute("UPDATE pq.queue SET dequeued_at = now() WHERE data::text = '1'")?;
    pq.maintain(&Retention::default())?;
    assert_eq!(queue.get(Wait::No)?.map(|job| job.data), Some(json!(2)));
    Ok(())
}
