//! Turns of the groups of fair queues.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use pq_core::{Limits, Outcome, PutOptions, Rate, Reason, Wait, Worker};
use serde_json::{Value, json};

use super::cases;
use super::limits::{data, in_group, limit};
use crate::Fixture;
use crate::harness::{Harness, TIMEOUT, roll_back};

cases![
    the_groups_take_turns: Both,
    a_batch_is_taken_in_turns: Both,
    turns_go_on_in_the_next_take: Both,
    a_rolled_back_take_has_had_no_turn: Both,
    a_turn_has_as_many_jobs_as_the_weight: Both,
    a_weight_holds_across_takes: Both,
    a_higher_priority_goes_first: Both,
    each_priority_has_turns_of_its_own: Both,
    the_order_within_a_group_stays: Both,
    scheduled_jobs_join_the_turns_when_they_are_due: Both,
    a_group_without_jobs_has_no_turn: Both,
    a_large_group_does_not_delay_a_small_one: Both,
    a_full_group_loses_its_turn: Both,
    a_group_without_tokens_loses_its_turn: Both,
    the_limits_of_a_fair_queue_hold: Both,
    keys_hold_in_a_fair_queue: Both,
    many_groups_have_a_turn_each: Both,
    a_queue_that_is_not_fair_any_more_is_in_order: Own,
    fairness_is_read_and_invalid_weights_are_refused: Own,
    a_job_that_awaits_its_turn_is_explained: Own,
    workers_of_a_fair_queue_do_each_job_once: Own,
    concurrent_takes_of_a_fair_queue_leave_nothing: Own,
];

fn put<F: Fixture>(harness: &Harness<F>, group: &str, data: impl IntoIterator<Item = u32>) {
    let options = if group.is_empty() { PutOptions::new() } else { in_group(group) };
    for data in data {
        harness.put_with(data, &options);
    }
}

/// Leases the jobs one by one.
fn one_by_one<F: Fixture>(harness: &Harness<F>) -> Vec<Value> {
    std::iter::from_fn(|| harness.lease(1, TIMEOUT).pop()).map(|job| job.data).collect()
}

/// Leases the jobs in batches of this size.
fn in_batches<F: Fixture>(harness: &Harness<F>, size: usize) -> Vec<Value> {
    let batches = std::iter::from_fn(|| Some(harness.lease(size, TIMEOUT)).filter(|jobs| !jobs.is_empty()));
    batches.flatten().map(|job| job.data).collect()
}

fn the_groups_take_turns<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().fair());
    put(harness, "a", 1..=4);
    put(harness, "b", 11..=12);
    put(harness, "c", [21]);
    put(harness, "", [31, 32]);
    assert_eq!(one_by_one(harness), [31, 1, 11, 21, 32, 2, 12, 3, 4]);
}

fn a_batch_is_taken_in_turns<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().fair());
    put(harness, "a", 1..=4);
    put(harness, "b", 11..=12);
    put(harness, "c", [21]);
    put(harness, "", [31, 32]);
    assert_eq!(data(&harness.lease(3, TIMEOUT)), [31, 1, 11]);
    assert_eq!(in_batches(harness, 99), [21, 32, 2, 12, 3, 4]);
}

fn turns_go_on_in_the_next_take<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().fair());
    for group in ["a", "b", "c"] {
        put(harness, group, 1..=4);
    }
    let groups = |count| -> Vec<String> {
        let jobs = harness.lease(count, TIMEOUT);
        jobs.iter().filter_map(|job| job.annotations.group()).collect()
    };
    assert_eq!(groups(2), ["a", "b"]);
    assert_eq!(groups(2), ["c", "a"]);
    assert_eq!(groups(1), ["b"]);
    assert_eq!(groups(5), ["c", "a", "b", "c", "a"]);
    assert_eq!(groups(9), ["b", "c"]);
}

fn a_rolled_back_take_has_had_no_turn<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().fair());
    put(harness, "a", 1..=2);
    put(harness, "b", [11]);
    let queue = harness.queue();
    let rolled_back = harness.transaction(|conn| {
        assert_eq!(data(&queue.on(conn).get_many(1)?), [1]);
        roll_back::<()>()
    });
    assert!(rolled_back.is_err());
    assert_eq!(one_by_one(harness), [1, 11, 2]);
}

fn a_turn_has_as_many_jobs_as_the_weight<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().fair().weight_of("b", 3));
    put(harness, "a", 1..=4);
    put(harness, "b", 11..=15);
    put(harness, "c", 21..=22);
    assert_eq!(in_batches(harness, 99), [1, 11, 12, 13, 21, 2, 14, 15, 22, 3, 4]);
}

fn a_weight_holds_across_takes<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().fair().weight_of("b", 3));
    put(harness, "a", 1..=4);
    put(harness, "b", 11..=15);
    put(harness, "c", 21..=22);
    assert_eq!(data(&harness.lease(3, TIMEOUT)), [1, 11, 12]);
    assert_eq!(one_by_one(harness), [13, 21, 2, 14, 15, 22, 3, 4]);
}

fn a_higher_priority_goes_first<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().fair());
    put(harness, "a", 1..=2);
    for data in [3, 4, 5] {
        harness.put_with(data, &in_group("b").priority(1));
    }
    harness.put_with(6, &in_group("a").priority(1));
    harness.put_with(7, &in_group("b").priority(-1));
    harness.put_with(8, &PutOptions::new().priority(-1));
    harness.put_with(9, &PutOptions::new().priority(2));
    assert_eq!(in_batches(harness, 99), [9, 6, 3, 4, 5, 1, 2, 8, 7]);
}

/// Otherwise a group could have its turns only right behind one of another priority.
fn each_priority_has_turns_of_its_own<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().fair());
    for group in ["a", "b", "c"] {
        put(harness, group, 1..=3);
    }
    let mut groups = Vec::new();
    for _ in 0..6 {
        harness.put_with("urgent", &in_group("a").priority(1));
        assert_eq!(harness.lease_one().data, "urgent");
        groups.extend(harness.lease_one().annotations.group());
    }
    assert_eq!(groups, ["a", "b", "c", "a", "b", "c"]);
}

fn the_order_within_a_group_stays<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().fair());
    put(harness, "a", [2, 3]);
    harness.put_with(1, &in_group("a").expected_at("2001-01-01T00:00:00Z"));
    put(harness, "b", [12]);
    harness.put_with(11, &in_group("b").expected_at("2001-01-01T00:00:00Z"));
    assert_eq!(in_batches(harness, 3), [1, 11, 2, 12, 3]);
}

fn scheduled_jobs_join_the_turns_when_they_are_due<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().fair());
    put(harness, "a", [2, 3]);
    let due = |group| in_group(group).schedule_at("2001-01-01T00:00:00Z");
    harness.put_with(4, &due("a"));
    harness.put_with(1, &due("a").expected_at("2001-01-01T00:00:00Z"));
    harness.put_with(11, &due("b"));
    harness.put_with(12, &in_group("b").schedule_at("1h"));
    harness.put_with(31, &PutOptions::new().schedule_at("2001-01-01T00:00:00Z"));
    assert_eq!(in_batches(harness, 2), [31, 1, 11, 2, 3, 4]);
}

fn a_group_without_jobs_has_no_turn<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().fair().weight_of("a", 2));
    put(harness, "b", 1..=3);
    assert_eq!(one_by_one(harness), [1, 2, 3]);
    // A group does not save up the turns in which it had no job.
    put(harness, "a", 11..=16);
    put(harness, "b", 4..=6);
    assert_eq!(one_by_one(harness), [11, 12, 4, 13, 14, 5, 15, 16, 6]);
}

fn a_large_group_does_not_delay_a_small_one<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().fair());
    let large = in_group("large");
    harness.queue().put_many_with((0..3_000).map(|data| (json!(data), &large))).unwrap();
    put(harness, "small", 10_000..10_010);
    let first = data(&harness.lease(20, TIMEOUT));
    let small = first.iter().filter(|data| data.as_u64().is_some_and(|data| data >= 10_000));
    assert_eq!(small.count(), 10, "{first:?}");
    let rest = in_batches(harness, 500);
    assert_eq!(rest.len(), 2_990);
    assert!(rest.is_sorted_by_key(|data| data.as_u64()), "the order within the group stays");
}

fn a_full_group_loses_its_turn<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().fair().running_per_group(2).running_of("c", 1));
    put(harness, "a", 1..=4);
    put(harness, "b", 11..=14);
    put(harness, "c", 21..=24);
    put(harness, "", 31..=33);
    let jobs = harness.lease(99, TIMEOUT);
    assert_eq!(data(&jobs), [31, 1, 11, 21, 32, 2, 12, 33]);
    assert!(harness.lease(9, TIMEOUT).is_empty());
    harness.settle(&jobs[2], Outcome::Complete);
    harness.settle(&jobs[3], Outcome::Complete);
    assert_eq!(one_by_one(harness), [13, 22]);
}

fn a_group_without_tokens_loses_its_turn<F: Fixture>(harness: &Harness<F>) {
    let hourly = Rate::new(1, Duration::from_secs(3_600)).burst(2);
    limit(harness, Limits::new().fair().rate_of("a", hourly));
    put(harness, "a", 1..=4);
    put(harness, "b", 11..=14);
    assert_eq!(in_batches(harness, 99), [1, 11, 2, 12, 13, 14]);
}

fn the_limits_of_a_fair_queue_hold<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().fair().running(3));
    put(harness, "a", 1..=4);
    put(harness, "b", 11..=14);
    let jobs = harness.lease(99, TIMEOUT);
    assert_eq!(data(&jobs), [1, 11, 2]);
    assert!(harness.lease(9, TIMEOUT).is_empty());
    harness.settle(&jobs[0], Outcome::Complete);
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [12]);
    assert!(harness.queue().pause().unwrap());
    harness.settle(&jobs[1], Outcome::Complete);
    assert!(harness.lease(9, TIMEOUT).is_empty());
    assert!(harness.queue().resume().unwrap());
    assert_eq!(data(&harness.lease(9, TIMEOUT)), [3]);
}

fn keys_hold_in_a_fair_queue<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().fair());
    let with_key = |group| in_group(group).serialization_key("k");
    harness.put_with(1, &with_key("a"));
    harness.put_with(2, &with_key("a"));
    put(harness, "a", [3]);
    harness.put_with(11, &with_key("b"));
    put(harness, "b", [12]);
    let jobs = harness.lease(99, TIMEOUT);
    assert_eq!(data(&jobs), [1, 12, 3]);
    harness.settle(&jobs[0], Outcome::Complete);
    let second = harness.lease(99, TIMEOUT);
    assert_eq!(data(&second), [2]);
    harness.settle(&second[0], Outcome::Complete);
    assert_eq!(in_batches(harness, 99), [11]);
}

fn many_groups_have_a_turn_each<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().fair());
    let groups: Vec<PutOptions> = (0..300).map(|group| in_group(&format!("tenant {group}"))).collect();
    harness.queue().put_many_with((0..900).map(|data| (json!(data), &groups[data / 3]))).unwrap();
    for round in 0..3 {
        let mut turns = BTreeMap::<Option<String>, u32>::new();
        for _ in 0..30 {
            for job in harness.lease(10, TIMEOUT) {
                assert_eq!(job.data.as_u64().map(|data| data % 3), Some(round));
                *turns.entry(job.annotations.group()).or_default() += 1;
            }
        }
        assert_eq!((turns.len(), turns.values().max()), (300, Some(&1)), "round {round}");
    }
}

fn a_queue_that_is_not_fair_any_more_is_in_order<F: Fixture>(harness: &Harness<F>) {
    put(harness, "a", 1..=4);
    put(harness, "b", 11..=14);
    limit(harness, Limits::new().fair());
    assert_eq!(data(&harness.lease(4, TIMEOUT)), [1, 11, 2, 12]);
    limit(harness, Limits::new());
    assert_eq!(data(&harness.lease(3, TIMEOUT)), [3, 4, 13]);
}

fn fairness_is_read_and_invalid_weights_are_refused<F: Fixture>(harness: &Harness<F>) {
    let fair = Limits::new().fair().weight_of("a", 7).running(2);
    limit(harness, fair.clone());
    assert_eq!(harness.queue().limits().unwrap(), fair);
    for invalid in [
        Limits::new().weight_of("a", 2),
        Limits::new().fair().weight_of("a", 0),
        Limits::new().fair().weight_of("a", Limits::MAX_WEIGHT + 1),
    ] {
        assert!(harness.queue().set_limits(&invalid).is_err(), "{invalid:?}");
    }
    assert_eq!(harness.queue().limits().unwrap(), fair);
}

fn a_job_that_awaits_its_turn_is_explained<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().fair());
    put(harness, "a", 1..=4);
    let second = harness.put_with(11, &in_group("b"));
    let third = harness.put_with(12, &in_group("b"));
    for (id, expected) in [(second, 0), (third, 1)] {
        let reasons = harness.pq.explain(id).unwrap();
        let turn = Reason::AwaitsTurn { group: Some("b".to_owned()), jobs: expected };
        assert!(reasons.contains(&turn), "{reasons:?}");
    }
}

fn workers_of_a_fair_queue_do_each_job_once<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().fair().weight_of("c", 2));
    for (position, group) in ["a", "b", "c", ""].into_iter().enumerate() {
        let first = 100 * position as u32;
        put(harness, group, first..first + 50);
    }
    let done = std::sync::Arc::new(Mutex::new(Vec::new()));
    let seen = std::sync::Arc::clone(&done);
    let handler = harness.queue().transactional(move |_, job| {
        seen.lock().unwrap().push(job.data.as_u64());
        Ok::<_, std::convert::Infallible>(())
    });
    let report = Worker::new(&harness.pq).serve(handler).threads(3).run_until_empty().unwrap();
    assert_eq!(report.done, 200);
    let mut done = done.lock().unwrap().clone();
    done.sort_unstable();
    let expected: Vec<_> =
        (0..4).flat_map(|group| (0..50).map(move |data| Some(100 * group + data))).collect();
    assert_eq!(done, expected);
}

fn concurrent_takes_of_a_fair_queue_leave_nothing<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().fair());
    put(harness, "a", 0..120);
    put(harness, "b", 200..220);
    put(harness, "", 300..310);
    let taken = Mutex::new(Vec::new());
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                loop {
                    let jobs = harness.queue().get_many(3, Wait::For(Duration::from_millis(200))).unwrap();
                    if jobs.is_empty() {
                        break;
                    }
                    taken.lock().unwrap().extend(jobs.iter().filter_map(|job| job.data.as_u64()));
                }
            });
        }
    });
    let mut taken = taken.into_inner().unwrap();
    taken.sort_unstable();
    let expected: Vec<u64> = (0..120).chain(200..220).chain(300..310).collect();
    assert_eq!(taken, expected);
}
