//! Strict order of a serialization key: a job that waits for its retry keeps its key.

use std::sync::Mutex;
use std::time::Duration;

use pq_core::store::{Connect, TimeTravel};
use pq_core::{Job, JobState, Limits, Operation, Outcome, PutOptions, Reason, Wait};
use serde_json::{Value, json};

use super::cases;
use super::limits::limit;
use crate::Fixture;
use crate::harness::{Error, Harness, TIMEOUT, roll_back};

cases![
    a_failed_job_keeps_its_key_until_it_is_done: Both,
    without_strict_order_later_jobs_overtake: Both,
    a_failed_job_comes_before_a_later_one_of_a_higher_priority: Both,
    a_dead_or_cancelled_job_releases_its_key: Both,
    a_job_that_was_never_begun_does_not_keep_its_key: Both,
    a_job_that_is_run_now_takes_its_place_in_the_order: Both,
    jobs_of_other_keys_pass_a_kept_one: Both,
    strict_order_holds_in_a_limited_queue: Both,
    strict_order_is_stored_with_a_call: Own,
    a_kept_key_is_explained_and_counted: Own,
    a_rolled_back_retry_keeps_nothing: Both,
    of_two_jobs_that_keep_a_key_the_first_one_runs: Own,
    jobs_of_a_key_end_in_order_on_many_threads: Own,
];

fn strict(key: &str) -> PutOptions {
    PutOptions::new().serialization_key(key).strict_order()
}

fn data(jobs: &[Job<Value>]) -> Vec<Value> {
    jobs.iter().map(|job| job.data.clone()).collect()
}

fn advance<F: Fixture>(harness: &Harness<F>, seconds: u64) {
    let store = harness.pq.store();
    let advanced: Result<(), Error<F>> =
        store.with_connection(|conn| store.advance(conn, Duration::from_secs(seconds)));
    advanced.unwrap();
}

/// Takes the next job and lets it fail, with a retry in a minute.
fn fail<F: Fixture>(harness: &Harness<F>) -> Job<Value> {
    let job = harness.lease_one();
    harness.settle(&job, Outcome::retry(Duration::from_secs(60), "failed"));
    job
}

fn a_failed_job_keeps_its_key_until_it_is_done<F: Fixture>(harness: &Harness<F>) {
    for data in 1..=3 {
        harness.put_with(data, &strict("a"));
    }
    assert_eq!(fail(harness).data, json!(1));
    assert!(harness.lease(9, TIMEOUT).is_empty());
    assert!(harness.get_many(9).is_empty());
    advance(harness, 61);
    assert_eq!(fail(harness).data, json!(1));
    assert!(harness.get().is_none());
    advance(harness, 61);
    let job = harness.lease_one();
    assert_eq!((&job.data, job.attempt), (&json!(1), 3));
    assert!(harness.lease(9, TIMEOUT).is_empty());
    harness.settle(&job, Outcome::Complete);
    assert_eq!(harness.drain(), [2, 3]);
}

fn without_strict_order_later_jobs_overtake<F: Fixture>(harness: &Harness<F>) {
    for data in 1..=3 {
        harness.put_with(data, &PutOptions::new().serialization_key("a"));
    }
    fail(harness);
    assert_eq!(harness.drain(), [2, 3]);
    advance(harness, 61);
    assert_eq!(harness.drain(), [1]);
}

fn a_failed_job_comes_before_a_later_one_of_a_higher_priority<F: Fixture>(harness: &Harness<F>) {
    harness.put_with(1, &strict("a"));
    fail(harness);
    harness.put_with(2, &strict("a").priority(9));
    harness.put_with(3, &strict("a").priority(8).schedule_at("2001-01-01T00:00:00Z"));
    assert!(harness.get().is_none());
    advance(harness, 61);
    assert_eq!(data(&harness.get_many(9)), [1]);
    assert_eq!(harness.drain(), [2, 3]);
}

fn a_dead_or_cancelled_job_releases_its_key<F: Fixture>(harness: &Harness<F>) {
    for data in 1..=4 {
        harness.put_with(data, &strict("a"));
    }
    fail(harness);
    advance(harness, 61);
    harness.settle(&harness.lease_one(), Outcome::dead("broken"));
    let failed = fail(harness);
    assert_eq!(failed.data, json!(2));
    assert!(harness.get().is_none());
    assert!(harness.queue().cancel(failed.id).unwrap().is_accepted());
    let failed = fail(harness);
    assert_eq!(failed.data, json!(3));
    harness.pq.change(failed.id, &Operation::Delete).unwrap();
    assert_eq!(harness.drain(), [4]);
}

fn a_job_that_was_never_begun_does_not_keep_its_key<F: Fixture>(harness: &Harness<F>) {
    harness.put_with(1, &strict("a").schedule_at(Duration::from_secs(60)));
    harness.put_with(2, &strict("a"));
    harness.put_with(3, &strict("a"));
    let job = harness.lease_one();
    assert_eq!(job.data, json!(2));
    harness.settle(&job, Outcome::GiveBack);
    assert_eq!(harness.drain(), [2, 3]);
}

fn a_job_that_is_run_now_takes_its_place_in_the_order<F: Fixture>(harness: &Harness<F>) {
    harness.put_with(1, &strict("a"));
    let failed = fail(harness);
    harness.put_with(2, &strict("a").priority(9));
    harness.put_with(3, &strict("a"));
    harness.pq.change(failed.id, &Operation::RunNow).unwrap();
    assert_eq!(harness.drain(), [2, 1, 3]);
}

fn jobs_of_other_keys_pass_a_kept_one<F: Fixture>(harness: &Harness<F>) {
    for key in ["a", "b", "a", "b"] {
        harness.put_with(key, &strict(key));
    }
    harness.put("none");
    fail(harness);
    assert_eq!(data(&harness.lease(9, TIMEOUT)), ["b", "none"]);
    assert!(harness.get().is_none());
}

fn strict_order_holds_in_a_limited_queue<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().running(5));
    harness.put_with(1, &strict("a"));
    fail(harness);
    harness.put_with(2, &strict("a").priority(9));
    harness.put_with(3, &strict("b"));
    assert_eq!(data(&harness.get_many(9)), [3]);
    advance(harness, 61);
    assert_eq!(data(&harness.get_many(9)), [1]);
    assert_eq!(harness.drain(), [2]);
}

fn strict_order_is_stored_with_a_call<F: Fixture>(harness: &Harness<F>) {
    let defaults = pq_core::CallOptions::new().strict_order();
    let task = crate::harness::task::<F, u32>(harness).serialize_by(|n| format!("key {n}"));
    let id = task.clone().with_defaults(defaults).call(&7).unwrap().id;
    let other = task.call(&7).unwrap().id;
    let is_strict = |id| harness.pq.find(id).unwrap().unwrap().annotations.is_strict();
    assert_eq!((is_strict(id), is_strict(other)), (true, false));
    assert_eq!(fail(harness).id, id);
    assert!(harness.get().is_none());
}

fn a_kept_key_is_explained_and_counted<F: Fixture>(harness: &Harness<F>) {
    harness.put_with(1, &strict("a"));
    let failed = fail(harness).id;
    let other = harness.put_with(2, &strict("a").priority(9));
    let state = |id| harness.pq.find(id).unwrap().unwrap().state;
    let is_behind = |id| {
        let reasons = harness.pq.explain(id).unwrap();
        reasons.iter().any(|reason| matches!(reason, Reason::BehindOfKey { job, .. } if *job == failed))
    };
    assert_eq!((state(failed), state(other)), (JobState::Scheduled, JobState::Blocked));
    assert_eq!((is_behind(failed), is_behind(other)), (false, true));
    let counts = harness.counts();
    assert_eq!((counts.ready, counts.blocked, counts.scheduled), (0, 1, 1));
    advance(harness, 61);
    assert_eq!((state(failed), state(other)), (JobState::Ready, JobState::Blocked));
    assert_eq!((is_behind(failed), is_behind(other)), (false, true));
    let counts = harness.counts();
    assert_eq!((counts.ready, counts.blocked, counts.scheduled), (1, 1, 0));
}

fn a_rolled_back_retry_keeps_nothing<F: Fixture>(harness: &Harness<F>) {
    harness.put_with(1, &strict("a"));
    harness.put_with(2, &strict("a"));
    let (queue, job) = (harness.queue(), harness.lease_one());
    let rolled_back = harness.transaction(|conn| {
        queue.on(conn).settle(&job, Outcome::retry(Duration::from_secs(60), "failed"))?;
        roll_back::<()>()
    });
    assert!(rolled_back.is_err());
    harness.settle(&job, Outcome::Complete);
    assert_eq!(harness.drain(), [2]);
}

fn of_two_jobs_that_keep_a_key_the_first_one_runs<F: Fixture>(harness: &Harness<F>) {
    harness.put_with(1, &strict("a"));
    fail(harness);
    let pears = harness.named::<Value>("pears");
    let moved = pears.put_with(&json!(2), &strict("a")).unwrap().id;
    let job = pears.lease(1, TIMEOUT, Wait::No).unwrap().pop().unwrap();
    pears.settle(&job, Outcome::retry(Duration::from_secs(60), "failed")).unwrap();
    harness.pq.change(moved, &Operation::Move { to: harness.queue().name().clone() }).unwrap();
    harness.put_with(3, &strict("a").priority(9));
    advance(harness, 61);
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [1]);
    assert_eq!(harness.counts().blocked, 2);
}

fn jobs_of_a_key_end_in_order_on_many_threads<F: Fixture>(harness: &Harness<F>) {
    const KEYS: u64 = 3;
    const JOBS: u64 = 20;
    for number in 0..KEYS * JOBS {
        harness.put_with(number, &strict(&format!("key {}", number % KEYS)));
    }
    let ended = Mutex::new(Vec::new());
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                let queue = harness.queue();
                while ended.lock().unwrap().len() < (KEYS * JOBS) as usize {
                    for job in queue.lease(2, TIMEOUT, Wait::No).unwrap() {
                        let number = job.data.as_u64().unwrap();
                        // Each job fails as often as its number says.
                        if u64::from(job.attempt.unsigned_abs()) <= number / KEYS % 3 {
                            queue.settle(&job, Outcome::retry(Duration::from_millis(2), "failed")).unwrap();
                            continue;
                        }
                        ended.lock().unwrap().push(number);
                        queue.settle(&job, Outcome::Complete).unwrap();
                    }
                }
            });
        }
    });
    let ended = ended.into_inner().unwrap();
    for key in 0..KEYS {
        let of_key: Vec<u64> = ended.iter().copied().filter(|number| number % KEYS == key).collect();
        assert!(of_key.is_sorted(), "{of_key:?}");
    }
}
