//! Costs of jobs that are corrected when they are known.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pq_core::store::{Connect, Notes, TimeTravel};
use pq_core::{Error, Job, Limits, NewNotes, Outcome, Progress, PutOptions, Rate, Wait};
use serde_json::{Value, json};

use super::cases;
use super::limits::{data, in_group, limit};
use crate::Fixture;
use crate::harness::{Access, Conn, Harness, Seen, TIMEOUT, roll_back, run_asserting, task};

cases![
    a_corrected_cost_changes_the_tokens_by_the_difference: Both,
    a_bucket_owes_what_a_corrected_job_used: Both,
    a_credit_does_not_exceed_the_burst: Both,
    a_corrected_cost_is_rolled_back_with_its_transaction: Both,
    a_cost_is_not_corrected_without_the_lease: Both,
    the_next_attempt_takes_what_the_put_stated: Both,
    a_correction_is_known_whatever_else_is_noted: Own,
    a_credit_wakes_a_waiter: Own,
    a_cost_is_corrected_without_limits: Both,
    an_invalid_cost_is_refused: Both,
    handlers_correct_the_cost_of_their_jobs: Own,
    corrections_and_takes_at_the_same_time_lose_no_token: Own,
];

/// A rate that gains nothing while a case runs.
fn slow(burst: u32) -> Rate {
    Rate::new(1, Duration::from_secs(3_600 * 24)).burst(burst)
}

fn correct<F: Fixture>(
    harness: &Harness<F>,
    job: &Job<Value>,
    cost: u32,
) -> Result<(), crate::harness::Error<F>> {
    match harness.access() {
        Access::Own => harness.queue().correct_cost(job, cost),
        Access::Callers => harness.queue().on(&mut harness.connect()).correct_cost(job, cost),
    }
}

fn put_all<F: Fixture>(harness: &Harness<F>, count: u32) {
    for data in 1..=count {
        harness.put(data);
    }
}

/// Returns the tokens of the queue, and those of the group `a`.
fn tokens<F: Fixture>(harness: &Harness<F>) -> (f64, f64) {
    let limited = harness.pq.limited().unwrap().pop().unwrap();
    let group = limited.groups.iter().find(|group| group.group.as_deref() == Some("a"));
    let of_group = group.and_then(|group| limited.tokens_of(group)).unwrap_or(f64::NAN);
    (limited.tokens().unwrap().round(), of_group.round())
}

fn a_corrected_cost_changes_the_tokens_by_the_difference<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().rate(slow(100)).rate_of("a", slow(50)));
    harness.put_with(1, &in_group("a").cost(10));
    harness.put(2);
    let jobs = harness.lease(9, TIMEOUT);
    assert_eq!(tokens(harness), (89.0, 40.0));
    for (cost, left) in [(25, (74.0, 25.0)), (25, (74.0, 25.0)), (3, (96.0, 47.0)), (0, (99.0, 50.0))] {
        correct(harness, &jobs[0], cost).unwrap();
        assert_eq!(tokens(harness), left, "{cost}");
    }
    correct(harness, &jobs[1], 9).unwrap();
    assert_eq!(tokens(harness), (91.0, 50.0), "a job without a group has the tokens of the queue");
    harness.settle(&jobs[0], Outcome::Complete);
    assert_eq!(tokens(harness), (91.0, 50.0));
}

fn a_bucket_owes_what_a_corrected_job_used<F: Fixture>(harness: &Harness<F>) {
    let minute = Duration::from_secs(60);
    limit(harness, Limits::new().rate(Rate::new(60, 60 * minute).burst(10)));
    put_all(harness, 3);
    let job = harness.lease_one();
    correct(harness, &job, 1_000).unwrap();
    correct(harness, &job, 31).unwrap();
    assert_eq!(tokens(harness).0, -21.0);
    assert!(harness.lease(9, TIMEOUT).is_empty());
    let advance = |time| {
        let store = harness.pq.store();
        let advanced: Result<(), crate::harness::Error<F>> =
            store.with_connection(|conn| store.advance(conn, time));
        advanced.unwrap();
    };
    advance(21 * minute);
    assert!(harness.lease(9, TIMEOUT).is_empty());
    advance(minute);
    assert_eq!(data(&harness.get_many(9)), [2]);
}

fn a_credit_does_not_exceed_the_burst<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().rate(slow(10)));
    harness.put_with(1, &PutOptions::new().cost(5));
    let job = harness.lease_one();
    limit(harness, Limits::new().rate(slow(6)));
    correct(harness, &job, 1).unwrap();
    assert_eq!(tokens(harness).0, 6.0);
    harness.put_with(2, &PutOptions::new().cost(6));
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [2]);
}

fn a_corrected_cost_is_rolled_back_with_its_transaction<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().rate(slow(100)));
    harness.put(1);
    let (queue, job) = (harness.queue(), harness.lease_one());
    let rolled_back = harness.transaction(|conn| {
        queue.on(conn).correct_cost(&job, 50)?;
        queue.on(conn).correct_cost(&job, 60)?;
        roll_back::<()>()
    });
    assert!(rolled_back.is_err());
    assert_eq!(tokens(harness).0, 99.0);
    let corrected = harness.transaction(|conn| {
        queue.on(conn).correct_cost(&job, 50)?;
        Ok(queue.on(conn).settle(&job, Outcome::Complete)?)
    });
    corrected.unwrap();
    assert_eq!(tokens(harness).0, 50.0);
}

fn a_cost_is_not_corrected_without_the_lease<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().rate(slow(100)));
    put_all(harness, 2);
    let jobs = [harness.lease_one(), harness.lease_one()];
    harness.settle(&jobs[0], Outcome::Complete);
    assert!(harness.is_lease_lost(correct(harness, &jobs[0], 50)));
    harness.lose_lease(&jobs[1]);
    assert!(harness.is_lease_lost(correct(harness, &jobs[1], 50)));
    assert_eq!(tokens(harness).0, 98.0);
    let again = harness.lease_one();
    assert!(harness.is_lease_lost(correct(harness, &jobs[1], 50)), "another holder has the job");
    correct(harness, &again, 2).unwrap();
    assert_eq!(tokens(harness).0, 96.0);
}

fn the_next_attempt_takes_what_the_put_stated<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().rate(slow(100)));
    harness.put_with(1, &PutOptions::new().cost(10));
    let job = harness.lease_one();
    correct(harness, &job, 30).unwrap();
    harness.settle(&job, Outcome::retry(Duration::ZERO, "again"));
    assert_eq!(tokens(harness).0, 70.0);
    let job = harness.lease_one();
    assert_eq!((job.attempt, tokens(harness).0), (2, 60.0));
    correct(harness, &job, 30).unwrap();
    assert_eq!(tokens(harness).0, 40.0);
}

fn progress(done: u64) -> Progress {
    Progress { done, total: 3, note: String::new() }
}

fn a_correction_is_known_whatever_else_is_noted<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().rate(slow(100)));
    harness.put(1);
    let job = harness.lease_one();
    correct(harness, &job, 30).unwrap();
    let store = harness.pq.store();
    for done in 1..=3 {
        let noted = progress(done);
        let notes = [NewNotes { job: &job, lines: &[], progress: Some(&noted) }];
        let accepted: Result<_, crate::harness::Error<F>> =
            store.with_connection(|conn| store.write_notes(conn, &notes, false));
        assert!(accepted.unwrap().all());
    }
    correct(harness, &job, 30).unwrap();
    assert_eq!(tokens(harness).0, 70.0);
    assert_eq!(harness.pq.progress(&[job.id]).unwrap()[0].progress, progress(3));
    assert_eq!(harness.pq.log(job.id).unwrap(), []);
}

fn a_credit_wakes_a_waiter<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().rate(slow(10)));
    harness.put_with(1, &PutOptions::new().cost(10));
    harness.put(2);
    let job = harness.lease_one();
    std::thread::scope(|threads| {
        let waiter = harness.blocked_waiter(threads);
        correct(harness, &job, 4).unwrap();
        assert_eq!(waiter.recv_timeout(TIMEOUT / 4).unwrap(), Some(json!(2)));
    });
}

fn a_cost_is_corrected_without_limits<F: Fixture>(harness: &Harness<F>) {
    put_all(harness, 4);
    let (queue, job) = (harness.queue(), harness.lease_one());
    correct(harness, &job, 30).unwrap();
    let corrected = harness.transaction(|conn| {
        let job = queue.on(conn).get()?.unwrap();
        Ok(queue.on(conn).correct_cost(&job, 30)?)
    });
    corrected.unwrap();
    limit(harness, Limits::new().running(5));
    let job = harness.lease_one();
    correct(harness, &job, 30).unwrap();
    let refused = harness.transaction(|conn| {
        let job = queue.on(conn).get()?.unwrap();
        let refused = queue.on(conn).correct_cost(&job, 30).unwrap_err();
        let text = harness.fixture.core_error(&refused).map(ToString::to_string).unwrap_or_default();
        assert!(text.contains("a transaction took it without a lease"), "{text}");
        Ok(())
    });
    refused.unwrap();
}

fn an_invalid_cost_is_refused<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().rate(slow(10)));
    harness.put(1);
    let job = harness.lease_one();
    let refused = correct(harness, &job, 1_000_001).unwrap_err();
    let refused = harness.fixture.core_error(&refused);
    assert!(matches!(refused, Some(Error::InvalidAnnotation(_))), "{refused:?}");
    assert_eq!(tokens(harness).0, 9.0);
}

fn handlers_correct_the_cost_of_their_jobs<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().rate(slow(1_000)));
    let task = task::<F, u32>(harness);
    task.call_many([10, 20]).unwrap();
    let seen = Seen::new();
    let note = seen.clone();
    run_asserting(
        harness,
        task.leased(move |context, job| {
            context.cost(job.data).unwrap();
            note.push(job.data);
            Ok::<_, String>(())
        }),
    );
    assert_eq!((seen.all(), tokens(harness).0), (vec![10, 20], 970.0));
    task.call_many([30, 40, 50]).unwrap();
    let queue = harness.named::<u32>("apples");
    let handler = task.transactional(move |conn: &mut Conn<F>, job| {
        queue.on(conn).correct_cost(&job, job.data).unwrap();
        // What a failed handler did is rolled back.
        if job.data == 40 { Err("failed") } else { Ok(()) }
    });
    run_asserting(harness, handler);
    assert_eq!(tokens(harness).0, 970.0 - 30.0 - 1.0 - 50.0);
}

fn corrections_and_takes_at_the_same_time_lose_no_token<F: Fixture>(harness: &Harness<F>) {
    const JOBS: u32 = 120;
    const BURST: u32 = 100_000;
    limit(harness, Limits::new().rate(slow(BURST)).rate_of("a", slow(BURST)));
    for data in 0..JOBS {
        harness.put_with(data, &in_group("a"));
    }
    let (done, used) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                let queue = harness.queue();
                while done.load(Ordering::SeqCst) < u64::from(JOBS) {
                    for job in queue.lease(2, TIMEOUT, Wait::No).unwrap() {
                        let cost = 3 + job.data.as_u64().unwrap() % 7;
                        queue.correct_cost(&job, 500).unwrap();
                        queue.correct_cost(&job, cost as u32).unwrap();
                        queue.settle(&job, Outcome::Complete).unwrap();
                        used.fetch_add(cost, Ordering::SeqCst);
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    let left = f64::from(BURST) - used.load(Ordering::SeqCst) as f64;
    assert_eq!(tokens(harness), (left, left));
}
