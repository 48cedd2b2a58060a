//! Transactions: commits, rollbacks, nesting and savepoints.

use pq_core::store::Connect;
use pq_core::{Queue, Wait};
use serde_json::{Value, json};

use super::cases;
use crate::Fixture;
use crate::harness::{CaseError, Harness, roll_back};

cases![
    a_commit_deletes_the_job_and_adds_the_put_job: Both,
    a_nested_transaction_rolls_back_alone: Both,
    nested_transactions_roll_back_at_any_depth: Both,
    an_outer_rollback_undoes_an_inner_commit: Both,
    a_job_got_in_a_nested_rollback_can_be_got_again_by_the_outer_transaction: Both,
    get_with_completes_the_job_with_its_writes: Own,
    get_with_returns_the_job_if_the_work_fails: Own,
    get_many_with_takes_many_in_one_transaction: Own,
    failures_in_a_batch_roll_back_their_own_writes_only: Own,
    a_connection_is_usable_after_a_rollback: Own,
    rolling_back_to_a_savepoint_undoes_only_later_changes: Both,
    a_rollback_undoes_changes_before_and_after_savepoints: Both,
];

fn a_commit_deletes_the_job_and_adds_the_put_job<F: Fixture>(harness: &Harness<F>) {
    harness.put("order");
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            queue.on(conn).get()?;
            queue.on(conn).put(&json!("parcel"))?;
            Ok(())
        })
        .unwrap();
    assert_eq!(harness.drain(), [json!("parcel")]);
}

fn a_nested_transaction_rolls_back_alone<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            queue.on(conn).put(&json!("outer"))?;
            let inner = queue.on(conn).transaction(|conn| {
                queue.on(conn).put(&json!("inner"))?;
                roll_back::<()>()
            });
            assert!(inner.is_err());
            queue.on(conn).transaction(|conn| Ok::<_, CaseError>(queue.on(conn).put(&json!("kept"))?))?;
            Ok(())
        })
        .unwrap();
    assert_eq!(harness.drain(), [json!("outer"), json!("kept")]);
}

fn nested_transactions_roll_back_at_any_depth<F: Fixture>(harness: &Harness<F>) {
    fn down<F: Fixture>(
        harness: &Harness<F>,
        conn: &mut crate::harness::Conn<F>,
        depth: u32,
    ) -> Result<(), CaseError> {
        harness.queue().on(conn).put(&json!(depth))?;
        if depth == 5 {
            return roll_back();
        }
        let deeper = harness.nested(conn, |conn| down(harness, conn, depth + 1));
        // Levels 4 and 5 fail. Level 3 ignores that and commits.
        if depth == 3 { Ok(()) } else { deeper }
    }
    harness.transaction(|conn| down(harness, conn, 0)).unwrap();
    assert_eq!(harness.drain(), [0, 1, 2, 3].map(|n| json!(n)));
}

fn an_outer_rollback_undoes_an_inner_commit<F: Fixture>(harness: &Harness<F>) {
    harness.put("a");
    let queue = harness.queue();
    let outer = harness.transaction(|conn| {
        queue.on(conn).transaction(|conn| {
            queue.on(conn).get()?;
            Ok::<_, CaseError>(queue.on(conn).put(&json!("b"))?)
        })?;
        roll_back::<()>()
    });
    assert!(outer.is_err());
    assert_eq!(harness.drain(), [json!("a")]);
}

fn a_job_got_in_a_nested_rollback_can_be_got_again_by_the_outer_transaction<F: Fixture>(
    harness: &Harness<F>,
) {
    let id = harness.put("a");
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            let inner = queue.on(conn).transaction(|conn| {
                queue.on(conn).get()?;
                roll_back::<()>()
            });
            assert!(inner.is_err());
            assert_eq!(queue.on(conn).get()?.map(|job| job.id), Some(id));
            Ok(())
        })
        .unwrap();
    assert!(harness.get().is_none());
}

fn get_with_completes_the_job_with_its_writes<F: Fixture>(harness: &Harness<F>) {
    harness.put(20);
    let (queue, results): (_, Queue<_, Value>) = (harness.queue(), harness.named("results"));
    let done = queue.get_with(Wait::No, |conn, job| {
        results.on(conn).put(&json!(job.data.as_i64().unwrap_or_default() + 1))?;
        Ok::<_, CaseError>("done")
    });
    assert_eq!(done.unwrap(), Some("done"));
    assert!(harness.get().is_none());
    assert_eq!(results.get(Wait::No).unwrap().map(|job| job.data), Some(json!(21)));
}

fn get_with_returns_the_job_if_the_work_fails<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    let (queue, results): (_, Queue<_, Value>) = (harness.queue(), harness.named("results"));
    let failed = queue.get_with(Wait::Forever, |conn, _| {
        results.on(conn).put(&json!("half written"))?;
        roll_back::<()>()
    });
    assert!(failed.is_err_and(|error| error.0 == "on purpose"), "the error of the work is returned");
    assert_eq!(harness.get().map(|job| job.id), Some(id));
    assert!(results.get(Wait::No).unwrap().is_none());
}

fn get_many_with_takes_many_in_one_transaction<F: Fixture>(harness: &Harness<F>) {
    for n in 0..5 {
        harness.put(n);
    }
    let queue = harness.queue();
    let failed = queue.get_many_with(3, Wait::No, |_, jobs| {
        assert_eq!(jobs.len(), 3);
        roll_back::<()>()
    });
    assert!(failed.is_err());
    let sum = queue.get_many_with(9, Wait::No, |_, jobs| {
        Ok::<_, CaseError>(jobs.iter().filter_map(|job| job.data.as_i64()).sum::<i64>())
    });
    assert_eq!(sum.unwrap(), Some(10));
}

fn failures_in_a_batch_roll_back_their_own_writes_only<F: Fixture>(harness: &Harness<F>) {
    let ids: Vec<_> = (0..6).map(|n| harness.put(n)).collect();
    let (queue, results): (_, Queue<_, Value>) = (harness.queue(), harness.named("results"));
    let done = queue
        .get_each_with(10, Wait::No, |conn, job| {
            results.on(conn).put(&job.data)?;
            if [json!(2), json!(3), json!(5)].contains(&job.data) { roll_back() } else { Ok(()) }
        })
        .unwrap();
    let failed: Vec<_> = done.iter().filter(|(_, done)| done.is_err()).map(|(id, _)| *id).collect();
    assert_eq!((done.len(), failed), (6, vec![ids[2], ids[3], ids[5]]));
    assert_eq!(harness.drain(), [2, 3, 5].map(Value::from), "the failed jobs are ready again");
    let written = results.get_many(10, Wait::No).unwrap().into_iter().map(|job| job.data);
    assert_eq!(written.collect::<Vec<_>>(), [0, 1, 4].map(Value::from));
}

fn a_connection_is_usable_after_a_rollback<F: Fixture>(harness: &Harness<F>) {
    let (queue, mut conn) = (harness.queue(), harness.connect());
    for n in 0..10 {
        let rolled_back = harness.nested(&mut conn, |conn| {
            queue.on(conn).put(&json!(n))?;
            roll_back::<()>()
        });
        assert!(rolled_back.is_err());
        queue.on(&mut conn).put(&json!(n)).unwrap();
    }
    assert_eq!(harness.drain().len(), 10);
}

fn rolling_back_to_a_savepoint_undoes_only_later_changes<F: Fixture>(harness: &Harness<F>) {
    let (queue, store) = (harness.queue(), harness.pq.store());
    harness.put("taken");
    harness
        .transaction(|conn| {
            queue.on(conn).put(&json!("before"))?;
            let first = store.savepoint(conn, None)?;
            for _ in 0..2 {
                queue.on(conn).put(&json!("undone"))?;
                assert_eq!(queue.on(conn).get()?.map(|job| job.data), Some(json!("taken")));
                store.rollback_to(conn, first)?;
            }
            queue.on(conn).put(&json!("between"))?;
            let second = store.savepoint(conn, Some(first))?;
            queue.on(conn).transaction(|conn| Ok::<_, CaseError>(queue.on(conn).put(&json!("nested"))?))?;
            store.rollback_to(conn, second)?;
            let third = store.savepoint(conn, Some(second))?;
            queue.on(conn).put(&json!("after"))?;
            store.savepoint(conn, Some(third))?;
            Ok(())
        })
        .unwrap();
    assert_eq!(harness.drain(), ["taken", "before", "between", "after"].map(Value::from));
}

fn a_rollback_undoes_changes_before_and_after_savepoints<F: Fixture>(harness: &Harness<F>) {
    let (queue, store) = (harness.queue(), harness.pq.store());
    let rolled_back = harness.transaction(|conn| {
        let first = store.savepoint(conn, None)?;
        queue.on(conn).put(&json!("a"))?;
        store.savepoint(conn, Some(first))?;
        queue.on(conn).put(&json!("b"))?;
        roll_back::<()>()
    });
    assert!(rolled_back.is_err());
    assert!(harness.drain().is_empty());
}
