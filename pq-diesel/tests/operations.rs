//! Operations on many jobs beside open transactions.

mod common;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use pq_core::store::Admin;
use pq_core::{Operation, OperationReport, PutOptions};
use pq_diesel::{ChangeOutcome, Filter, JobState, Outcome as Settlement, Wait};
use serde_json::json;

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
    let pears = pq.queue::<serde_json::Value>("pears")?;
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
