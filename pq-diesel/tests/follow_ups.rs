//! What only PostgreSQL can show of jobs that wait for others: puts by SQL, roles, and who waits for whom.

mod common;

use common::{Outcome, database};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use pq_diesel::{CallOptions, EndedCounts, JobId, JobState, Operation, Pq, PutOptions, Retention, Wait};
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
