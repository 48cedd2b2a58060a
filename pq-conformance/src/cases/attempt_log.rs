//! The log of a job's attempts that failed or were lost.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use pq_core::{
    AttemptEnd, AttemptEntry, Backoff, CancelOutcome, Filter, JobId, JobRecord, JobState, OnConflict,
    Operation, Outcome, PutOptions, QueueName, Settlement, Wait, Worker,
};
use serde_json::{Value, json};

use super::cases;
use crate::Fixture;
use crate::harness::{CaseError, Conn, Harness, TIMEOUT, both, task};

cases![
    each_failed_attempt_is_logged: Both,
    an_attempt_that_did_not_fail_is_not_logged: Both,
    each_job_of_a_batch_has_its_own_log: Both,
    a_lost_lease_is_logged: Both,
    a_failure_of_a_cancelled_job_is_logged: Both,
    a_payload_that_cannot_be_decoded_is_logged: Both,
    the_attempts_of_handlers_are_logged: Own,
    a_failure_after_a_write_is_logged: Own,
    a_requeued_job_keeps_its_log_and_counts_anew: Both,
    a_changed_job_keeps_its_log_and_a_replaced_one_has_none: Both,
    a_log_is_bounded: Both,
];

/// Returns the attempts of a log, how they ended, and their errors.
fn entries(job: &JobRecord) -> Vec<(i32, AttemptEnd, &str)> {
    job.attempt_log.iter().map(|entry| (entry.attempt, entry.end, entry.error.as_str())).collect()
}

fn find<F: Fixture>(harness: &Harness<F>, id: JobId) -> JobRecord {
    harness.queue().find(id).unwrap().unwrap()
}

fn retry(error: &str) -> Outcome {
    Outcome::retry(Duration::ZERO, error)
}

/// Takes the next job in a transaction, and settles it there.
fn settle_in_transaction<F: Fixture>(harness: &Harness<F>, outcome: &Outcome) {
    let queue = harness.queue();
    let settled = harness.transaction(|conn| {
        let job = queue.on(conn).get()?.unwrap();
        Ok(queue.on(conn).settle(&job, outcome.clone())?)
    });
    settled.unwrap();
}

fn each_failed_attempt_is_logged<F: Fixture>(harness: &Harness<F>) {
    let begun = Utc::now() - TimeDelta::minutes(5);
    let id = harness.put("a");
    harness.settle(&harness.lease_one(), retry("one"));
    settle_in_transaction(harness, &retry("two"));
    let two = [(1, AttemptEnd::Failed, "one"), (2, AttemptEnd::Failed, "two")];
    let job = harness.lease_one();
    assert_eq!(entries(&job), two, "a handler sees it");
    assert_eq!(entries(&find(harness, id)), two);
    harness.settle(&job, Outcome::dead("three"));
    let dead = harness.archived(JobState::Dead).remove(0);
    assert_eq!(entries(&dead), [two[0], two[1], (3, AttemptEnd::Dead, "three")]);
    let times: Vec<_> = dead.attempt_log.iter().map(|entry| entry.at).collect();
    assert!(
        times.is_sorted() && times.iter().all(|at| *at > begun && *at < Utc::now() + TimeDelta::minutes(5))
    );
    assert_eq!(dead.ended_at, times.last().copied());
    harness.put("b");
    settle_in_transaction(harness, &retry("one"));
    settle_in_transaction(harness, &Outcome::dead("two"));
    assert_eq!(
        entries(&harness.archived(JobState::Dead)[0]),
        [(1, AttemptEnd::Failed, "one"), (2, AttemptEnd::Dead, "two")]
    );
}

fn an_attempt_that_did_not_fail_is_not_logged<F: Fixture>(harness: &Harness<F>) {
    for before in [0, 1] {
        let id = harness.put("a");
        if before == 1 {
            harness.settle(&harness.lease_one(), retry("one"));
        }
        for outcome in [Outcome::snooze(Duration::ZERO), Outcome::GiveBack] {
            harness.settle(&harness.lease_one(), outcome.clone());
            settle_in_transaction(harness, &outcome);
        }
        assert_eq!(entries(&find(harness, id)).len(), before);
        harness.settle(&harness.lease_one(), Outcome::Keep { result: None });
        assert_eq!(entries(&harness.archived(JobState::Done)[0]).len(), before);
        let id = harness.put("b");
        if before == 1 {
            harness.settle(&harness.lease_one(), retry("one"));
        }
        settle_in_transaction(harness, &Outcome::cancel("no"));
        assert_eq!(entries(&find(harness, id)).len(), before);
    }
}

fn each_job_of_a_batch_has_its_own_log<F: Fixture>(harness: &Harness<F>) {
    let ids = [0, 1, 2, 3].map(|n| harness.put(n));
    harness.settle(&harness.lease_one(), retry("again"));
    let jobs = harness.lease(4, TIMEOUT);
    let outcomes = [retry("zero"), retry("one"), Outcome::dead("two"), Outcome::Keep { result: None }];
    let settlements: Vec<Settlement<'_>> =
        jobs.iter().zip(outcomes).map(|(job, outcome)| Settlement { job, outcome }).collect();
    // The first call settles a part of the lease, and the second one the rest.
    assert!(harness.queue().settle_many(&settlements[..1]).unwrap().all());
    assert!(harness.queue().settle_many(&settlements[1..]).unwrap().all());
    let logs = [
        vec![(1, AttemptEnd::Failed, "again"), (2, AttemptEnd::Failed, "zero")],
        vec![(1, AttemptEnd::Failed, "one")],
        vec![(1, AttemptEnd::Dead, "two")],
        vec![],
    ];
    for (id, log) in ids.into_iter().zip(&logs) {
        assert_eq!(entries(&find(harness, id)), *log);
    }
    // Both jobs that are left have a log, and the whole lease is settled at once.
    let jobs = harness.lease(2, TIMEOUT);
    let settlements: Vec<Settlement<'_>> =
        jobs.iter().map(|job| Settlement { job, outcome: retry("both") }).collect();
    assert_eq!(harness.queue().settle_many(&settlements).unwrap(), [true, true]);
    assert_eq!(entries(&find(harness, ids[0])).len(), 3);
    assert_eq!(entries(&find(harness, ids[1])), [logs[1][0], (2, AttemptEnd::Failed, "both")]);
}

fn a_lost_lease_is_logged<F: Fixture>(harness: &Harness<F>) {
    let ids = [harness.put("a"), harness.put("b")];
    harness.lease(2, Duration::ZERO);
    harness.maintain();
    let lost = (1, AttemptEnd::Lost, "the worker died or lost its lease of 2 unsettled jobs");
    assert!(ids.iter().all(|id| entries(&find(harness, *id)) == [lost]));
    harness.lease(1, Duration::ZERO);
    harness.maintain();
    let crashed = (1, AttemptEnd::Crashed, "the worker died or lost its lease in attempt 1");
    assert_eq!(entries(&find(harness, ids[0])), [lost, crashed]);
    let job = harness.lease(1, Duration::ZERO).remove(0);
    assert_eq!(harness.queue().cancel(job.id).unwrap(), CancelOutcome::Requested);
    harness.maintain();
    let cancelled = harness.archived(JobState::Cancelled).remove(0);
    let again = (2, AttemptEnd::Crashed, "the worker died or lost its lease in attempt 2");
    assert_eq!(entries(&cancelled), [lost, crashed, again]);
}

fn a_failure_of_a_cancelled_job_is_logged<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    let job = harness.lease_one();
    assert_eq!(harness.queue().cancel(id).unwrap(), CancelOutcome::Requested);
    harness.settle(&job, retry("one"));
    let cancelled = find(harness, id);
    assert_eq!(cancelled.state, JobState::Cancelled);
    assert_eq!(entries(&cancelled), [(1, AttemptEnd::Failed, "one")]);
}

fn a_payload_that_cannot_be_decoded_is_logged<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("text");
    harness.settle(&harness.lease_one(), retry("one"));
    assert!(harness.named::<u64>("apples").get(Wait::No).unwrap().is_none());
    let dead = find(harness, id);
    let error = dead.error.as_deref().unwrap();
    assert_eq!(entries(&dead), [(1, AttemptEnd::Failed, "one"), (2, AttemptEnd::Dead, error)]);
}

fn the_attempts_of_handlers_are_logged<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, ()>(harness).max_retries(1).backoff(Backoff::fixed(Duration::ZERO));
    for handler in both::<F, _, _, _>(&task, |job| Err::<(), _>(format!("no {}", job.attempt_log.len()))) {
        let id = task.call(&()).unwrap().id;
        assert_eq!(Worker::new(&harness.pq).serve(handler).run_until_empty().unwrap().dead, 1);
        assert_eq!(
            entries(&find(harness, id)),
            [(1, AttemptEnd::Failed, "no 0"), (2, AttemptEnd::Dead, "no 1")]
        );
    }
}

fn a_failure_after_a_write_is_logged<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, ()>(harness).max_retries(1).backoff(Backoff::fixed(Duration::ZERO));
    let pears = harness.named::<Value>("pears");
    let writes = pears.clone();
    let handler = task.transactional(move |conn: &mut Conn<F>, _| {
        writes.on(conn).put(&json!(1))?;
        Err::<(), _>(CaseError("no".to_owned()))
    });
    let id = task.call(&()).unwrap().id;
    assert_eq!(Worker::new(&harness.pq).serve(handler).run_until_empty().unwrap().dead, 1);
    assert_eq!(pears.counts().unwrap().ready, 0);
    assert_eq!(entries(&find(harness, id)), [(1, AttemptEnd::Failed, "no"), (2, AttemptEnd::Dead, "no")]);
}

fn a_requeued_job_keeps_its_log_and_counts_anew<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    harness.settle(&harness.lease_one(), Outcome::dead("one"));
    assert_eq!(harness.queue().retry_all_dead().unwrap(), 1);
    let first = (1, AttemptEnd::Dead, "one");
    assert_eq!(entries(&find(harness, id)), [first]);
    harness.settle(&harness.lease_one(), Outcome::dead("two"));
    let retried = harness.pq.operate(&Operation::Retry, &Filter::id(id), |_| ()).unwrap();
    assert_eq!(retried.changed, 1);
    let log = [first, (1, AttemptEnd::Dead, "two")];
    assert_eq!(entries(&find(harness, id)), log);
    assert_eq!(entries(&harness.lease_one()), log);
}

fn a_changed_job_keeps_its_log_and_a_replaced_one_has_none<F: Fixture>(harness: &Harness<F>) {
    let unique = |on_conflict| PutOptions::new().unique_or("one", on_conflict);
    let id = harness.put_with("a", &unique(OnConflict::Keep));
    harness.settle(&harness.lease_one(), retry("one"));
    let log = [(1, AttemptEnd::Failed, "one")];
    let changes = [
        Operation::SetPriority { to: 3 },
        Operation::Move { to: QueueName::new("pears").unwrap() },
        Operation::Move { to: QueueName::new("apples").unwrap() },
    ];
    for change in changes {
        assert!(harness.pq.change(id, &change).unwrap().is_accepted());
        let job = harness.pq.list(&Filter::id(id), 1).unwrap().remove(0);
        assert_eq!(entries(&job), log, "{change:?}");
    }
    let (apples, pears) = (harness.queue(), harness.named::<Value>("pears"));
    assert_eq!((apples.move_to(&pears, None).unwrap(), pears.move_to(&apples, None).unwrap()), (1, 1));
    harness.put_with("b", &unique(OnConflict::Reschedule));
    assert_eq!(entries(&find(harness, id)), log);
    harness.put_with("c", &unique(OnConflict::Replace));
    assert_eq!(entries(&find(harness, id)), []);
}

fn a_log_is_bounded<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    let error = "ä".repeat(AttemptEntry::MAX_ERROR_CHARS + 1);
    let attempts = AttemptEntry::MAX_KEPT + 2;
    for attempt in 1..=attempts {
        match attempt % 2 {
            0 => harness.settle(&harness.lease_one(), retry(&error)),
            _ => settle_in_transaction(harness, &retry(&error)),
        }
    }
    let job = find(harness, id);
    let numbers: Vec<usize> =
        job.attempt_log.iter().map(|entry| usize::try_from(entry.attempt).unwrap()).collect();
    assert_eq!(numbers, Vec::from_iter(3..=attempts));
    assert!(job.attempt_log.iter().all(|entry| entry.error.chars().count() == AttemptEntry::MAX_ERROR_CHARS));
    assert_eq!(job.error, Some(error));
}
