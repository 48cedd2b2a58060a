//! Cron entries: ticks, missed ticks, pausing and replacing.

use std::sync::Barrier;

use chrono::{DateTime, Duration, Utc};
use pq_core::store::{Connect, Schedules};
use pq_core::{Cron, CronEntry, Retention, Task};
use serde_json::{Value, json};

use super::cases;
use crate::Fixture;
use crate::harness::{Harness, roll_back};

cases![
    concurrent_maintenance_puts_one_job_for_a_tick: Own,
    a_jobs_expected_at_is_its_tick: Own,
    due_entries_locked_by_a_transaction_are_skipped: Both,
    each_tick_fires_once: Own,
    a_rolled_back_tick_fires_again: Both,
    missed_ticks_do_not_fire_by_default: Own,
    catch_up_puts_one_job_for_all_missed_ticks: Own,
    set_cron_replaces_the_entry_of_the_same_name: Own,
    setting_an_unchanged_entry_keeps_its_due_tick: Own,
    setting_an_entry_keeps_its_pause: Own,
    a_changed_payload_keeps_the_due_tick_and_a_changed_expression_does_not: Own,
    a_paused_entry_does_not_fire: Own,
    a_removed_entry_does_not_fire: Own,
    an_invalid_entry_does_not_block_others: Own,
    an_entry_that_failed_is_tried_again_after_a_pause: Own,
    a_next_tick_of_a_clock_that_was_ahead_is_brought_forward: Own,
    an_entry_that_is_run_now_keeps_its_next_tick: Own,
    an_entry_can_call_a_task: Own,
    invalid_entries_are_refused: Own,
];

/// Returns an entry that is due once a year, so that only the ticks that a case sets are due.
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

/// Stores an entry whose next tick was `ago` before now, and returns that tick.
fn due<F: Fixture>(harness: &Harness<F>, cron: &Cron, ago: Duration) -> DateTime<Utc> {
    // PostgreSQL stores microseconds.
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

fn concurrent_maintenance_puts_one_job_for_a_tick<F: Fixture>(harness: &Harness<F>) {
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

fn due_entries_locked_by_a_transaction_are_skipped<F: Fixture>(harness: &Harness<F>) {
    due(harness, &yearly(harness, "bills"), Duration::milliseconds(1));
    let store = harness.pq.store();
    let is_due_to = |conn: &mut crate::harness::Conn<F>| {
        harness.nested(conn, |conn| Ok(store.due_cron(conn, None)?.is_some())).unwrap()
    };
    let done = harness.transaction(|conn| {
        assert!(store.due_cron(conn, None)?.is_some());
        assert!(!is_due_to(&mut harness.connect()), "others skip the locked entry and do not wait");
        roll_back::<()>()
    });
    assert!(done.is_err());
    assert!(is_due_to(&mut harness.connect()));
}

fn a_jobs_expected_at_is_its_tick<F: Fixture>(harness: &Harness<F>) {
    let cron = yearly(harness, "bills").priority(3);
    let tick = due(harness, &cron, Duration::seconds(1));
    maintain(harness);
    let job = harness.get().unwrap();
    assert_eq!((job.expected_at, job.priority), (Some(tick), 3));
    assert_eq!(entry(harness, "bills").unwrap().last_at, Some(tick));
}

fn each_tick_fires_once<F: Fixture>(harness: &Harness<F>) {
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

fn a_rolled_back_tick_fires_again<F: Fixture>(harness: &Harness<F>) {
    let cron = yearly(harness, "bills");
    due(harness, &cron, Duration::milliseconds(1));
    let done = harness.transaction(|conn| {
        assert_eq!(pq_core::fire_due_crons(&harness.pq, conn)?, 1);
        roll_back::<()>()
    });
    assert!(done.is_err());
    assert!(harness.get().is_none());
    maintain(harness);
    assert_eq!(harness.drain().len(), 1);
}

fn missed_ticks_do_not_fire_by_default<F: Fixture>(harness: &Harness<F>) {
    due(harness, &yearly(harness, "bills"), Duration::minutes(2));
    maintain(harness);
    assert!(harness.get().is_none());
    assert!(entry(harness, "bills").unwrap().next_at.unwrap() > now(harness));
}

fn catch_up_puts_one_job_for_all_missed_ticks<F: Fixture>(harness: &Harness<F>) {
    let cron = yearly(harness, "bills").catch_up(true);
    let missed = due(harness, &cron, Duration::days(900));
    maintain(harness);
    let jobs = harness.get_many(9);
    assert_eq!((jobs.len(), jobs[0].expected_at), (1, Some(missed)));
    maintain(harness);
    assert!(harness.get().is_none());
}

fn set_cron_replaces_the_entry_of_the_same_name<F: Fixture>(harness: &Harness<F>) {
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

fn setting_an_unchanged_entry_keeps_its_due_tick<F: Fixture>(harness: &Harness<F>) {
    let cron = yearly(harness, "bills");
    let tick = due(harness, &cron, Duration::milliseconds(1));
    assert!(!harness.pq.set_cron(&cron).unwrap());
    assert_eq!(entry(harness, "bills").unwrap().next_at, Some(tick));
    maintain(harness);
    assert_eq!(harness.get().unwrap().expected_at, Some(tick));
    let next = entry(harness, "bills").unwrap().next_at;
    assert!(!harness.pq.set_cron(&cron).unwrap());
    let again = entry(harness, "bills").unwrap();
    assert_eq!((again.next_at, again.last_at), (next, Some(tick)));
}

fn setting_an_entry_keeps_its_pause<F: Fixture>(harness: &Harness<F>) {
    let cron = yearly(harness, "bills");
    due(harness, &cron, Duration::milliseconds(1));
    assert!(harness.pq.pause_cron("bills").unwrap());
    let changed = harness.queue().cron("bills", "* * * * * *", &json!(2)).unwrap();
    for cron in [&cron, &changed] {
        assert!(!harness.pq.set_cron(cron).unwrap());
        let set = entry(harness, "bills").unwrap();
        assert_eq!((set.paused, set.next_at, &set.cron.expression), (true, None, &cron.expression));
        maintain(harness);
        assert!(harness.get().is_none());
    }
    assert!(harness.pq.resume_cron("bills").unwrap());
    let resumed = entry(harness, "bills").unwrap();
    assert!(!resumed.paused && resumed.next_at.is_some());
}

fn a_changed_payload_keeps_the_due_tick_and_a_changed_expression_does_not<F: Fixture>(harness: &Harness<F>) {
    let cron = yearly(harness, "bills");
    let tick = due(harness, &cron, Duration::milliseconds(1));
    let other = harness.queue().cron("bills", &cron.expression, &json!(2)).unwrap().priority(3);
    assert!(!harness.pq.set_cron(&other).unwrap());
    assert_eq!(entry(harness, "bills").unwrap().next_at, Some(tick));
    let other = harness.queue().cron("bills", "@yearly", &json!(2)).unwrap();
    assert!(!harness.pq.set_cron(&other).unwrap());
    assert_eq!(entry(harness, "bills").unwrap().next_at, other.next_after(now(harness)).unwrap());
    maintain(harness);
    assert!(harness.get().is_none());
}

fn a_paused_entry_does_not_fire<F: Fixture>(harness: &Harness<F>) {
    due(harness, &yearly(harness, "bills"), Duration::milliseconds(1));
    assert!(harness.pq.pause_cron("bills").unwrap());
    maintain(harness);
    assert!(harness.get().is_none());
    let paused = entry(harness, "bills").unwrap();
    assert!(paused.paused && paused.next_at.is_none());
    assert!(harness.pq.resume_cron("bills").unwrap());
    maintain(harness);
    assert!(harness.get().is_none(), "ticks during the pause must not fire");
    let goes_on = entry(harness, "bills").unwrap();
    assert!(!goes_on.paused && goes_on.next_at.unwrap() > now(harness));
    assert!(!harness.pq.pause_cron("none").unwrap());
    assert!(!harness.pq.resume_cron("none").unwrap());
}

fn an_entry_that_is_run_now_keeps_its_next_tick<F: Fixture>(harness: &Harness<F>) {
    let cron = yearly(harness, "bills").priority(3);
    harness.pq.set_cron(&cron).unwrap();
    let before = entry(harness, "bills").unwrap();
    let begun = harness.pq.now().unwrap();
    let id = harness.pq.run_cron("bills").unwrap().unwrap();
    let job = harness.get().unwrap();
    assert_eq!((job.id, job.priority, &job.data), (id, 3, &json!({ "b": 1, "a": 2 })));
    let expected_at = job.expected_at.unwrap() + Duration::microseconds(1);
    assert!(expected_at >= begun && expected_at <= harness.pq.now().unwrap() + Duration::microseconds(1));
    let after = entry(harness, "bills").unwrap();
    assert_eq!((after.next_at, after.last_at), (before.next_at, before.last_at));
    harness.pq.pause_cron("bills").unwrap();
    assert!(harness.pq.acting_as("alice").unwrap().run_cron("bills").unwrap().is_some());
    assert!(harness.get().is_some());
    assert_eq!(harness.pq.audit(None, 1).unwrap()[0].record.action, "run periodic job");
    assert!(harness.pq.run_cron("none").unwrap().is_none());
}

fn a_removed_entry_does_not_fire<F: Fixture>(harness: &Harness<F>) {
    due(harness, &yearly(harness, "bills"), Duration::milliseconds(1));
    assert!(harness.pq.remove_cron("bills").unwrap());
    assert!(!harness.pq.remove_cron("bills").unwrap());
    maintain(harness);
    assert!(harness.get().is_none());
}

fn an_invalid_entry_does_not_block_others<F: Fixture>(harness: &Harness<F>) {
    let broken = Cron { expression: "often".to_owned(), ..yearly(harness, "a") };
    let tick = due(harness, &broken, Duration::milliseconds(1));
    due(harness, &yearly(harness, "b"), Duration::milliseconds(1));
    maintain(harness);
    assert_eq!(harness.drain().len(), 1);
    let failed = entry(harness, "a").unwrap();
    assert_eq!((failed.failures, failed.next_at), (1, Some(tick)), "the tick is kept");
    assert!(failed.error.unwrap().contains("cron expression"));
    assert_eq!(entry(harness, "b").unwrap().error, None);
}

fn an_entry_that_failed_is_tried_again_after_a_pause<F: Fixture>(harness: &Harness<F>) {
    let tick = due(harness, &yearly(harness, "bills"), Duration::milliseconds(1));
    let store = harness.pq.store();
    let fail = |tick, pause| {
        store.fail_cron(&mut harness.connect(), "bills", tick, "no room", pause).unwrap();
        entry(harness, "bills").unwrap()
    };
    let hour = std::time::Duration::from_secs(3600);
    assert_eq!(fail(tick + Duration::seconds(1), hour).failures, 0, "this is not the next tick");
    let failed = fail(tick, hour);
    assert_eq!((failed.failures, failed.error.as_deref()), (1, Some("no room")));
    maintain(harness);
    assert!(harness.get().is_none(), "the pause has not ended");
    assert_eq!(fail(tick, std::time::Duration::ZERO).failures, 2);
    maintain(harness);
    assert_eq!(harness.get().unwrap().expected_at, Some(tick));
    let fired = entry(harness, "bills").unwrap();
    assert_eq!((fired.failures, fired.error), (0, None));
}

fn a_next_tick_of_a_clock_that_was_ahead_is_brought_forward<F: Fixture>(harness: &Harness<F>) {
    let minutely = harness.queue().cron("minutely", "* * * * *", &json!(1)).unwrap();
    due(harness, &minutely, Duration::hours(-25));
    maintain(harness);
    let next = entry(harness, "minutely").unwrap().next_at.unwrap();
    assert!(next <= now(harness) + Duration::minutes(1), "{next}");
    // The next minute has fired already, by a clock that was a little ahead.
    let store = harness.pq.store();
    let fired = minutely.next_after(now(harness)).unwrap().unwrap();
    let after = fired + Duration::minutes(1);
    store.advance_cron(&mut harness.connect(), "minutely", Some(fired), Some(after)).unwrap();
    maintain(harness);
    assert_eq!(entry(harness, "minutely").unwrap().next_at, Some(after), "no tick fires twice");
    assert!(harness.get().is_none());
}

fn an_entry_can_call_a_task<F: Fixture>(harness: &Harness<F>) {
    let task: Task<_, Value> = harness.named::<()>("apples").task("bill");
    let cron = task.cron("bills", "@yearly", &json!({ "to": "all" })).unwrap();
    due(harness, &cron, Duration::milliseconds(1));
    maintain(harness);
    let called = harness.get().unwrap().data;
    assert_eq!((&called["function"], &called["kwargs"]), (&json!("bill"), &json!({ "to": "all" })));
}

fn invalid_entries_are_refused<F: Fixture>(harness: &Harness<F>) {
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
