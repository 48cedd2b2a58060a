//! Section 12: periodic jobs.

use std::sync::Barrier;

use chrono::{DateTime, Duration, Utc};
use serde_json::{Value, json};

use super::scene::{Scene, undo};
use super::{Fixture, cases};
use crate::cron::MISSED;
use crate::{Cron, CronEntry, Retention, Store, Task};

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
fn yearly<F: Fixture>(scene: &Scene<F>, name: &str) -> Cron {
    let soon = now(scene) + Duration::days(180);
    scene.queue().cron(name, &format!("0 0 1 {} *", soon.format("%-m")), &json!({ "b": 1, "a": 2 })).unwrap()
}

fn now<F: Fixture>(scene: &Scene<F>) -> DateTime<Utc> {
    let store = scene.pq.store();
    store.now(&mut scene.connect()).unwrap()
}

/// Sets a periodic job whose next tick was so long ago.
fn due<F: Fixture>(scene: &Scene<F>, cron: &Cron, ago: Duration) -> DateTime<Utc> {
    // PostgreSQL keeps microseconds.
    let tick = DateTime::from_timestamp_micros((now(scene) - ago).timestamp_micros()).unwrap();
    scene.pq.store().set_cron(&mut scene.connect(), cron, Some(tick)).unwrap();
    tick
}

fn maintain<F: Fixture>(scene: &Scene<F>) {
    scene.pq.maintain(&Retention::default()).unwrap();
}

fn entry<F: Fixture>(scene: &Scene<F>, name: &str) -> Option<CronEntry> {
    scene.pq.crons().unwrap().into_iter().find(|entry| entry.cron.name == name)
}

fn a_tick_puts_one_job_whoever_is_there<F: Fixture>(scene: &Scene<F>) {
    let cron = yearly(scene, "bills");
    due(scene, &cron, Duration::milliseconds(1));
    let barrier = Barrier::new(8);
    std::thread::scope(|threads| {
        for _ in 0..8 {
            threads.spawn(|| {
                barrier.wait();
                maintain(scene);
            });
        }
    });
    assert_eq!(scene.drain(), [json!({ "b": 1, "a": 2 })]);
}

fn a_tick_that_somebody_fires_is_nobody_elses<F: Fixture>(scene: &Scene<F>) {
    due(scene, &yearly(scene, "bills"), Duration::milliseconds(1));
    let store = scene.pq.store();
    let due_to = |conn: &mut super::scene::Conn<F>| {
        scene.nested(conn, |conn| Ok(store.due_crons(conn)?.len())).unwrap()
    };
    let done = scene.transaction(|conn| {
        assert_eq!(store.due_crons(conn)?.len(), 1);
        assert_eq!(due_to(&mut scene.connect()), 0, "others pass it by, and do not wait");
        undo::<()>()
    });
    assert!(done.is_err());
    assert_eq!(due_to(&mut scene.connect()), 1);
}

fn a_tick_is_the_time_by_which_its_job_is_wanted<F: Fixture>(scene: &Scene<F>) {
    let cron = yearly(scene, "bills").priority(3);
    let tick = due(scene, &cron, Duration::seconds(1));
    maintain(scene);
    let job = scene.get().unwrap();
    assert_eq!((job.expected_at, job.priority), (Some(tick), 3));
    assert_eq!(entry(scene, "bills").unwrap().last_at, Some(tick));
}

fn a_periodic_job_is_fired_once_a_tick<F: Fixture>(scene: &Scene<F>) {
    let each_second = scene.queue().cron("tick", "* * * * * *", &json!(1)).unwrap();
    let tick = due(scene, &each_second, Duration::seconds(5));
    maintain(scene);
    let next = entry(scene, "tick").unwrap().next_at.unwrap();
    let jobs = scene.get_many(100);
    let mut ticks: Vec<DateTime<Utc>> = jobs.iter().filter_map(|job| job.expected_at).collect();
    ticks.dedup();
    assert_eq!((ticks.first(), ticks.len()), (Some(&tick), jobs.len()));
    assert!((5..=8).contains(&jobs.len()), "{ticks:?}");
    assert!(next > *ticks.last().unwrap());
}

fn a_tick_whose_put_is_rolled_back_is_fired_again<F: Fixture>(scene: &Scene<F>) {
    let cron = yearly(scene, "bills");
    due(scene, &cron, Duration::milliseconds(1));
    let store = scene.pq.store();
    let done = scene.transaction(|conn| {
        assert_eq!(crate::cron::fire(store, conn)?, 1);
        undo::<()>()
    });
    assert!(done.is_err());
    assert!(scene.get().is_none());
    maintain(scene);
    assert_eq!(scene.drain().len(), 1);
}

fn missed_ticks_are_not_made_up_for_unless_said<F: Fixture>(scene: &Scene<F>) {
    due(scene, &yearly(scene, "bills"), MISSED);
    maintain(scene);
    assert!(scene.get().is_none());
    assert!(entry(scene, "bills").unwrap().next_at.unwrap() > now(scene));
}

fn one_job_makes_up_for_all_missed_ticks_where_that_is_said<F: Fixture>(scene: &Scene<F>) {
    let cron = yearly(scene, "bills").catch_up(true);
    let missed = due(scene, &cron, Duration::days(900));
    maintain(scene);
    let jobs = scene.get_many(9);
    assert_eq!((jobs.len(), jobs[0].expected_at), (1, Some(missed)));
    maintain(scene);
    assert!(scene.get().is_none());
}

fn a_periodic_job_takes_the_place_of_the_one_of_its_name<F: Fixture>(scene: &Scene<F>) {
    assert!(scene.pq.set_cron(&yearly(scene, "bills")).unwrap());
    let other =
        scene.queue().cron("bills", "0 6 * * mon", &json!(2)).unwrap().time_zone("Europe/Berlin").unwrap();
    assert!(!scene.pq.set_cron(&other.priority(5).catch_up(true)).unwrap());
    let all = scene.pq.crons().unwrap();
    assert_eq!(all.len(), 1);
    let Cron { expression, time_zone, payload, priority, catch_up, .. } = &all[0].cron;
    assert_eq!((expression.as_str(), time_zone.as_str()), ("0 6 * * mon", "Europe/Berlin"));
    assert_eq!((payload.as_str(), *priority, *catch_up), ("2", 5, true));
    assert!(all[0].next_at.unwrap() > now(scene));
}

fn a_periodic_job_that_is_paused_does_not_fire<F: Fixture>(scene: &Scene<F>) {
    due(scene, &yearly(scene, "bills"), Duration::milliseconds(1));
    assert!(scene.pq.pause_cron("bills").unwrap());
    maintain(scene);
    assert!(scene.get().is_none());
    let paused = entry(scene, "bills").unwrap();
    assert!(paused.paused && paused.next_at.is_none());
    assert!(scene.pq.resume_cron("bills").unwrap());
    maintain(scene);
    assert!(scene.get().is_none(), "what passed meanwhile was not missed");
    let goes_on = entry(scene, "bills").unwrap();
    assert!(!goes_on.paused && goes_on.next_at.unwrap() > now(scene));
    assert!(!scene.pq.pause_cron("none").unwrap());
    assert!(!scene.pq.resume_cron("none").unwrap());
}

fn a_periodic_job_that_is_removed_does_not_fire<F: Fixture>(scene: &Scene<F>) {
    due(scene, &yearly(scene, "bills"), Duration::milliseconds(1));
    assert!(scene.pq.remove_cron("bills").unwrap());
    assert!(!scene.pq.remove_cron("bills").unwrap());
    maintain(scene);
    assert!(scene.get().is_none());
}

fn a_periodic_job_that_cannot_be_read_does_not_keep_others_from_firing<F: Fixture>(scene: &Scene<F>) {
    let broken = Cron { expression: "often".to_owned(), ..yearly(scene, "a") };
    due(scene, &broken, Duration::milliseconds(1));
    due(scene, &yearly(scene, "b"), Duration::milliseconds(1));
    maintain(scene);
    assert_eq!(scene.drain().len(), 1);
}

fn a_periodic_job_can_call_a_task<F: Fixture>(scene: &Scene<F>) {
    let task: Task<_, Value> = scene.named::<()>("apples").task("bill");
    let cron = task.cron("bills", "@yearly", &json!({ "to": "all" })).unwrap();
    due(scene, &cron, Duration::milliseconds(1));
    maintain(scene);
    let called = scene.get().unwrap().data;
    assert_eq!((&called["function"], &called["kwargs"]), (&json!("bill"), &json!({ "to": "all" })));
}

fn what_cannot_be_a_periodic_job_is_refused<F: Fixture>(scene: &Scene<F>) {
    let queue = scene.queue();
    let refused = |name: &str, expression: &str| {
        queue.cron(name, expression, &json!(1)).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert!(refused("", "@daily").contains("empty"));
    assert!(refused(&"x".repeat(300), "@daily").contains("300 bytes"));
    assert!(refused("a\0b", "@daily").contains("NUL"));
    assert!(refused("a", "every day").contains("cron expression"));
    assert!(queue.cron("a", "@daily", &json!(1)).unwrap().time_zone("Berlin").is_err());
    let never = queue.cron("a", "0 0 30 2 *", &json!(1)).unwrap();
    assert!(scene.pq.set_cron(&never).is_err());
    assert!(scene.pq.crons().unwrap().is_empty());
}
