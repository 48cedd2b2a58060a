//! Section 12: periodic jobs.

use std::sync::Barrier;

use chrono::{DateTime, Duration, Utc};
use serde_json::{Value, json};

use super::cases;
use crate::Fixture;
use crate::harness::{Harness, undo};

use pq_core::store::{Connect, Schedules};
use pq_core::{Cron, CronEntry, Retention, Task};

cases![
    a_tick_puts_one_job_whoever_is_there,
    a_tick_is_the_time_by_which_its_job_is_wanted,
    a_tick_that_somebody_fires_is_nobody_elses,
    a_periodic_job_is_fired_once_a_tick,
    a_tick_whose_put_is_rolled_back_is_fired_again,
    missed_ticks_are_not_made_up_for_unless_said,
    one_job_makes_up_for_all_missed_ticks_where_that_is_said,
    a_periodic_job_takes_the_place_of_the_one_of_its_name,
    a_periodic_job_that_is_paused_does_not_fire,
    a_periodic_job_that_is_removed_does_not_fire,
    a_periodic_job_that_cannot_be_read_does_not_keep_others_from_firing,
    a_periodic_job_can_call_a_task,
    what_cannot_be_a_periodic_job_is_refused,
];

/// A periodic job that is due once a year, so that only the ticks that a case sets are ever due.
fn yearly<F: Fixture>(harness: &Harness<F>, name: &str) -> Cron {
    let soon = now(harness) + Duration::days(180);
    harness
        .queue()
        .cron(name, &format!("0 0 1 {} *", soon.format("%-m")), &json!({ "b": 1, "a": 2 }))
        .unwrap()
}

fn now<F: Fixture>(harness: &Harness<F>) -> DateTime<Utc> {
    let store = harness.pq.store();
    store.now(&mut harness.connect()).unwrap()
}

/// Sets a periodic job whose next tick was so long ago.
fn due<F: Fixture>(harness: &Harness<F>, cron: &Cron, ago: Duration) -> DateTime<Utc> {
    // PostgreSQL keeps microseconds.
    let tick = DateTime::from_timestamp_micros((now(harness) - ago).timestamp_micros()).unwrap();
    harness.pq.store().set_cron(&mut harness.connect(), cron, Some(tick)).unwrap();
    tick
}

fn maintain<F: Fixture>(harness: &Harness<F>) {
    harness.pq.maintain(&Retention::default()).unwrap();
}

fn entry<F: Fixture>(harness: &Harness<F>, name: &str) -> Option<CronEntry> {
    harness.pq.crons().unwrap().into_iter().find(|entry| entry.cron.name == name)
}

fn a_tick_puts_one_job_whoever_is_there<F: Fixture>(harness: &Harness<F>) {
    let cron = yearly(harness, "bills");
    due(harness, &cron, Duration::milliseconds(1));
    let barrier = Barrier::new(8);
    std::thread::scope(|threads| {
        for _ in 0..8 {
            threads.spawn(|| {
                barrier.wait();
                maintain(harness);
            });
        }
    });
    assert_eq!(harness.drain(), [json!({ "b": 1, "a": 2 })]);
}

fn a_tick_that_somebody_fires_is_nobody_elses<F: Fixture>(harness: &Harness<F>) {
    due(harness, &yearly(harness, "bills"), Duration::milliseconds(1));
    let store = harness.pq.store();
    let due_to = |conn: &mut crate::harness::Conn<F>| {
        harness.nested(conn, |conn| Ok(store.due_crons(conn)?.len())).unwrap()
    };
    let done = harness.transaction(|conn| {
        assert_eq!(store.due_crons(conn)?.len(), 1);
        assert_eq!(due_to(&mut harness.connect()), 0, "others pass it by, and do not wait");
        undo::<()>()
    });
    assert!(done.is_err());
    assert_eq!(due_to(&mut harness.connect()), 1);
}

fn a_tick_is_the_time_by_which_its_job_is_wanted<F: Fixture>(harness: &Harness<F>) {
    let cron = yearly(harness, "bills").priority(3);
    let tick = due(harness, &cron, Duration::seconds(1));
    maintain(harness);
    let job = harness.get().unwrap();
    assert_eq!((job.expected_at, job.priority), (Some(tick), 3));
    assert_eq!(entry(harness, "bills").unwrap().last_at, Some(tick));
}

fn a_periodic_job_is_fired_once_a_tick<F: Fixture>(harness: &Harness<F>) {
    let each_second = harness.queue().cron("tick", "* * * * * *", &json!(1)).unwrap();
    let tick = due(harness, &each_second, Duration::seconds(5));
    maintain(harness);
    let next = entry(harness, "tick").unwrap().next_at.unwrap();
    let jobs = harness.get_many(100);
    let mut ticks: Vec<DateTime<Utc>> = jobs.iter().filter_map(|job| job.expected_at).collect();
    ticks.dedup();
    assert_eq!((ticks.first(), ticks.len()), (Some(&tick), jobs.len()));
    assert!((5..=8).contains(&jobs.len()), "{ticks:?}");
    assert!(next > *ticks.last().unwrap());
}

fn a_tick_whose_put_is_rolled_back_is_fired_again<F: Fixture>(harness: &Harness<F>) {
    let cron = yearly(harness, "bills");
    due(harness, &cron, Duration::milliseconds(1));
    let store = harness.pq.store();
    let done = harness.transaction(|conn| {
        assert_eq!(pq_core::fire_due_crons(store, conn)?, 1);
        undo::<()>()
    });
    assert!(done.is_err());
    assert!(harness.get().is_none());
    maintain(harness);
    assert_eq!(harness.drain().len(), 1);
}

fn missed_ticks_are_not_made_up_for_unless_said<F: Fixture>(harness: &Harness<F>) {
    due(harness, &yearly(harness, "bills"), Duration::minutes(2));
    maintain(harness);
    assert!(harness.get().is_none());
    assert!(entry(harness, "bills").unwrap().next_at.unwrap() > now(harness));
}

fn one_job_makes_up_for_all_missed_ticks_where_that_is_said<F: Fixture>(harness: &Harness<F>) {
    let cron = yearly(harness, "bills").catch_up(true);
    let missed = due(harness, &cron, Duration::days(900));
    maintain(harness);
    let jobs = harness.get_many(9);
    assert_eq!((jobs.len(), jobs[0].expected_at), (1, Some(missed)));
    maintain(harness);
    assert!(harness.get().is_none());
}

fn a_periodic_job_takes_the_place_of_the_one_of_its_name<F: Fixture>(harness: &Harness<F>) {
    assert!(harness.pq.set_cron(&yearly(harness, "bills")).unwrap());
    let other =
        harness.queue().cron("bills", "0 6 * * mon", &json!(2)).unwrap().time_zone("Europe/Berlin").unwrap();
    assert!(!harness.pq.set_cron(&other.priority(5).catch_up(true)).unwrap());
    let all = harness.pq.crons().unwrap();
    assert_eq!(all.len(), 1);
    let Cron { expression, time_zone, payload, priority, catch_up, .. } = &all[0].cron;
    assert_eq!((expression.as_str(), time_zone.as_str()), ("0 6 * * mon", "Europe/Berlin"));
    assert_eq!((payload.as_str(), *priority, *catch_up), ("2", 5, true));
    assert!(all[0].next_at.unwrap() > now(harness));
}

fn a_periodic_job_that_is_paused_does_not_fire<F: Fixture>(harness: &Harness<F>) {
    due(harness, &yearly(harness, "bills"), Duration::milliseconds(1));
    assert!(harness.pq.pause_cron("bills").unwrap());
    maintain(harness);
    assert!(harness.get().is_none());
    let paused = entry(harness, "bills").unwrap();
    assert!(paused.paused && paused.next_at.is_none());
    assert!(harness.pq.resume_cron("bills").unwrap());
    maintain(harness);
    assert!(harness.get().is_none(), "what passed meanwhile was not missed");
    let goes_on = entry(harness, "bills").unwrap();
    assert!(!goes_on.paused && goes_on.next_at.unwrap() > now(harness));
    assert!(!harness.pq.pause_cron("none").unwrap());
    assert!(!harness.pq.resume_cron("none").unwrap());
}

fn a_periodic_job_that_is_removed_does_not_fire<F: Fixture>(harness: &Harness<F>) {
    due(harness, &yearly(harness, "bills"), Duration::milliseconds(1));
    assert!(harness.pq.remove_cron("bills").unwrap());
    assert!(!harness.pq.remove_cron("bills").unwrap());
    maintain(harness);
    assert!(harness.get().is_none());
}

fn a_periodic_job_that_cannot_be_read_does_not_keep_others_from_firing<F: Fixture>(harness: &Harness<F>) {
    let broken = Cron { expression: "often".to_owned(), ..yearly(harness, "a") };
    due(harness, &broken, Duration::milliseconds(1));
    due(harness, &yearly(harness, "b"), Duration::milliseconds(1));
    maintain(harness);
    assert_eq!(harness.drain().len(), 1);
}

fn a_periodic_job_can_call_a_task<F: Fixture>(harness: &Harness<F>) {
    let task: Task<_, Value> = harness.named::<()>("apples").task("bill");
    let cron = task.cron("bills", "@yearly", &json!({ "to": "all" })).unwrap();
    due(harness, &cron, Duration::milliseconds(1));
    maintain(harness);
    let called = harness.get().unwrap().data;
    assert_eq!((&called["function"], &called["kwargs"]), (&json!("bill"), &json!({ "to": "all" })));
}

fn what_cannot_be_a_periodic_job_is_refused<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.queue();
    let refused = |name: &str, expression: &str| {
        queue.cron(name, expression, &json!(1)).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert!(refused("", "@daily").contains("empty"));
    assert!(refused(&"x".repeat(300), "@daily").contains("300 bytes"));
    assert!(refused("a\0b", "@daily").contains("NUL"));
    assert!(refused("a", "every day").contains("cron expression"));
    assert!(queue.cron("a", "@daily", &json!(1)).unwrap().time_zone("Berlin").is_err());
    let never = queue.cron("a", "0 0 30 2 *", &json!(1)).unwrap();
    assert!(harness.pq.set_cron(&never).is_err());
    assert!(harness.pq.crons().unwrap().is_empty());
}
