//! The audit log: operations of an operator are recorded, in their transactions.

use std::time::Duration;

use pq_core::store::{Connect, TimeTravel};
use pq_core::{AuditRecord, JobId, JobState, Pq, Retention, StopMode, WorkerId};
use serde_json::{Value, json};

use super::cases;
use crate::Fixture;
use crate::harness::{Harness, TIMEOUT, roll_back};

cases![
    every_operation_of_an_actor_is_recorded: Own,
    an_operation_without_an_actor_is_not_recorded: Own,
    an_operation_that_changes_nothing_is_not_recorded: Own,
    an_operation_that_is_rolled_back_is_not_recorded: Both,
    the_audit_log_is_listed_page_by_page: Own,
    old_entries_of_the_audit_log_are_deleted: Own,
    a_paused_queue_shows_who_paused_it: Own,
    a_paused_periodic_job_shows_who_paused_it_and_when: Own,
    an_invalid_actor_is_refused: Own,
];

fn alice<F: Fixture>(harness: &Harness<F>) -> Pq<F::Store> {
    harness.pq.acting_as("alice").unwrap()
}

/// Returns the recorded operations, the first one first.
fn recorded<F: Fixture>(harness: &Harness<F>) -> Vec<AuditRecord> {
    let mut entries = harness.pq.audit(None, 100).unwrap();
    entries.reverse();
    assert!(entries.is_sorted_by_key(|entry| entry.id) && entries.is_sorted_by_key(|entry| entry.at));
    entries.into_iter().map(|entry| entry.record).collect()
}

fn actions<F: Fixture>(harness: &Harness<F>) -> Vec<String> {
    recorded(harness).into_iter().map(|record| record.action).collect()
}

fn every_operation_of_an_actor_is_recorded<F: Fixture>(harness: &Harness<F>) {
    let alice = alice(harness);
    let apples = alice.queue::<Value>("apples").unwrap();
    let pears = alice.queue::<Value>("pears").unwrap();
    let cancelled = harness.put(1);
    let moved = harness.put(2);
    apples.pause().unwrap();
    apples.resume().unwrap();
    apples.cancel(cancelled).unwrap();
    apples.retry(cancelled).unwrap();
    apples.move_to(&pears, Some(&[moved])).unwrap();
    apples.cancel(cancelled).unwrap();
    apples.prune(JobState::Cancelled, Duration::ZERO).unwrap();
    pears.clear().unwrap();
    let first = AuditRecord {
        actor: "alice".to_owned(),
        action: "pause".to_owned(),
        queue: Some("apples".to_owned()),
        job: None,
        details: None,
        count: 1,
    };
    let records = recorded(harness);
    assert_eq!(records[0], first);
    assert_eq!(actions(harness), ["pause", "resume", "cancel", "retry", "move", "cancel", "prune", "clear"]);
    assert!(records.iter().all(|record| record.actor == "alice" && record.count == 1));
    assert_eq!(records[2].job, Some(cancelled));
    assert_eq!(records[3].details, Some(format!("jobs {cancelled}")));
    assert_eq!(records[4].details, Some(format!("to pears: jobs {moved}")));
    assert_eq!(records[7].queue.as_deref(), Some("pears"));
    let cron = apples.cron("bills", "@yearly", &json!(1)).unwrap();
    alice.set_cron(&cron).unwrap();
    alice.set_cron(&cron).unwrap();
    alice.pause_cron("bills").unwrap();
    alice.resume_cron("bills").unwrap();
    alice.remove_cron("bills").unwrap();
    let records = recorded(harness).split_off(8);
    assert_eq!(
        records.iter().map(|record| record.action.as_str()).collect::<Vec<_>>(),
        [
            "set periodic job",
            "set periodic job",
            "pause periodic job",
            "resume periodic job",
            "remove periodic job"
        ]
    );
    assert!(records.iter().all(|record| record.details.as_deref() == Some("bills")));
}

fn an_operation_without_an_actor_is_not_recorded<F: Fixture>(harness: &Harness<F>) {
    harness.put(1);
    harness.queue().pause().unwrap();
    harness.queue().clear().unwrap();
    assert!(recorded(harness).is_empty());
}

fn an_operation_that_changes_nothing_is_not_recorded<F: Fixture>(harness: &Harness<F>) {
    let alice = alice(harness);
    let apples = alice.queue::<Value>("apples").unwrap();
    apples.resume().unwrap();
    apples.cancel(JobId(1)).unwrap();
    apples.retry(JobId(1)).unwrap();
    apples.clear().unwrap();
    alice.pause_cron("none").unwrap();
    alice.stop_worker(WorkerId(1), StopMode::Drain).unwrap();
    assert!(recorded(harness).is_empty());
    apples.put(&json!(1)).unwrap();
    apples.get(pq_core::Wait::No).unwrap();
    assert!(recorded(harness).is_empty(), "puts and takes are not operations");
}

fn an_operation_that_is_rolled_back_is_not_recorded<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put(1);
    let apples = alice(harness).queue::<Value>("apples").unwrap();
    let done = harness.transaction(|conn| {
        apples.on(conn).cancel(id)?;
        roll_back::<()>()
    });
    assert!(done.is_err());
    assert!(recorded(harness).is_empty());
    harness
        .transaction(|conn| {
            apples.on(conn).cancel(id)?;
            Ok(())
        })
        .unwrap();
    assert_eq!(actions(harness), ["cancel"]);
}

fn the_audit_log_is_listed_page_by_page<F: Fixture>(harness: &Harness<F>) {
    let apples = alice(harness).queue::<Value>("apples").unwrap();
    for _ in 0..2 {
        apples.pause().unwrap();
        apples.resume().unwrap();
    }
    let first = harness.pq.audit(None, 3).unwrap();
    let names = |entries: &[pq_core::AuditEntry]| -> Vec<String> {
        entries.iter().map(|entry| entry.record.action.clone()).collect()
    };
    assert_eq!(names(&first), ["resume", "pause", "resume"]);
    assert_eq!(names(&harness.pq.audit(Some(first[2].id), 3).unwrap()), ["pause"]);
}

fn old_entries_of_the_audit_log_are_deleted<F: Fixture>(harness: &Harness<F>) {
    const DAY: Duration = Duration::from_secs(86_400);
    let store = harness.pq.store();
    let apples = alice(harness).queue::<Value>("apples").unwrap();
    apples.pause().unwrap();
    store.with_connection(|conn| store.advance(conn, 89 * DAY)).unwrap();
    apples.resume().unwrap();
    harness.maintain();
    assert_eq!(actions(harness), ["pause", "resume"]);
    store.with_connection(|conn| store.advance(conn, DAY)).unwrap();
    harness.maintain();
    assert_eq!(actions(harness), ["resume"]);
    let mut forever = Retention::default();
    forever.audit = None;
    store.with_connection(|conn| store.advance(conn, 90 * DAY)).unwrap();
    harness.pq.maintain(&forever).unwrap();
    assert_eq!(actions(harness), ["resume"]);
}

fn a_paused_queue_shows_who_paused_it<F: Fixture>(harness: &Harness<F>) {
    let paused_by = || {
        let counted = harness.pq.overview().unwrap().remove(0);
        let listed = harness.pq.paused_queues().unwrap().remove(0);
        assert_eq!((&listed.queue, Some(listed.paused_at)), (&counted.queue, counted.paused_at));
        assert_eq!(listed.paused_by, counted.paused_by);
        listed.paused_by
    };
    assert!(harness.pq.paused_queues().unwrap().is_empty());
    alice(harness).queue::<()>("apples").unwrap().pause().unwrap();
    assert!(!harness.pq.acting_as("bob").unwrap().queue::<()>("apples").unwrap().pause().unwrap());
    assert_eq!(paused_by().as_deref(), Some("alice"), "the second pause changes nothing");
    harness.queue().resume().unwrap();
    harness.queue().pause().unwrap();
    assert_eq!(paused_by(), None);
    harness.queue().resume().unwrap();
    assert!(harness.pq.paused_queues().unwrap().is_empty());
}

fn a_paused_periodic_job_shows_who_paused_it_and_when<F: Fixture>(harness: &Harness<F>) {
    let cron = harness.queue().cron("bills", "@yearly", &json!(1)).unwrap();
    harness.pq.set_cron(&cron).unwrap();
    let shown = || {
        let entry = harness.pq.crons().unwrap().remove(0);
        (entry.paused, entry.paused_at, entry.paused_by)
    };
    assert_eq!(shown(), (false, None, None));
    alice(harness).pause_cron("bills").unwrap();
    let (paused, since, by) = shown();
    assert_eq!((paused, by.as_deref()), (true, Some("alice")));
    assert!((harness.pq.now().unwrap() - since.unwrap()).to_std().unwrap() < TIMEOUT);
    harness.pq.acting_as("bob").unwrap().pause_cron("bills").unwrap();
    assert_eq!(shown(), (true, since, by), "the second pause changes nothing");
    harness.pq.set_cron(&cron).unwrap();
    assert_eq!(shown().1, since);
    harness.pq.resume_cron("bills").unwrap();
    assert_eq!(shown(), (false, None, None));
}

fn an_invalid_actor_is_refused<F: Fixture>(harness: &Harness<F>) {
    assert!(harness.pq.acting_as("").is_err());
    assert!(harness.pq.acting_as("a\0").is_err());
    assert!(harness.pq.acting_as(&"é".repeat(101)).is_err());
    assert_eq!(harness.pq.acting_as(&"é".repeat(100)).unwrap().actor(), Some("é".repeat(100).as_str()));
}
