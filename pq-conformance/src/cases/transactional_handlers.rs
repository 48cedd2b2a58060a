//! Transactional handlers: who shares a transaction, and which outcomes keep what a handler wrote.

use std::fmt::Debug;
use std::time::Duration;

use pq_core::store::Connect;
use pq_core::{Backoff, Failure, Isolation, JobState, Outcome, Wait, Worker};
use serde_json::{Value, json};

use super::cases;
use crate::Fixture;
use crate::harness::{Conn, Harness, Seen, task};

cases![
    a_handler_that_writes_has_committed_before_the_next_one_begins: Own,
    handlers_share_a_transaction_up_to_the_number_that_their_task_allows: Own,
    a_handler_that_does_not_share_ends_a_shared_transaction_before_it_begins: Own,
    handlers_that_send_nothing_share_a_transaction: Own,
    a_failure_in_a_shared_transaction_undoes_the_writes_of_one_handler: Own,
    every_outcome_of_a_handler_keeps_its_writes_unless_it_is_rolled_back: Own,
    a_failure_in_place_of_a_result_undoes_what_the_handler_wrote: Own,
    a_handler_can_ask_for_another_isolation_level: Own,
    a_queue_with_leased_handlers_refuses_other_isolation_levels: Own,
];

/// Runs a scenario until it has the expected result. A transaction ends early on a slow machine, so one run may not
/// have.
fn at_last<R: PartialEq + Debug>(expected: &R, mut run: impl FnMut() -> R) {
    const TRIES: u32 = 20;
    let mut last = run();
    for _ in 1..TRIES {
        if last == *expected {
            return;
        }
        last = run();
    }
    assert_eq!(last, *expected);
}

/// Runs jobs that write, and returns for each how many writes others could see when it began, and its attempt.
fn committed_before<F: Fixture>(harness: &Harness<F>, shared_by: usize) -> Vec<(u64, i32)> {
    let (task, pears) =
        (task::<F, u8>(harness).share_transaction(shared_by), harness.named::<Value>("pears"));
    let (seen, writes) = (Seen::new(), pears.clone());
    let note = seen.clone();
    let handler = task.transactional(move |conn: &mut Conn<F>, job| {
        note.push((job.data, writes.counts().map_err(|error| error.to_string())?.ready, job.attempt));
        writes.on(conn).put(&json!(job.data)).map(drop).map_err(|error| error.to_string())
    });
    task.call_many([0, 1, 2, 3, 4]).unwrap();
    let report = Worker::new(&harness.pq).batch(5, 5).serve(handler).run_until_empty().unwrap();
    assert_eq!((report.done, report.failed, report.lost), (5, 0, 0));
    assert_eq!(pears.clear().unwrap(), 5);
    let seen = seen.all();
    assert_eq!(seen.iter().map(|(data, ..)| *data).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    seen.into_iter().map(|(_, before, attempt)| (before, attempt)).collect()
}

fn a_handler_that_writes_has_committed_before_the_next_one_begins<F: Fixture>(harness: &Harness<F>) {
    assert_eq!(committed_before(harness, 1), [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1)]);
}

fn handlers_share_a_transaction_up_to_the_number_that_their_task_allows<F: Fixture>(harness: &Harness<F>) {
    at_last(&vec![(0, 1), (0, 1), (2, 1), (2, 1), (4, 1)], || committed_before(harness, 2));
}

fn a_handler_that_does_not_share_ends_a_shared_transaction_before_it_begins<F: Fixture>(
    harness: &Harness<F>,
) {
    let (apples, pears) = (harness.named::<()>("apples"), harness.named::<Value>("pears"));
    let (sharing, alone) = (apples.task::<u8>("sharing").share_transaction(9), apples.task::<u8>("alone"));
    at_last(&vec![(0, 0), (1, 0), (2, 2), (3, 3)], || {
        let seen = Seen::new();
        let mut worker = Worker::new(&harness.pq).batch(5, 5);
        for task in [&sharing, &alone] {
            let (note, writes) = (seen.clone(), pears.clone());
            worker = worker.serve(task.transactional(move |conn: &mut Conn<F>, job| {
                note.push((job.data, writes.counts().map_err(|error| error.to_string())?.ready));
                writes.on(conn).put(&json!(job.data)).map(drop).map_err(|error| error.to_string())
            }));
        }
        sharing.call_many([0, 1]).unwrap();
        alone.call(&2).unwrap();
        sharing.call(&3).unwrap();
        assert_eq!(worker.run_until_empty().unwrap().done, 4);
        assert_eq!(pears.clear().unwrap(), 4);
        seen.all()
    });
}

fn handlers_that_send_nothing_share_a_transaction<F: Fixture>(harness: &Harness<F>) {
    let (task, queue, store) = (task::<F, u8>(harness), harness.queue(), harness.pq.store());
    let is_counted =
        store.with_connection(|conn| Ok::<_, <F::Store as Connect>::Error>(store.activity(conn).is_some()));
    // If the store does not count what a connection sends, each handler may have sent something.
    let expected = if is_counted.unwrap() { vec![3, 3, 3] } else { vec![3, 2, 1] };
    at_last(&expected, || {
        let (seen, queue) = (Seen::new(), queue.clone());
        let note = seen.clone();
        // The handler looks on another connection, where no job has been taken yet.
        let handler = task.transactional(move |_, _| {
            note.push(queue.counts().map_err(|error| error.to_string())?.ready);
            Ok::<_, String>(())
        });
        task.call_many([0, 1, 2]).unwrap();
        let report = Worker::new(&harness.pq).batch(3, 3).serve(handler).run_until_empty().unwrap();
        assert_eq!(report.done, 3);
        seen.all()
    });
}

fn a_failure_in_a_shared_transaction_undoes_the_writes_of_one_handler<F: Fixture>(harness: &Harness<F>) {
    let (task, pears) = (task::<F, u8>(harness).share_transaction(9), harness.named::<Value>("pears"));
    let writes = pears.clone();
    let handler = task.transactional(move |conn: &mut Conn<F>, job| {
        writes.on(conn).put(&json!(job.data)).map_err(|error| error.to_string())?;
        if job.data % 2 == 1 { Err("odd".to_owned()) } else { Ok(()) }
    });
    task.call_many([0, 1, 2, 3]).unwrap();
    let report = Worker::new(&harness.pq).batch(4, 4).serve(handler).run_until_empty().unwrap();
    assert_eq!((report.done, report.dead), (2, 2));
    assert_eq!(pears.counts().unwrap().ready, 2);
}

fn every_outcome_of_a_handler_keeps_its_writes_unless_it_is_rolled_back<F: Fixture>(harness: &Harness<F>) {
    let later = Duration::from_secs(3600);
    let outcomes = [
        Outcome::Complete,
        Outcome::Keep { result: None },
        Outcome::retry(later, "later"),
        Outcome::snooze(later),
        Outcome::dead("broken"),
        Outcome::cancel("unwanted"),
    ];
    let count = outcomes.len() as u64;
    for (size, shared_by, is_mixed) in [(1, 1, false), (6, 1, false), (6, 6, false), (6, 1, true)] {
        for keeps in [true, false] {
            let (task, pears) =
                (task::<F, usize>(harness).share_transaction(shared_by), harness.named::<Value>("pears"));
            let task = task.max_retries(1);
            let (writes, returned) = (pears.clone(), outcomes.clone());
            let handler = task.transactional(move |conn: &mut Conn<F>, job| {
                writes.on(conn).put(&json!(job.data)).map_err(|error| error.to_string())?;
                let outcome = returned[job.data].clone();
                Ok::<_, String>(if keeps { outcome } else { outcome.rolled_back() })
            });
            let mut worker = Worker::new(&harness.pq).batch(size, size).serve(handler);
            if is_mixed {
                let other = harness.named::<()>("apples").task::<()>("other");
                worker = worker.serve(other.leased(|_, _| Ok::<_, String>(())));
            }
            task.call_many(0..outcomes.len()).unwrap();
            let report = worker.run_until_empty().unwrap();
            let case = format!("batches of {size}, shared by {shared_by}, mixed: {is_mixed}, keeps: {keeps}");
            let reported = (report.done, report.failed, report.snoozed, report.dead, report.cancelled);
            assert_eq!(reported, (2, 2, 1, 1, 1), "{case}");
            assert_eq!((report.lost, harness.counts().scheduled), (0, 2), "{case}");
            assert_eq!(harness.archived(JobState::Dead)[0].error.as_deref(), Some("broken"), "{case}");
            assert_eq!(pears.counts().unwrap().ready, if keeps { count } else { 0 }, "{case}");
            harness.clear();
            pears.clear().unwrap();
        }
    }
}

fn a_failure_in_place_of_a_result_undoes_what_the_handler_wrote<F: Fixture>(harness: &Harness<F>) {
    let (task, pears) = (task::<F, u8>(harness), harness.named::<Value>("pears"));
    let (task, runs) = (task.max_retries(2).backoff(Backoff::fixed(Duration::ZERO)), Seen::new());
    let (note, writes) = (runs.clone(), pears.clone());
    let handler = task.transactional(move |conn: &mut Conn<F>, job| {
        note.push(job.attempt);
        writes.on(conn).put(&json!(job.attempt)).map(drop).map_err(|error| error.to_string())
    });
    task.call(&1).unwrap();
    // The first attempt runs in the transaction that takes the job, the others under a lease.
    let worker = Worker::new(&harness.pq).serve(handler).map_results(|job, result| {
        assert!(result.is_ok());
        match job.attempt {
            1 => Err(Failure::Error("as if the handler had failed".to_owned())),
            2 => panic!("as if the handler had panicked"),
            _ => result,
        }
    });
    let report = worker.run_until_empty().unwrap();
    assert_eq!((report.failed, report.done, runs.all()), (2, 1, vec![1, 2, 3]));
    assert_eq!(
        pears.get_many(9, Wait::No).unwrap().into_iter().map(|job| job.data).collect::<Vec<_>>(),
        [json!(3)]
    );
}

fn a_handler_can_ask_for_another_isolation_level<F: Fixture>(harness: &Harness<F>) {
    let (task, pears) = (task::<F, u8>(harness), harness.named::<Value>("pears"));
    for size in [1, 4] {
        let writes = pears.clone();
        let handler =
            task.clone().isolation(Isolation::Serializable).transactional(move |conn: &mut Conn<F>, job| {
                writes.on(conn).put(&json!(job.data)).map_err(|error| error.to_string())?;
                if job.data == 1 { Err("odd".to_owned()) } else { Ok(()) }
            });
        task.call_many([0, 1, 2, 3]).unwrap();
        let report = Worker::new(&harness.pq).batch(size, size).serve(handler).run_until_empty().unwrap();
        assert_eq!((report.done, report.dead, report.lost), (3, 1, 0), "batches of {size}");
        assert_eq!(pears.clear().unwrap(), 3);
    }
}

fn a_queue_with_leased_handlers_refuses_other_isolation_levels<F: Fixture>(harness: &Harness<F>) {
    let apples = harness.named::<()>("apples");
    let leased = apples.task::<()>("leased").leased(|_, _| Ok::<_, String>(()));
    let level = apples.task::<()>("level").isolation(Isolation::RepeatableRead);
    let level = level.transactional(|_, _| Ok::<_, String>(()));
    let refused = Worker::new(&harness.pq).serve(leased).serve(level).run_until_empty().unwrap_err();
    let refused = harness.fixture.core_error(&refused).unwrap();
    assert!(matches!(refused, pq_core::Error::InvalidSetting(_)), "{refused}");
}
