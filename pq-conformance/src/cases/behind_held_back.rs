//! Jobs behind many others that limits or serialization keys hold back.

use std::time::Duration;

use pq_core::{Job, Limits, PutOptions};
use serde_json::{Value, json};

use super::cases;
use super::limits::{data, in_group, limit};
use crate::Fixture;
use crate::harness::{Harness, TIMEOUT};

cases![
    a_job_without_a_group_behind_a_full_group: Both,
    a_job_without_a_group_behind_full_groups_of_a_fair_queue: Both,
    a_job_without_a_group_behind_a_large_group_has_its_turn: Both,
    a_job_without_a_group_is_found_again_after_it_was_returned: Both,
    another_key_of_a_group_behind_a_key_in_use: Both,
    another_key_of_a_fair_group_behind_a_key_in_use: Both,
    a_keyed_job_without_a_group_behind_a_full_group: Both,
    many_priorities_whose_groups_are_full: Both,
    a_locked_job_without_a_group_hides_no_other_one: Own,
    a_job_that_lacks_tokens_behind_a_full_group_is_not_overtaken: Both,
    a_transaction_that_finds_no_job_holds_no_tokens: Own,
    a_due_job_behind_those_of_a_full_group: Both,
    a_due_job_behind_those_of_a_full_group_of_a_fair_queue: Both,
    a_due_job_behind_those_of_a_key_in_use: Both,
    a_due_job_behind_those_of_a_group_that_lacks_tokens: Both,
];

fn put_many<F: Fixture>(harness: &Harness<F>, jobs: u32, options: &PutOptions) {
    harness.queue().put_many_with((0..jobs).map(|data| (json!(data), options))).unwrap();
}

/// Leases until a take has no job, since a take may have fewer than are ready.
fn lease_all<F: Fixture>(harness: &Harness<F>, size: usize) -> Vec<Job<Value>> {
    let takes = std::iter::from_fn(|| Some(harness.lease(size, TIMEOUT)).filter(|jobs| !jobs.is_empty()));
    takes.flatten().collect()
}

fn a_job_without_a_group_behind_a_full_group<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().running_per_group(1));
    put_many(harness, 6_000, &in_group("a"));
    harness.put("first");
    harness.put_with("b", &in_group("b"));
    harness.put("second");
    let mut jobs = lease_all(harness, 9);
    // A store may find those of groups earlier.
    jobs.sort_by_key(|job| job.id);
    assert_eq!(data(&jobs), [json!(0), json!("first"), json!("b"), json!("second")]);
}

fn a_job_without_a_group_behind_full_groups_of_a_fair_queue<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().fair().running_per_group(1));
    for group in ["a", "b"] {
        put_many(harness, 3_000, &in_group(group));
    }
    harness.put("first");
    harness.put("second");
    let mut taken = data(&lease_all(harness, 9));
    taken.sort_by_key(Value::is_string);
    assert_eq!(taken, [json!(0), json!(0), json!("first"), json!("second")]);
}

fn a_job_without_a_group_behind_a_large_group_has_its_turn<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().fair());
    put_many(harness, 8_000, &in_group("large"));
    for _ in 0..10 {
        harness.put("small");
    }
    let first: Vec<_> = (0..8).flat_map(|_| harness.lease(20, TIMEOUT)).collect();
    assert_eq!(first.len(), 160);
    assert_eq!(data(&first).iter().filter(|data| **data == "small").count(), 10);
}

fn a_job_without_a_group_is_found_again_after_it_was_returned<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().running_per_group(1));
    put_many(harness, 3_000, &in_group("a"));
    harness.put("retried");
    put_many(harness, 3_000, &in_group("a"));
    harness.put("last");
    let jobs = lease_all(harness, 9);
    assert_eq!(data(&jobs), [json!(0), json!("retried"), json!("last")]);
    harness.settle(&jobs[1], pq_core::Outcome::GiveBack);
    // A store may look again only after some seconds.
    let again = harness.queue().lease(9, TIMEOUT, pq_core::Wait::For(Duration::from_secs(40))).unwrap();
    assert_eq!(data(&again), ["retried"]);
}

fn another_key_of_a_group<F: Fixture>(harness: &Harness<F>, limits: Limits) {
    limit(harness, limits);
    let keyed = |key| in_group("a").serialization_key(key);
    put_many(harness, 3_000, &keyed("k"));
    harness.put_with("l", &keyed("l"));
    harness.put_with("plain", &in_group("a"));
    harness.put_with("m", &keyed("m"));
    let mut jobs = lease_all(harness, 9);
    jobs.sort_by_key(|job| job.id);
    assert_eq!(data(&jobs), [json!(0), json!("l"), json!("plain"), json!("m")]);
    harness.settle(&jobs[0], pq_core::Outcome::Complete);
    assert_eq!(data(&lease_all(harness, 9)), [1]);
}

fn another_key_of_a_group_behind_a_key_in_use<F: Fixture>(harness: &Harness<F>) {
    another_key_of_a_group(harness, Limits::new().running_per_group(5));
}

fn another_key_of_a_fair_group_behind_a_key_in_use<F: Fixture>(harness: &Harness<F>) {
    another_key_of_a_group(harness, Limits::new().fair());
}

fn a_keyed_job_without_a_group_behind_a_full_group<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().running_per_group(1));
    put_many(harness, 3_000, &in_group("a").serialization_key("k"));
    harness.put_with("l", &PutOptions::new().serialization_key("l"));
    assert_eq!(data(&lease_all(harness, 9)), [json!(0), json!("l")]);
}

fn many_priorities_whose_groups_are_full<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().fair().running_per_group(1));
    let full: Vec<PutOptions> = (1..=200).map(|priority| in_group("a").priority(priority)).collect();
    harness.queue().put_many_with(full.iter().map(|options| (json!("a"), options))).unwrap();
    harness.put_with("first", &in_group("b"));
    harness.put_with("second", &in_group("c"));
    harness.put_with("third", &in_group("d"));
    let mut taken = Vec::new();
    for _ in 0..4 {
        let jobs = harness.queue().lease(1, TIMEOUT, pq_core::Wait::For(Duration::from_secs(10))).unwrap();
        taken.extend(data(&jobs));
    }
    assert_eq!(taken, ["a", "first", "second", "third"]);
    // What is put in front of them is found although takes have passed it.
    harness.put_with("urgent", &in_group("e").priority(500));
    let jobs = harness.queue().lease(1, TIMEOUT, pq_core::Wait::For(Duration::from_secs(10))).unwrap();
    assert_eq!(data(&jobs), ["urgent"]);
}

fn a_locked_job_without_a_group_hides_no_other_one<F: Fixture>(harness: &Harness<F>) {
    for (limits, before) in [(Limits::new().fair(), 0), (Limits::new().running_per_group(1), 601)] {
        limit(harness, limits);
        put_many(harness, before, &in_group("a"));
        assert_eq!(harness.lease(before.min(1) as usize, TIMEOUT).len(), before.min(1) as usize);
        for name in ["first", "second", "third"] {
            harness.put(name);
        }
        let queue = harness.queue();
        harness
            .nested(&mut harness.connect(), |conn| {
                let first = queue.on(conn).get()?.map(|job| job.data);
                assert_eq!(first, Some(json!("first")));
                for expected in ["second", "third"] {
                    assert_eq!(data(&harness.lease(1, TIMEOUT)), [expected]);
                }
                Ok(())
            })
            .unwrap();
        harness.queue().clear().unwrap();
    }
}

fn a_job_that_lacks_tokens_behind_a_full_group_is_not_overtaken<F: Fixture>(harness: &Harness<F>) {
    let hour = Duration::from_secs(3_600);
    limit(harness, Limits::new().running_per_group(1).rate(pq_core::Rate::new(1, hour).burst(5)));
    put_many(harness, 600, &in_group("a"));
    assert_eq!(data(&harness.lease(1, TIMEOUT)), [0]);
    harness.put_with("large", &PutOptions::new().cost(5));
    harness.put_with("small", &in_group("b"));
    for _ in 0..4 {
        assert_eq!(data(&harness.lease(1, TIMEOUT)), [] as [Value; 0]);
    }
}

fn a_transaction_that_finds_no_job_holds_no_tokens<F: Fixture>(harness: &Harness<F>) {
    let hour = Duration::from_secs(3_600);
    limit(harness, Limits::new().rate(pq_core::Rate::new(5, hour)));
    let queue = harness.queue();
    harness
        .nested(&mut harness.connect(), |conn| {
            assert!(queue.on(conn).get()?.is_none());
            harness.put("one");
            assert_eq!(data(&harness.lease(1, TIMEOUT)), ["one"]);
            Ok(())
        })
        .unwrap();
}

/// Returns options of a job that has been due since a day of 2001.
fn due_since(day: u32) -> PutOptions {
    PutOptions::new().schedule_at(format!("2001-01-{day:02}T00:00:00Z").as_str())
}

/// Puts thousands of due jobs of which one can run at a time, one more that fell due after them, and ready jobs
/// behind it. Takes jobs one by one, and asserts that the due one is soon among them although each take finds a job.
fn a_due_job_behind_others<F: Fixture>(harness: &Harness<F>, limits: Limits, held_back: &PutOptions) {
    limit(harness, limits);
    put_many(harness, 8_000, held_back);
    harness.put_with("due", &due_since(2).group("b"));
    put_many(harness, 200, &in_group("c"));
    let first = (0..200).map(|_| harness.lease_one().data).position(|data| data == "due");
    assert!(first.is_some(), "200 takes have not found the job");
}

fn a_due_job_behind_those_of_a_full_group<F: Fixture>(harness: &Harness<F>) {
    a_due_job_behind_others(harness, Limits::new().running_of("a", 1), &due_since(1).group("a"));
}

fn a_due_job_behind_those_of_a_full_group_of_a_fair_queue<F: Fixture>(harness: &Harness<F>) {
    a_due_job_behind_others(harness, Limits::new().fair().running_of("a", 1), &due_since(1).group("a"));
}

fn a_due_job_behind_those_of_a_key_in_use<F: Fixture>(harness: &Harness<F>) {
    a_due_job_behind_others(harness, Limits::new().running(1_000), &due_since(1).serialization_key("k"));
}

fn a_due_job_behind_those_of_a_group_that_lacks_tokens<F: Fixture>(harness: &Harness<F>) {
    let hourly = pq_core::Rate::new(1, Duration::from_secs(3_600)).burst(1);
    limit(harness, Limits::new().rate_of("a", hourly));
    put_many(harness, 8_000, &due_since(1).group("a"));
    harness.put_with("due", &due_since(2).group("b"));
    let taken: Vec<Value> = lease_all(harness, 1).into_iter().map(|job| job.data).collect();
    assert_eq!(taken, [json!(0), json!("due")]);
}
