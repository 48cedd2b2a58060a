//! The order of takes: priority, then `expected_at` (none last), then id.

use pq_core::{PutOptions, Queue, Wait};
use serde_json::{Value, json};

use super::cases;
use crate::Fixture;
use crate::harness::Harness;

cases![
    jobs_are_taken_in_the_order_of_their_ids: Both,
    a_higher_priority_is_taken_first: Both,
    an_earlier_expected_at_is_taken_first_and_none_last: Both,
    priority_precedes_expected_at_and_expected_at_precedes_id: Both,
    due_scheduled_jobs_follow_the_same_order: Both,
    a_due_job_of_lower_priority_is_taken_after_others: Both,
    a_batch_is_ordered_across_scheduled_and_plain_jobs: Both,
    many_due_jobs_are_in_order_among_many_future_jobs: Own,
    extreme_priorities_are_in_order: Both,
    a_returned_job_keeps_its_position: Both,
];

fn names<F: Fixture>(harness: &Harness<F>, jobs: &[(&str, PutOptions)]) -> Vec<Value> {
    for (name, options) in jobs {
        harness.put_with(*name, options);
    }
    harness.drain()
}

fn with() -> PutOptions {
    PutOptions::new()
}

fn jobs_are_taken_in_the_order_of_their_ids<F: Fixture>(harness: &Harness<F>) {
    assert_eq!(names(harness, &[("a", with()), ("b", with()), ("c", with())]), ["a", "b", "c"]);
}

fn a_higher_priority_is_taken_first<F: Fixture>(harness: &Harness<F>) {
    let jobs = [("low", with().priority(-1)), ("none", with()), ("high", with().priority(1))];
    assert_eq!(names(harness, &jobs), ["high", "none", "low"]);
}

fn an_earlier_expected_at_is_taken_first_and_none_last<F: Fixture>(harness: &Harness<F>) {
    let jobs = [("none", with()), ("later", with().expected_at("2h")), ("sooner", with().expected_at("1h"))];
    assert_eq!(names(harness, &jobs), ["sooner", "later", "none"]);
}

fn priority_precedes_expected_at_and_expected_at_precedes_id<F: Fixture>(harness: &Harness<F>) {
    let jobs = [
        ("e", with().priority(-1).expected_at("1s")),
        ("d", with()),
        ("c", with().expected_at("1h")),
        ("b", with().priority(1)),
        ("a", with().priority(1).expected_at("1d")),
    ];
    assert_eq!(names(harness, &jobs), ["a", "b", "c", "d", "e"]);
}

fn due_scheduled_jobs_follow_the_same_order<F: Fixture>(harness: &Harness<F>) {
    let past = || with().schedule_at(chrono::TimeDelta::seconds(-5));
    let jobs = [
        ("1", with()),
        ("2, due", past()),
        ("3", with()),
        ("first, due", past().priority(1)),
        ("second, due", past().expected_at("1h")),
    ];
    assert_eq!(names(harness, &jobs), ["first, due", "second, due", "1", "2, due", "3"]);
}

fn a_due_job_of_lower_priority_is_taken_after_others<F: Fixture>(harness: &Harness<F>) {
    let long_due = with().schedule_at("2001-01-01T00:00:00Z").priority(-1);
    assert_eq!(names(harness, &[("due", long_due), ("ready", with())]), ["ready", "due"]);
}

fn a_batch_is_ordered_across_scheduled_and_plain_jobs<F: Fixture>(harness: &Harness<F>) {
    for n in 0..30 {
        let options = if n % 3 == 0 { with().schedule_at("2001-01-01T00:00:00Z") } else { with() };
        harness.put_with(n, &options.priority(n % 5));
    }
    let mut expected: Vec<i32> = (0..30).collect();
    expected.sort_by_key(|n| (std::cmp::Reverse(n % 5), *n));
    let first: Vec<Value> = harness.get_many(7).into_iter().map(|job| job.data).collect();
    let rest: Vec<Value> = harness.get_many(100).into_iter().map(|job| job.data).collect();
    let got: Vec<Value> = first.into_iter().chain(rest).collect();
    assert_eq!(got, expected.into_iter().map(|n| json!(n)).collect::<Vec<_>>());
}

/// A store may use one plan for few due jobs and another for many. Both must return the same order.
fn many_due_jobs_are_in_order_among_many_future_jobs<F: Fixture>(harness: &Harness<F>) {
    const JOBS: i32 = 12_000;
    // In the second queue the future jobs sort first, and there are more of them than one index scan may visit.
    const LATER: usize = 12_000;
    for (name, of_later) in [("apples", None), ("pears", Some(9))] {
        let queue: Queue<_, i32> = harness.named(name);
        let jobs: Vec<(i32, PutOptions)> = (0..JOBS)
            .map(|n| {
                let options = with().priority(n % 5);
                (
                    n,
                    match n % 4 {
                        0 => options,
                        1 => options.schedule_at("1d").priority(of_later.unwrap_or(n % 5)),
                        2 => options.schedule_at("2001-01-01T00:00:00Z").expected_at("1h"),
                        _ => options.schedule_at("2002-01-01T00:00:00Z"),
                    },
                )
            })
            .collect();
        if let Some(priority) = of_later {
            let later = with().schedule_at("1d").priority(priority);
            queue.put_many_with(std::iter::repeat_n((&0, &later), LATER)).unwrap();
        }
        queue.put_many_with(jobs.iter().map(|(n, options)| (n, options))).unwrap();
        let mut expected: Vec<i32> = (0..JOBS).filter(|n| n % 4 != 1).collect();
        expected.sort_by_key(|n| (std::cmp::Reverse(n % 5), n % 4 != 2, *n));
        let mut got = Vec::new();
        for most in [1, 3, 700, 5_000, 1, JOBS as usize, 1] {
            got.extend(queue.get_many(most, Wait::No).unwrap().into_iter().map(|job| job.data));
        }
        assert_eq!(got.len(), expected.len());
        assert_eq!(got, expected);
    }
}

fn extreme_priorities_are_in_order<F: Fixture>(harness: &Harness<F>) {
    let jobs = [("least", with().priority(i32::MIN)), ("none", with()), ("most", with().priority(i32::MAX))];
    assert_eq!(names(harness, &jobs), ["most", "none", "least"]);
}

fn a_returned_job_keeps_its_position<F: Fixture>(harness: &Harness<F>) {
    harness.put(1);
    harness.put(2);
    let queue = harness.queue();
    let back = harness.transaction(|conn| {
        queue.on(conn).get()?;
        crate::harness::roll_back::<()>()
    });
    assert!(back.is_err());
    assert_eq!(harness.drain(), [json!(1), json!(2)]);
}
