//! Serialization keys: at most one job of a key is held at a time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::Duration;

use pq_core::{Job, JobId, Outcome, PutOptions, Wait};
use serde_json::{Value, json};

use super::cases;
use crate::Fixture;
use crate::harness::{Harness, TIMEOUT, roll_back};

cases![
    a_batch_contains_one_job_per_key: Both,
    a_transaction_holds_at_most_one_job_per_key: Both,
    others_skip_a_key_that_a_transaction_holds: Both,
    a_rolled_back_get_releases_the_key: Both,
    a_nested_rollback_releases_the_key: Both,
    others_skip_a_key_that_a_lease_holds: Both,
    every_outcome_of_a_leased_job_releases_its_key: Both,
    an_expired_lease_releases_the_key: Both,
    the_first_job_of_a_key_in_order_is_taken_next: Both,
    a_serialization_key_applies_to_its_queue_only: Own,
    any_text_is_a_valid_key: Both,
    an_invalid_key_is_refused: Both,
    a_held_key_does_not_change_the_order_of_other_jobs: Both,
    a_released_key_wakes_a_waiter: Both,
    a_job_given_back_can_be_taken_again_by_its_transaction: Both,
    scheduled_jobs_of_a_key_do_not_run_concurrently: Both,
    a_job_keeps_its_key_through_a_retry: Both,
    jobs_of_one_key_never_run_concurrently: Both,
];

fn keyed(key: &str) -> PutOptions {
    PutOptions::new().serialization_key(key)
}

fn data(jobs: &[Job<Value>]) -> Vec<Value> {
    jobs.iter().map(|job| job.data.clone()).collect()
}

fn a_batch_contains_one_job_per_key<F: Fixture>(harness: &Harness<F>) {
    for (data, key) in [(1, "a"), (2, "a"), (3, "b"), (4, "a")] {
        harness.put_with(data, &keyed(key));
    }
    harness.put(5);
    assert_eq!(data(&harness.get_many(10)), [1, 3, 5]);
    assert_eq!(data(&harness.lease(10, TIMEOUT)), [2]);
}

fn a_transaction_holds_at_most_one_job_per_key<F: Fixture>(harness: &Harness<F>) {
    harness.put_with(1, &keyed("a"));
    harness.put_with(2, &keyed("a"));
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            assert_eq!(data(&queue.on(conn).get_many(1)?), [1]);
            assert!(queue.on(conn).get()?.is_none());
            assert!(queue.on(conn).lease(1, TIMEOUT)?.is_empty());
            Ok(())
        })
        .unwrap();
    assert_eq!(harness.drain(), [2]);
}

fn others_skip_a_key_that_a_transaction_holds<F: Fixture>(harness: &Harness<F>) {
    harness.put_with(1, &keyed("a"));
    harness.put_with(2, &keyed("a"));
    harness.put_with(3, &keyed("b"));
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            assert_eq!(data(&queue.on(conn).get_many(1)?), [1]);
            let mut other = harness.connect();
            assert_eq!(data(&queue.on(&mut other).get_many(5)?), [3]);
            assert!(queue.on(&mut other).lease(5, TIMEOUT)?.is_empty());
            Ok(())
        })
        .unwrap();
    assert_eq!(harness.drain(), [2]);
}

fn a_rolled_back_get_releases_the_key<F: Fixture>(harness: &Harness<F>) {
    harness.put_with(1, &keyed("a"));
    harness.put_with(2, &keyed("a"));
    let queue = harness.queue();
    let rolled_back = harness.transaction(|conn| {
        queue.on(conn).get()?;
        roll_back::<()>()
    });
    assert!(rolled_back.is_err());
    assert_eq!(harness.drain(), [1, 2]);
}

fn a_nested_rollback_releases_the_key<F: Fixture>(harness: &Harness<F>) {
    harness.put_with(1, &keyed("a"));
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            let inner = harness.nested(conn, |conn| {
                queue.on(conn).get()?;
                roll_back::<()>()
            });
            assert!(inner.is_err());
            assert_eq!(data(&queue.on(&mut harness.connect()).get_many(5)?), [1]);
            Ok(())
        })
        .unwrap();
}

fn others_skip_a_key_that_a_lease_holds<F: Fixture>(harness: &Harness<F>) {
    harness.put_with(1, &keyed("a"));
    harness.put_with(2, &keyed("a"));
    harness.put(3);
    let job = harness.lease_one();
    assert_eq!(data(&harness.lease(5, TIMEOUT)), [3]);
    assert!(harness.get().is_none());
    harness.settle(&job, Outcome::Complete);
    assert_eq!(harness.drain(), [2]);
}

fn every_outcome_of_a_leased_job_releases_its_key<F: Fixture>(harness: &Harness<F>) {
    for outcome in [
        Outcome::Complete,
        Outcome::Keep { result: None },
        Outcome::Dead { error: "broken".to_owned() },
        Outcome::Cancel { reason: None },
        Outcome::snooze(10 * TIMEOUT),
        Outcome::Retry { after: 10 * TIMEOUT, error: "broken".to_owned(), payload: None },
    ] {
        harness.put_with(1, &keyed("a"));
        harness.put_with(2, &keyed("a"));
        let first = harness.lease_one();
        assert!(harness.lease(1, TIMEOUT).is_empty());
        harness.settle(&first, outcome);
        let second = harness.lease_one();
        assert_eq!(second.data, 2);
        harness.settle(&second, Outcome::Complete);
    }
}

fn an_expired_lease_releases_the_key<F: Fixture>(harness: &Harness<F>) {
    harness.put_with(1, &keyed("a"));
    harness.put_with(2, &keyed("a"));
    let job = harness.lease_one();
    harness.lose_lease(&job);
    let again = harness.lease_one();
    assert_eq!((again.data.clone(), again.attempt), (json!(1), 2));
    assert!(harness.is_lease_lost(harness.try_settle(&job, Outcome::Complete)));
    assert!(
        harness.lease(1, TIMEOUT).is_empty(),
        "a late outcome must not release the key of another attempt"
    );
    harness.settle(&again, Outcome::Complete);
    assert_eq!(harness.drain(), [2]);
}

fn the_first_job_of_a_key_in_order_is_taken_next<F: Fixture>(harness: &Harness<F>) {
    harness.put_with(3, &keyed("a"));
    let job = harness.lease_one();
    harness.put_with(2, &keyed("a"));
    harness.put_with(1, &keyed("a").priority(1));
    harness.put_with(0, &keyed("a").schedule_at("2001-01-01T00:00:00Z").priority(2));
    harness.settle(&job, Outcome::Complete);
    assert_eq!(harness.drain(), [0, 1, 2]);
}

fn a_serialization_key_applies_to_its_queue_only<F: Fixture>(harness: &Harness<F>) {
    harness.put_with(1, &keyed("a"));
    let pears = harness.named::<Value>("pears");
    pears.put_with(&json!(2), &keyed("a")).unwrap();
    let _held = harness.lease_one();
    assert_eq!(data(&pears.lease(1, TIMEOUT, Wait::No).unwrap()), [2]);
}

fn any_text_is_a_valid_key<F: Fixture>(harness: &Harness<F>) {
    let keys = ["'; --", "\"", "a,b", "{}", "NULL", "ж🍎", "\n", &"x".repeat(1024)].map(str::to_owned);
    for key in &keys {
        harness.put_with(key.as_str(), &keyed(key));
        harness.put_with(key.as_str(), &keyed(key));
    }
    let jobs = harness.lease(100, TIMEOUT);
    assert_eq!(jobs.len(), keys.len());
    for job in &jobs {
        assert_eq!(job.serialization_key.as_ref().map(|key| json!(key.as_str())), Some(job.data.clone()));
    }
}

fn an_invalid_key_is_refused<F: Fixture>(harness: &Harness<F>) {
    for key in ["", "a\0b", &"x".repeat(1025)] {
        for options in [keyed(key), PutOptions::new().unique(key)] {
            let refused = harness.try_put(&json!(1), &options).unwrap_err();
            let refused = harness.fixture.core_error(&refused).unwrap().to_string();
            assert!(refused.contains("invalid key"), "{refused}");
        }
    }
    assert_eq!(harness.counts().live(), 0);
}

fn a_held_key_does_not_change_the_order_of_other_jobs<F: Fixture>(harness: &Harness<F>) {
    harness.put_with(0, &keyed("busy"));
    let _held = harness.lease_one();
    harness.put_with(1, &keyed("busy").priority(9));
    harness.put_with(5, &PutOptions::new().priority(-1));
    harness.put_with(3, &keyed("free"));
    harness.put(4);
    harness.put_with(2, &keyed("other").expected_at("1h"));
    assert_eq!(data(&harness.get_many(10)), [2, 3, 4, 5]);
}

fn a_released_key_wakes_a_waiter<F: Fixture>(harness: &Harness<F>) {
    harness.put_with(1, &keyed("a"));
    harness.put_with(2, &keyed("a"));
    let job = harness.lease_one();
    std::thread::scope(|threads| {
        let waiter = harness.blocked_waiter(threads);
        harness.settle(&job, Outcome::Complete);
        assert_eq!(waiter.recv_timeout(TIMEOUT).unwrap(), Some(json!(2)));
    });
}

fn a_job_given_back_can_be_taken_again_by_its_transaction<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put_with(1, &keyed("a"));
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            let job = queue.on(conn).get()?.unwrap();
            queue.on(conn).give_back(&job)?;
            assert!(queue.on(&mut harness.connect()).get()?.is_none());
            assert_eq!(queue.on(conn).get()?.map(|job| job.id), Some(id));
            Ok(())
        })
        .unwrap();
    assert_eq!(harness.counts().live(), 0);
}

fn scheduled_jobs_of_a_key_do_not_run_concurrently<F: Fixture>(harness: &Harness<F>) {
    let due = || keyed("a").schedule_at("2001-01-01T00:00:00Z");
    harness.put_with(1, &due());
    harness.put_with(2, &due());
    let jobs = harness.lease(5, TIMEOUT);
    assert_eq!(data(&jobs), [1]);
    assert!(harness.get().is_none());
    harness.settle(&jobs[0], Outcome::Complete);
    assert_eq!(harness.drain(), [2]);
}

fn a_job_keeps_its_key_through_a_retry<F: Fixture>(harness: &Harness<F>) {
    harness.put_with(1, &keyed("a"));
    harness.put_with(2, &keyed("a"));
    let job = harness.lease_one();
    let again = Outcome::Retry { after: Duration::ZERO, error: "again".to_owned(), payload: None };
    harness.settle(&job, again);
    assert_eq!(data(&harness.lease(5, TIMEOUT)), [1]);
}

/// Eight threads take four keys in transactions and under leases. Two jobs of one key must never be held at once.
fn jobs_of_one_key_never_run_concurrently<F: Fixture>(harness: &Harness<F>) {
    const JOBS: u32 = 120;
    for n in 0..JOBS {
        harness.put_with(n, &keyed(["a", "b", "c", "d"][n as usize % 4]));
    }
    let running = Mutex::new(HashMap::<String, JobId>::new());
    let done = AtomicU32::new(0);
    let start = Barrier::new(8);
    let key = |job: &Job<Value>| job.serialization_key.as_ref().unwrap().as_str().to_owned();
    let begin = |job: &Job<Value>| {
        let before = running.lock().unwrap().insert(key(job), job.id);
        assert_eq!(before, None, "two jobs of key {} run at once", key(job));
    };
    let end = |job: &Job<Value>| {
        std::thread::yield_now();
        assert_eq!(running.lock().unwrap().remove(&key(job)), Some(job.id));
        done.fetch_add(1, Ordering::Relaxed);
    };
    let work = |number: usize| {
        start.wait();
        let queue = harness.queue();
        while done.load(Ordering::Relaxed) < JOBS {
            if number.is_multiple_of(2) {
                for job in harness.lease(3, TIMEOUT) {
                    begin(&job);
                    end(&job);
                    harness.settle(&job, Outcome::Complete);
                }
            } else {
                let held = harness.transaction(|conn| {
                    let jobs = queue.on(conn).get_many(3)?;
                    jobs.iter().for_each(begin);
                    jobs.iter().for_each(end);
                    Ok(())
                });
                held.unwrap();
            }
        }
    };
    std::thread::scope(|threads| {
        for number in 0..8 {
            let work = &work;
            threads.spawn(move || work(number));
        }
    });
    assert_eq!(harness.counts().live(), 0);
}
