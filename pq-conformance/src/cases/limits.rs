//! Limits of running jobs, for a queue and by group.

use std::time::Duration;

use pq_core::{Error, Job, Limits, Outcome, PutOptions, Rate};
use serde_json::{Value, json};

use super::cases;
use crate::Fixture;
use crate::harness::{Harness, TIMEOUT, roll_back};

cases![
    no_more_jobs_are_taken_than_may_run: Both,
    a_transaction_counts_its_own_jobs: Both,
    the_jobs_of_an_open_transaction_count: Both,
    a_rolled_back_take_frees_its_place: Both,
    every_outcome_of_a_leased_job_frees_its_place: Both,
    a_part_of_a_lease_frees_as_many_places: Both,
    an_outcome_in_an_open_transaction_frees_no_place: Both,
    an_expired_lease_frees_its_place_when_its_job_returns: Both,
    a_get_that_commits_holds_no_place: Own,
    a_lowered_limit_counts_the_jobs_that_run: Both,
    limits_are_read_replaced_and_removed: Own,
    invalid_limits_are_refused: Own,
    rolled_back_limits_do_not_hold: Both,
    jobs_that_ran_before_the_limit_count: Both,
    limits_hold_for_their_queue_only: Own,
    a_full_group_is_passed: Both,
    groups_can_have_limits_of_their_own: Both,
    the_jobs_of_a_group_run_in_the_order_of_the_queue: Both,
    the_limits_of_a_queue_and_of_its_groups_hold_together: Both,
    a_full_group_with_many_jobs_does_not_hide_others: Both,
    a_paused_queue_keeps_its_limits: Both,
    a_key_whose_first_job_has_no_place_waits: Both,
    keys_and_limits_hold_together: Both,
    a_freed_place_wakes_a_waiter: Both,
    the_end_of_a_transaction_wakes_a_waiter: Both,
    removing_the_limits_wakes_a_waiter: Own,
    a_job_keeps_its_group: Both,
    an_invalid_group_or_cost_is_refused: Both,
];

pub(super) fn in_group(group: &str) -> PutOptions {
    PutOptions::new().group(group)
}

pub(super) fn limit<F: Fixture>(harness: &Harness<F>, limits: Limits) {
    harness.queue().set_limits(&limits).unwrap();
}

pub(super) fn data(jobs: &[Job<Value>]) -> Vec<Value> {
    jobs.iter().map(|job| job.data.clone()).collect()
}

fn put_all<F: Fixture>(harness: &Harness<F>, count: u32) {
    for data in 1..=count {
        harness.put(data);
    }
}

fn no_more_jobs_are_taken_than_may_run<F: Fixture>(harness: &Harness<F>) {
    put_all(harness, 5);
    limit(harness, Limits::new().running(2));
    let jobs = harness.lease(9, TIMEOUT);
    assert_eq!(data(&jobs), [1, 2]);
    assert!(harness.lease(9, TIMEOUT).is_empty());
    assert!(harness.get().is_none());
    harness.settle(&jobs[1], Outcome::Complete);
    let third = harness.lease_one();
    assert_eq!(third.data, 3);
    assert!(harness.lease(9, TIMEOUT).is_empty());
    harness.settle(&jobs[0], Outcome::Complete);
    harness.settle(&third, Outcome::Complete);
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [4, 5]);
}

fn a_transaction_counts_its_own_jobs<F: Fixture>(harness: &Harness<F>) {
    put_all(harness, 3);
    limit(harness, Limits::new().running(2));
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            assert_eq!(data(&queue.on(conn).get_many(1)?), [1]);
            let inner = harness.nested(conn, |conn| {
                assert_eq!(data(&queue.on(conn).get_many(9)?), [2]);
                assert!(queue.on(conn).get()?.is_none());
                roll_back::<()>()
            });
            assert!(inner.is_err());
            // The nested rollback has freed its place, and no other.
            assert_eq!(data(&queue.on(conn).get_many(9)?), [2]);
            assert!(queue.on(conn).lease(9, TIMEOUT)?.is_empty());
            Ok(())
        })
        .unwrap();
    assert_eq!(harness.drain(), [3]);
}

fn the_jobs_of_an_open_transaction_count<F: Fixture>(harness: &Harness<F>) {
    put_all(harness, 4);
    limit(harness, Limits::new().running(2));
    let queue = harness.queue();
    let second = harness
        .transaction(|conn| {
            assert_eq!(data(&queue.on(conn).get_many(1)?), [1]);
            let mut other = harness.connect();
            let second = queue.on(&mut other).lease(9, TIMEOUT)?;
            assert_eq!(data(&second), [2]);
            assert!(queue.on(&mut other).get()?.is_none());
            Ok(second)
        })
        .unwrap();
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [3]);
    harness.settle(&second[0], Outcome::Complete);
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [4]);
}

fn a_rolled_back_take_frees_its_place<F: Fixture>(harness: &Harness<F>) {
    put_all(harness, 2);
    limit(harness, Limits::new().running(1));
    let queue = harness.queue();
    for _ in 0..3 {
        let rolled_back = harness.transaction(|conn| {
            assert_eq!(queue.on(conn).get_many(9)?.len(), 1);
            roll_back::<()>()
        });
        assert!(rolled_back.is_err());
        let rolled_back = harness.transaction(|conn| {
            assert_eq!(queue.on(conn).lease(9, TIMEOUT)?.len(), 1);
            roll_back::<()>()
        });
        assert!(rolled_back.is_err());
    }
    // After a slow take the next ones may begin behind the job that it returned.
    assert_eq!(harness.drain().len(), 2);
}

fn every_outcome_of_a_leased_job_frees_its_place<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().running(1).running_per_group(1));
    let hour = Duration::from_secs(3_600);
    for outcome in [
        Outcome::Complete,
        Outcome::Keep { result: None },
        Outcome::Dead { error: "broken".to_owned() },
        Outcome::Cancel { reason: None },
        Outcome::Retry { after: hour, error: "broken".to_owned(), payload: None },
        Outcome::Snooze { after: hour, reason: None, payload: None },
    ] {
        harness.put_with("one", &in_group("a"));
        harness.put_with("two", &in_group("a"));
        let job = harness.lease_one();
        assert!(harness.lease(9, TIMEOUT).is_empty(), "{outcome:?}");
        harness.settle(&job, outcome.clone());
        let next = harness.lease_one();
        assert_eq!(next.data, json!("two"), "{outcome:?}");
        harness.settle(&next, Outcome::Complete);
    }
    harness.put_with("one", &in_group("a"));
    harness.settle(&harness.lease_one(), Outcome::GiveBack);
    assert_eq!(harness.lease_one().data, json!("one"));
}

fn a_part_of_a_lease_frees_as_many_places<F: Fixture>(harness: &Harness<F>) {
    put_all(harness, 6);
    limit(harness, Limits::new().running(3));
    let jobs = harness.lease(9, TIMEOUT);
    assert_eq!(data(&jobs), [1, 2, 3]);
    harness.settle(&jobs[1], Outcome::Complete);
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [4]);
    harness.settle(&jobs[0], Outcome::GiveBack);
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [1]);
    harness.settle(&jobs[2], Outcome::Complete);
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [5]);
    assert!(harness.lease(9, TIMEOUT).is_empty());
}

fn an_outcome_in_an_open_transaction_frees_no_place<F: Fixture>(harness: &Harness<F>) {
    put_all(harness, 2);
    limit(harness, Limits::new().running(1));
    let (queue, job) = (harness.queue(), harness.lease_one());
    let rolled_back = harness.transaction(|conn| {
        queue.on(conn).settle(&job, Outcome::Complete)?;
        assert!(queue.on(&mut harness.connect()).lease(9, TIMEOUT)?.is_empty());
        roll_back::<()>()
    });
    assert!(rolled_back.is_err());
    assert!(harness.lease(9, TIMEOUT).is_empty());
    harness
        .transaction(|conn| {
            queue.on(conn).settle(&job, Outcome::Complete)?;
            assert!(queue.on(&mut harness.connect()).lease(9, TIMEOUT)?.is_empty());
            Ok(())
        })
        .unwrap();
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [2]);
}

fn an_expired_lease_frees_its_place_when_its_job_returns<F: Fixture>(harness: &Harness<F>) {
    put_all(harness, 3);
    limit(harness, Limits::new().running(2));
    let jobs = harness.lease(2, TIMEOUT);
    harness.settle(&jobs[0], Outcome::Complete);
    harness.queue().extend(&jobs[1], Duration::ZERO).unwrap();
    // The worker may still run the job, until maintenance has taken it away.
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [3]);
    assert_eq!(harness.maintain().returned, 1);
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [2]);
    assert!(harness.is_lease_lost(harness.try_settle(&jobs[1], Outcome::Complete)));
}

fn a_get_that_commits_holds_no_place<F: Fixture>(harness: &Harness<F>) {
    put_all(harness, 5);
    limit(harness, Limits::new().running(2));
    assert_eq!(data(&harness.get_many(9)), [1, 2]);
    assert_eq!(data(&harness.get_many(9)), [3, 4]);
    assert_eq!(harness.drain(), [5]);
}

fn a_lowered_limit_counts_the_jobs_that_run<F: Fixture>(harness: &Harness<F>) {
    put_all(harness, 6);
    limit(harness, Limits::new().running(4));
    let jobs: Vec<_> = (0..4).map(|_| harness.lease_one()).collect();
    limit(harness, Limits::new().running(2));
    for job in &jobs[..2] {
        assert!(harness.lease(9, TIMEOUT).is_empty());
        harness.settle(job, Outcome::Complete);
    }
    assert!(harness.lease(9, TIMEOUT).is_empty());
    harness.settle(&jobs[2], Outcome::Complete);
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [5]);
    assert!(harness.lease(9, TIMEOUT).is_empty());
    limit(harness, Limits::new().running(3));
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [6]);
}

fn limits_are_read_replaced_and_removed<F: Fixture>(harness: &Harness<F>) {
    put_all(harness, 3);
    let queue = harness.queue();
    assert!(queue.limits().unwrap().is_empty());
    let rate = Rate::new(100, Duration::from_secs(60)).burst(20);
    let limits = Limits::new().running(1).rate_per_group(rate).running_of("ä \"b\"", 7).rate_of("c", rate);
    limit(harness, limits.clone());
    assert_eq!(queue.limits().unwrap(), limits);
    assert!(harness.named::<u8>("pears").limits().unwrap().is_empty());
    assert_eq!(harness.lease(9, TIMEOUT).len(), 1);
    limit(harness, Limits::new());
    assert!(queue.limits().unwrap().is_empty());
    assert_eq!(harness.lease(9, TIMEOUT).len(), 2);
    assert!(!queue.resume().unwrap(), "a limited queue is not paused");
    assert!(harness.pq.paused_queues().unwrap().is_empty());
    harness.named::<u8>("pears").set_limits(&limits).unwrap();
    assert_eq!(harness.pq.overview().unwrap().len(), 2, "a limited queue is listed even if it is empty");
}

fn invalid_limits_are_refused<F: Fixture>(harness: &Harness<F>) {
    for limits in [Limits::new().running(0), Limits::new().running_of("", 1)] {
        let error = harness.queue().set_limits(&limits).unwrap_err();
        let refusal = harness.fixture.core_error(&error);
        assert!(matches!(refusal, Some(Error::InvalidSetting(_) | Error::InvalidAnnotation(_))));
    }
    assert!(harness.queue().limits().unwrap().is_empty());
}

fn rolled_back_limits_do_not_hold<F: Fixture>(harness: &Harness<F>) {
    put_all(harness, 2);
    let (store, queue) = (harness.pq.store(), harness.queue());
    let rolled_back = harness.transaction(|conn| {
        pq_core::store::Limiting::set_limits(store, conn, queue.name(), &Limits::new().running(1))?;
        roll_back::<()>()
    });
    assert!(rolled_back.is_err());
    assert_eq!(harness.lease(9, TIMEOUT).len(), 2);
}

fn jobs_that_ran_before_the_limit_count<F: Fixture>(harness: &Harness<F>) {
    for data in 1..=3 {
        harness.put_with(data, &in_group("a"));
    }
    harness.put(4);
    let jobs = harness.lease(2, TIMEOUT);
    limit(harness, Limits::new().running(2).running_per_group(1));
    assert!(harness.lease(9, TIMEOUT).is_empty());
    harness.settle(&jobs[0], Outcome::Complete);
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [4], "the group is full");
    harness.settle(&jobs[1], Outcome::Complete);
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [3]);
    // Setting them again counts nothing twice.
    limit(harness, Limits::new().running(3).running_per_group(2));
    harness.put_with(5, &in_group("a"));
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [5]);
}

fn limits_hold_for_their_queue_only<F: Fixture>(harness: &Harness<F>) {
    put_all(harness, 2);
    let pears = harness.named::<Value>("pears");
    pears.put_many(&[json!(1), json!(2)]).unwrap();
    limit(harness, Limits::new().running(1));
    assert_eq!(harness.lease(9, TIMEOUT).len(), 1);
    assert_eq!(pears.lease(9, TIMEOUT, pq_core::Wait::No).unwrap().len(), 2);
}

fn a_full_group_is_passed<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().running_per_group(1));
    for (data, group) in [(1, "a"), (2, "a"), (3, "b"), (4, "a"), (5, "b")] {
        harness.put_with(data, &in_group(group));
    }
    harness.put(6);
    harness.put_with(7, &in_group("a").priority(1));
    let jobs = harness.lease(9, TIMEOUT);
    assert_eq!(data(&jobs), [7, 3, 6]);
    assert!(harness.lease(9, TIMEOUT).is_empty());
    harness.put(8);
    assert_eq!(data(&harness.get_many(9)), [8]);
    harness.settle(&jobs[0], Outcome::Complete);
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [1]);
}

fn groups_can_have_limits_of_their_own<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().running_per_group(1).running_of("a", 3));
    for data in 0..5 {
        harness.put_with(data, &in_group("a"));
        harness.put_with(10 + data, &in_group("b"));
    }
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [0, 10, 1, 2]);
    limit(harness, Limits::new().running_of("a", 4));
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [11, 12, 3, 13, 14], "only group a is limited now");
}

fn the_jobs_of_a_group_run_in_the_order_of_the_queue<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().running_per_group(1));
    harness.put_with("last", &in_group("a").priority(-1));
    harness.put_with("third", &in_group("a"));
    harness.put_with("second", &in_group("a").expected_at("2001-01-01T00:00:00Z"));
    harness.put_with("due", &in_group("a").schedule_at("2001-01-01T00:00:00Z").priority(2));
    harness.put_with("not due", &in_group("a").schedule_at("1h").priority(3));
    harness.put_with("other", &PutOptions::new().priority(1));
    let mut order = Vec::new();
    loop {
        let jobs = harness.lease(1, TIMEOUT);
        let Some(job) = jobs.first() else { break };
        order.push(job.data.clone());
        harness.settle(job, Outcome::Complete);
    }
    assert_eq!(order, ["due", "other", "second", "third", "last"]);
}

fn the_limits_of_a_queue_and_of_its_groups_hold_together<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().running(3).running_per_group(2));
    for data in 0..4 {
        harness.put_with(data, &in_group("a"));
    }
    for data in 10..14 {
        harness.put_with(data, &in_group("b"));
    }
    let jobs = harness.lease(9, TIMEOUT);
    assert_eq!(data(&jobs), [0, 1, 10]);
    harness.settle(&jobs[2], Outcome::Complete);
    let eleven = harness.lease(9, TIMEOUT);
    assert_eq!(data(&eleven), [11]);
    harness.settle(&jobs[0], Outcome::Complete);
    harness.settle(&eleven[0], Outcome::Complete);
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [2, 12]);
}

/// A store must neither read all of them nor give up.
fn a_full_group_with_many_jobs_does_not_hide_others<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().running_per_group(1));
    for options in [in_group("a").priority(1), in_group("b").schedule_at("2001-01-01T00:00:00Z")] {
        harness.queue().put_many_with((0..3_000).map(|data| (json!(data), &options))).unwrap();
    }
    harness.put_with("other", &in_group("c"));
    // A take may return fewer jobs than are ready.
    let takes = std::iter::from_fn(|| Some(harness.lease(9, TIMEOUT)).filter(|jobs| !jobs.is_empty()));
    let jobs: Vec<_> = takes.flatten().collect();
    assert_eq!(data(&jobs), [json!(0), json!(0), json!("other")]);
}

fn a_paused_queue_keeps_its_limits<F: Fixture>(harness: &Harness<F>) {
    put_all(harness, 3);
    limit(harness, Limits::new().running(1));
    assert!(harness.queue().pause().unwrap());
    assert!(!harness.queue().pause().unwrap());
    assert!(harness.lease(9, TIMEOUT).is_empty());
    assert_eq!(harness.pq.paused_queues().unwrap().len(), 1);
    limit(harness, Limits::new().running(2));
    assert!(harness.lease(9, TIMEOUT).is_empty());
    assert!(harness.queue().resume().unwrap());
    assert!(!harness.queue().resume().unwrap());
    assert_eq!(harness.lease(9, TIMEOUT).len(), 2);
    assert!(harness.queue().pause().unwrap());
    limit(harness, Limits::new());
    assert!(harness.get().is_none(), "the pause remains");
    assert!(harness.queue().resume().unwrap());
    assert_eq!(harness.drain(), [3]);
}

fn a_key_whose_first_job_has_no_place_waits<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().running_per_group(1));
    harness.put_with(1, &in_group("a"));
    harness.put_with(2, &in_group("a").serialization_key("k"));
    harness.put_with(3, &in_group("b").serialization_key("k"));
    harness.put_with(4, &PutOptions::new().serialization_key("k"));
    let first = harness.lease(9, TIMEOUT);
    assert_eq!(data(&first), [1]);
    harness.settle(&first[0], Outcome::Complete);
    for expected in 2..=4 {
        let jobs = harness.lease(9, TIMEOUT);
        assert_eq!(data(&jobs), [expected]);
        harness.settle(&jobs[0], Outcome::Complete);
    }
}

fn keys_and_limits_hold_together<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().running(2));
    for (data, key) in [(1, "k"), (2, "k"), (3, "l"), (4, "k")] {
        harness.put_with(data, &PutOptions::new().serialization_key(key));
    }
    harness.put_with(
        5,
        &PutOptions::new().serialization_key("k").schedule_at("2001-01-01T00:00:00Z").priority(1),
    );
    harness.put(6);
    let jobs = harness.lease(9, TIMEOUT);
    assert_eq!(data(&jobs), [5, 3]);
    harness.settle(&jobs[1], Outcome::Complete);
    let sixth = harness.lease(9, TIMEOUT);
    assert_eq!(data(&sixth), [6], "the key of the others is in use");
    harness.settle(&jobs[0], Outcome::Complete);
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [1]);
    harness.settle(&sixth[0], Outcome::Complete);
    assert!(harness.get().is_none());
}

fn a_freed_place_wakes_a_waiter<F: Fixture>(harness: &Harness<F>) {
    put_all(harness, 2);
    limit(harness, Limits::new().running(1));
    let job = harness.lease_one();
    std::thread::scope(|threads| {
        let waiter = harness.blocked_waiter(threads);
        harness.settle(&job, Outcome::Complete);
        assert_eq!(waiter.recv_timeout(TIMEOUT / 4).unwrap(), Some(json!(2)));
    });
}

fn the_end_of_a_transaction_wakes_a_waiter<F: Fixture>(harness: &Harness<F>) {
    put_all(harness, 2);
    limit(harness, Limits::new().running(1));
    let queue = harness.queue();
    std::thread::scope(|threads| {
        let mut waiter = None;
        harness
            .transaction(|conn| {
                assert_eq!(data(&queue.on(conn).get_many(9)?), [1]);
                waiter = Some(harness.blocked_waiter(threads));
                Ok(())
            })
            .unwrap();
        assert_eq!(waiter.unwrap().recv_timeout(TIMEOUT / 4).unwrap(), Some(json!(2)));
    });
}

fn removing_the_limits_wakes_a_waiter<F: Fixture>(harness: &Harness<F>) {
    put_all(harness, 2);
    limit(harness, Limits::new().running(1));
    let _job = harness.lease_one();
    std::thread::scope(|threads| {
        let waiter = harness.blocked_waiter(threads);
        limit(harness, Limits::new());
        assert_eq!(waiter.recv_timeout(TIMEOUT / 4).unwrap(), Some(json!(2)));
    });
}

fn a_job_keeps_its_group<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().running_per_group(1));
    harness.put_with(1, &in_group("a").cost(7).tags(["t"]));
    for _ in 0..2 {
        let job = harness.lease_one();
        let noted = &job.annotations;
        assert_eq!((noted.group().as_deref(), noted.cost(), noted.tags().len()), (Some("a"), Some(7), 1));
        harness.put_with(2, &in_group("a"));
        assert!(harness.lease(9, TIMEOUT).is_empty());
        harness.clear();
        harness.settle(&job, Outcome::Retry { after: Duration::ZERO, error: "e".to_owned(), payload: None });
    }
    harness.settle(&harness.lease_one(), Outcome::Dead { error: "e".to_owned() });
    harness.queue().retry_all_dead().unwrap();
    assert_eq!(harness.lease_one().annotations.group().as_deref(), Some("a"));
}

fn an_invalid_group_or_cost_is_refused<F: Fixture>(harness: &Harness<F>) {
    let long = "x".repeat(1_025);
    for options in [in_group(""), in_group(&long), in_group("a\0"), PutOptions::new().cost(0)] {
        let error = harness.try_put(&json!(1), &options).unwrap_err();
        assert!(matches!(harness.fixture.core_error(&error), Some(Error::InvalidAnnotation(_))));
    }
    harness.put_with(1, &in_group(&long[1..]).cost(1_000_000));
    limit(harness, Limits::new().running_per_group(1));
    assert!(harness.get().is_some());
}
