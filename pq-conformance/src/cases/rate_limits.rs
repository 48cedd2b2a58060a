//! Limits of how many jobs are started in a period, for a queue and by group, and the costs of jobs.

use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use pq_core::store::{Connect, Jobs, TimeTravel};
use pq_core::{Limits, Outcome, PutOptions, Rate, Scan, Wait};

use super::cases;
use super::limits::{data, in_group, limit};
use crate::Fixture;
use crate::harness::{Error, Harness, TIMEOUT, roll_back};

cases![
    a_burst_of_jobs_is_started_and_then_no_more: Both,
    tokens_return_with_time: Both,
    a_rolled_back_take_takes_no_tokens: Both,
    a_job_takes_its_cost: Both,
    a_job_that_costs_more_than_the_burst_waits_for_a_full_bucket: Both,
    tokens_do_not_return_with_a_job: Both,
    an_open_transaction_holds_the_tokens: Both,
    a_group_without_tokens_is_passed: Both,
    a_job_of_a_full_group_waits_for_no_tokens: Both,
    only_the_second_of_two_groups_has_a_rate: Both,
    the_rates_of_a_queue_and_of_its_groups_hold_together: Both,
    the_jobs_that_wait_for_each_limit_are_counted: Own,
    due_tokens_end_a_wait: Own,
    a_take_that_finds_no_place_and_no_token_says_when_to_look_again: Own,
    a_rate_is_never_exceeded_in_any_window: Own,
];

const HOUR: Duration = Duration::from_secs(3_600);

fn hourly(tokens: u32, burst: u32) -> Rate {
    Rate::new(tokens, HOUR).burst(burst)
}

fn put_all<F: Fixture>(harness: &Harness<F>, count: u32, options: &PutOptions) {
    for data in 1..=count {
        harness.put_with(data, options);
    }
}

fn advance<F: Fixture>(harness: &Harness<F>, time: Duration) {
    let store = harness.pq.store();
    let advanced: Result<(), Error<F>> = store.with_connection(|conn| store.advance(conn, time));
    advanced.unwrap();
}

fn a_take_that_finds_no_place_and_no_token_says_when_to_look_again<F: Fixture>(harness: &Harness<F>) {
    let (queue, store) = (harness.queue(), harness.pq.store());
    let next_due = || {
        let taken: Result<_, Error<F>> =
            store.with_connection(|conn| store.take(conn, queue.name(), 1, Scan::Full));
        let taken = taken.unwrap();
        assert!(taken.jobs.is_empty());
        taken.next_due
    };
    // A notification announces a job or a place.
    limit(harness, Limits::new().running(1).rate(hourly(10, 2)));
    assert_eq!(next_due(), None, "the queue is empty");
    put_all(harness, 3, &PutOptions::new());
    let job = harness.lease_one();
    assert_eq!(next_due(), None, "the queue is full");
    harness.settle(&job, Outcome::Complete);
    let job = harness.lease_one();
    harness.settle(&job, Outcome::Complete);
    let due = next_due().unwrap();
    assert!((HOUR / 12..=HOUR / 10).contains(&due), "the next token is due in {due:?}");
}

fn a_burst_of_jobs_is_started_and_then_no_more<F: Fixture>(harness: &Harness<F>) {
    put_all(harness, 5, &PutOptions::new());
    limit(harness, Limits::new().rate(hourly(10, 3)));
    let jobs = harness.lease(2, TIMEOUT);
    assert_eq!(data(&jobs), [1, 2]);
    assert_eq!(data(&harness.get_many(9)), [3]);
    // A job that ends gives no token back.
    harness.settle(&jobs[0], Outcome::Complete);
    assert!(harness.lease(9, TIMEOUT).is_empty());
    assert!(harness.get().is_none());
}

fn tokens_return_with_time<F: Fixture>(harness: &Harness<F>) {
    put_all(harness, 9, &PutOptions::new());
    limit(harness, Limits::new().rate(hourly(60, 3)));
    assert_eq!(harness.get_many(9).len(), 3);
    advance(harness, Duration::from_secs(119));
    assert_eq!(harness.get_many(9).len(), 1);
    advance(harness, Duration::from_secs(59));
    assert_eq!(harness.get_many(9).len(), 1, "nothing that was gained is lost");
    // The bucket holds no more than its burst.
    advance(harness, HOUR);
    assert_eq!(harness.get_many(9).len(), 3);
    advance(harness, Duration::from_secs(61));
    assert_eq!(harness.get_many(9).len(), 1);
}

fn a_rolled_back_take_takes_no_tokens<F: Fixture>(harness: &Harness<F>) {
    put_all(harness, 3, &PutOptions::new());
    limit(harness, Limits::new().rate(hourly(1, 2)).rate_per_group(hourly(1, 2)));
    let queue = harness.queue();
    for _ in 0..2 {
        let rolled_back = harness.transaction(|conn| {
            assert_eq!(data(&queue.on(conn).get_many(9)?), [1, 2]);
            assert!(queue.on(conn).get()?.is_none());
            roll_back::<()>()
        });
        assert!(rolled_back.is_err());
    }
    assert_eq!(harness.get_many(9).len(), 2);
}

fn a_job_takes_its_cost<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().rate(hourly(60, 10)));
    for (data, cost) in [(1, 4), (2, 4), (3, 4), (4, 1)] {
        harness.put_with(data, &PutOptions::new().cost(cost));
    }
    // Two tokens are left. The last job does not overtake the third.
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [1, 2]);
    assert!(harness.lease(9, TIMEOUT).is_empty());
    advance(harness, Duration::from_secs(121));
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [3]);
    advance(harness, Duration::from_secs(60));
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [4]);
}

fn a_job_that_costs_more_than_the_burst_waits_for_a_full_bucket<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().rate(hourly(60, 10)));
    harness.put_with(1, &PutOptions::new().cost(1));
    harness.put_with(2, &PutOptions::new().cost(30));
    harness.put_with(3, &PutOptions::new().cost(1));
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [1]);
    advance(harness, Duration::from_secs(61));
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [2]);
    // The bucket owes twenty tokens.
    advance(harness, Duration::from_secs(20 * 60));
    assert!(harness.lease(9, TIMEOUT).is_empty());
    advance(harness, Duration::from_secs(61));
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [3]);
}

fn tokens_do_not_return_with_a_job<F: Fixture>(harness: &Harness<F>) {
    put_all(harness, 1, &PutOptions::new());
    limit(harness, Limits::new().rate(hourly(1, 3)));
    harness.settle(&harness.lease_one(), Outcome::GiveBack);
    harness.lose_lease(&harness.lease_one());
    harness.settle(&harness.lease_one(), Outcome::GiveBack);
    assert!(harness.get().is_none());
}

fn an_open_transaction_holds_the_tokens<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().rate_per_group(hourly(1, 2)));
    put_all(harness, 2, &in_group("a"));
    harness.put_with(3, &in_group("b"));
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            assert_eq!(data(&queue.on(conn).get_many(1)?), [1]);
            // Others pass the group, and do not wait for it.
            assert_eq!(data(&queue.on(&mut harness.connect()).lease(9, TIMEOUT)?), [3]);
            Ok(())
        })
        .unwrap();
    assert_eq!(data(&harness.get_many(9)), [2]);
}

fn a_group_without_tokens_is_passed<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().rate_per_group(hourly(60, 1)).rate_of("b", hourly(60, 2)));
    for (data, group) in [(1, "a"), (2, "a"), (3, "b"), (4, "b"), (5, "b")] {
        harness.put_with(data, &in_group(group));
    }
    harness.put(6);
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [1, 3, 4, 6]);
    assert!(harness.lease(9, TIMEOUT).is_empty());
    advance(harness, Duration::from_secs(61));
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [2, 5]);
}

fn a_job_of_a_full_group_waits_for_no_tokens<F: Fixture>(harness: &Harness<F>) {
    let full = Limits::new().running_of("a", 1);
    for limits in [
        full.clone().rate(hourly(1, 5)),
        full.rate(hourly(1, 5)).rate_of("a", hourly(1, 1)),
        Limits::new().rate(hourly(1, 5)).rate_of("a", hourly(1, 1)),
    ] {
        limit(harness, limits);
        harness.put_with("first", &in_group("a"));
        harness.put_with("held back", &in_group("a").cost(5));
        harness.put_with("other", &in_group("b"));
        let jobs = harness.lease(9, TIMEOUT);
        assert_eq!(data(&jobs), ["first", "other"]);
        harness.put_with("last", &in_group("b"));
        assert_eq!(data(&harness.lease(9, TIMEOUT)), ["last"]);
        harness.settle(&jobs[0], Outcome::Complete);
        harness.clear();
        advance(harness, 10 * HOUR);
    }
}

fn only_the_second_of_two_groups_has_a_rate<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().running_of("a", 9).rate_of("b", hourly(1, 2)));
    for (data, group) in [(1, "a"), (2, "b"), (3, "b"), (4, "b"), (5, "c")] {
        harness.put_with(data, &in_group(group));
    }
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [1, 2, 3, 5]);
    assert!(harness.lease(9, TIMEOUT).is_empty());
}

fn the_rates_of_a_queue_and_of_its_groups_hold_together<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().rate(hourly(1, 3)).rate_per_group(hourly(1, 2)).running_per_group(1));
    for (data, group) in [(1, "a"), (2, "a"), (3, "b"), (4, "a"), (5, "c"), (6, "d")] {
        harness.put_with(data, &in_group(group));
    }
    let jobs = harness.lease(2, TIMEOUT);
    assert_eq!(data(&jobs), [1, 3], "one of a group runs");
    harness.settle(&jobs[0], Outcome::Complete);
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [2]);
    assert!(harness.lease(9, TIMEOUT).is_empty(), "the queue has no tokens left");
}

fn the_jobs_that_wait_for_each_limit_are_counted<F: Fixture>(harness: &Harness<F>) {
    let limited = || harness.pq.limited().unwrap();
    assert_eq!(limited(), []);
    harness.put(1);
    harness.put_with(2, &PutOptions::new().schedule_at(HOUR));
    put_all(harness, 3, &in_group("a"));
    put_all(harness, 2, &in_group("b").cost(3).serialization_key("k"));
    let limits = Limits::new().running_per_group(1).rate_of("b", hourly(60, 5)).running_of("c", 7);
    limit(harness, limits.clone().running(5).rate(hourly(60, 20)));
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [1, 1, 1]);
    let found = limited().pop().unwrap();
    let names = found.groups.iter().map(|group| group.group.as_deref()).collect::<Vec<_>>();
    assert_eq!((found.queue.as_str(), found.used.running), (harness.queue().name().as_str(), 3));
    assert_eq!(names, [None, Some("a"), Some("b"), Some("c")]);
    let use_of =
        |at: usize| (found.groups[at].due, found.groups[at].least_cost, found.groups[at].used.running);
    assert_eq!([0, 1, 2, 3].map(use_of), [(0, 1, 1), (2, 1, 1), (1, 3, 1), (0, 1, 0)]);
    let tokens = |tokens: Option<f64>| tokens.unwrap().floor();
    assert_eq!((tokens(found.tokens()), tokens(found.tokens_of(&found.groups[2]))), (15.0, 2.0));
    let held = || limited().pop().unwrap().held_back().map(|(_, jobs)| jobs);
    assert_eq!(held(), [0, 0, 3, 0]);
    limit(harness, limits.clone().running_of("b", 9).rate(hourly(60, 20)));
    assert_eq!(held(), [0, 0, 2, 1]);
    limit(harness, limits.running(3));
    assert_eq!(held(), [3, 0, 0, 0]);
    limit(harness, Limits::new());
    assert_eq!(limited(), []);
}

fn due_tokens_end_a_wait<F: Fixture>(harness: &Harness<F>) {
    put_all(harness, 6, &PutOptions::new());
    limit(harness, Limits::new().rate(Rate::new(20, Duration::from_secs(1)).burst(1)));
    let begun = Instant::now();
    for expected in 1..=6 {
        let job = harness.queue().get(Wait::For(TIMEOUT)).unwrap().unwrap();
        assert_eq!(job.data, expected);
    }
    // Five tokens had to be gained. A poll interval is much longer.
    let took = begun.elapsed();
    assert!((Duration::from_millis(249)..TIMEOUT / 8).contains(&took), "{took:?}");
}

/// The tokens of a job are taken at some instant of the call that returns the job. So a window that contains calls
/// contains those instants, too.
fn a_rate_is_never_exceeded_in_any_window<F: Fixture>(harness: &Harness<F>) {
    const THREADS: usize = 4;
    const JOBS: usize = 60;
    let (per_second, burst) = (100, 5);
    for data in 0..JOBS as u32 {
        harness.put_with(data, &in_group(if data % 2 == 0 { "a" } else { "b" }).cost(1 + data % 3));
    }
    let rate = Rate::new(per_second, Duration::from_secs(1)).burst(burst);
    limit(harness, Limits::new().rate(rate).rate_per_group(rate));
    let (start, calls) = (Barrier::new(THREADS), Mutex::new(Vec::new()));
    std::thread::scope(|threads| {
        for _ in 0..THREADS {
            threads.spawn(|| {
                start.wait();
                loop {
                    let begun = Instant::now();
                    let jobs =
                        harness.queue().lease(3, TIMEOUT, Wait::For(Duration::from_millis(5))).unwrap();
                    let ended = Instant::now();
                    let mut calls = calls.lock().unwrap();
                    calls.extend(jobs.iter().map(|job| (begun, ended, job.annotations.cost().unwrap())));
                    if calls.len() == JOBS {
                        break;
                    }
                }
            });
        }
    });
    let calls = calls.into_inner().unwrap();
    for (from, _, _) in &calls {
        for (_, until, _) in &calls {
            let is_inside = |begun: &Instant, ended: &Instant| begun >= from && ended <= until;
            let calls = calls.iter().filter(|(begun, ended, _)| is_inside(begun, ended));
            let taken: u32 = calls.map(|(_, _, cost)| cost).sum();
            let seconds = until.saturating_duration_since(*from).as_secs_f64();
            // The two clocks may differ by some microseconds.
            let allowed = f64::from(burst) + f64::from(per_second) * seconds + 0.1;
            assert!(f64::from(taken) <= allowed, "{taken} tokens in {seconds} s");
        }
    }
}
