//! Operations of an operator on one job, and on all jobs that a filter selects.

use pq_core::store::Connect;
use pq_core::{
    ChangeOutcome, Filter, JobId, JobState, Operation, OperationReport, Outcome, Payload, PayloadLimits,
    PutOptions, Queue, Wait, When,
};
use serde_json::{Value, json};

use super::cases;
use crate::Fixture;
use crate::harness::{Harness, TIMEOUT};

cases![
    a_scheduled_job_that_is_run_now_wakes_a_waiter: Own,
    a_job_that_waits_between_attempts_can_be_run_now: Own,
    a_job_is_rescheduled: Own,
    a_new_priority_changes_the_order: Own,
    the_payload_of_a_waiting_job_is_replaced_if_it_has_not_changed: Own,
    a_changed_job_keeps_its_other_fields: Own,
    a_deleted_job_releases_its_unique_key: Own,
    a_job_that_runs_or_has_ended_is_not_changed: Own,
    a_job_that_a_transaction_holds_is_not_changed: Own,
    an_unknown_job_is_not_found: Own,
    all_jobs_that_a_filter_selects_are_changed_in_batches: Own,
    jobs_that_are_put_during_an_operation_are_not_changed: Own,
    jobs_are_selected_by_queue_state_task_error_and_age: Own,
    waiting_and_running_jobs_are_cancelled_by_a_filter: Own,
    dead_and_cancelled_jobs_are_requeued_by_a_filter: Own,
    jobs_are_moved_by_a_filter_unless_their_unique_key_is_in_use: Own,
    archived_jobs_are_deleted_by_a_filter: Own,
    held_jobs_are_passed_by_an_operation: Own,
    an_operation_is_one_entry_of_the_audit_log: Own,
];

const LATER: &str = "1h";

fn change<F: Fixture>(harness: &Harness<F>, id: JobId, operation: &Operation) -> ChangeOutcome {
    harness.pq.change(id, operation).unwrap()
}

/// Runs an operation and returns how many jobs it changed and skipped.
fn operate<F: Fixture>(harness: &Harness<F>, operation: &Operation, filter: &Filter) -> (u64, u64) {
    let OperationReport { changed, skipped } = harness.pq.operate(operation, filter, |_| ()).unwrap();
    (changed, skipped)
}

fn apples() -> Filter {
    Filter::queue("apples")
}

fn later() -> PutOptions {
    PutOptions::new().schedule_at(LATER)
}

fn payload(json: &str) -> Payload {
    Payload::new(json.to_owned(), PayloadLimits::default()).unwrap()
}

fn state<F: Fixture>(harness: &Harness<F>, id: JobId) -> JobState {
    harness.pq.find(id).unwrap().unwrap().state
}

/// Puts a job and ends it as dead.
fn dead<F: Fixture>(harness: &Harness<F>, error: &str, options: PutOptions) -> JobId {
    let id = harness.put_with(error, &options.priority(i32::MAX));
    harness.settle(&harness.lease_one(), Outcome::dead(error));
    id
}

fn a_scheduled_job_that_is_run_now_wakes_a_waiter<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put_with("a", &later());
    std::thread::scope(|threads| {
        let waiter = harness.blocked_waiter(threads);
        assert_eq!(change(harness, id, &Operation::RunNow), ChangeOutcome::Changed);
        assert_eq!(waiter.recv_timeout(TIMEOUT).unwrap(), Some(json!("a")));
    });
}

fn a_job_that_waits_between_attempts_can_be_run_now<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    harness.settle(&harness.lease_one(), Outcome::retry(TIMEOUT * 100, "once more"));
    assert!(harness.get().is_none());
    assert_eq!(change(harness, id, &Operation::RunNow), ChangeOutcome::Changed);
    let job = harness.get().unwrap();
    assert_eq!((job.id, job.attempt), (id, 2));
}

fn a_job_is_rescheduled<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    let at = harness.pq.now().unwrap() + TIMEOUT * 100;
    let to = When::at(at).unwrap();
    assert_eq!(change(harness, id, &Operation::Reschedule { to }), ChangeOutcome::Changed);
    assert!(harness.get().is_none());
    let found = harness.pq.find(id).unwrap().unwrap().schedule_at.unwrap();
    assert!((found - at).abs() < chrono::TimeDelta::milliseconds(1));
    let to = When::parse("0s").unwrap();
    assert_eq!(change(harness, id, &Operation::Reschedule { to }), ChangeOutcome::Changed);
    assert_eq!(harness.drain(), [json!("a")]);
}

fn a_new_priority_changes_the_order<F: Fixture>(harness: &Harness<F>) {
    harness.put("first");
    let id = harness.put("second");
    assert_eq!(change(harness, id, &Operation::SetPriority { to: 1 }), ChangeOutcome::Changed);
    assert_eq!(harness.drain(), [json!("second"), json!("first")]);
}

fn the_payload_of_a_waiting_job_is_replaced_if_it_has_not_changed<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put_with(1, &later());
    let edit = |from: &str, to: &str| Operation::EditPayload { from: payload(from), to: payload(to) };
    assert_eq!(change(harness, id, &edit("1", "[2]")), ChangeOutcome::Changed);
    assert_eq!(change(harness, id, &edit("1", "[3]")), ChangeOutcome::PayloadChanged);
    assert_eq!(harness.pq.find(id).unwrap().unwrap().payload.as_str(), "[2]");
}

fn a_changed_job_keeps_its_other_fields<F: Fixture>(harness: &Harness<F>) {
    let options =
        PutOptions::new().priority(2).expected_at("2001-01-01T00:00:00Z").serialization_key("k").unique("u");
    let id = harness.put_with(1, &options);
    harness.settle(&harness.lease_one(), Outcome::retry(TIMEOUT * 100, "once more"));
    let before = harness.pq.find(id).unwrap().unwrap();
    let operations = [
        Operation::RunNow,
        Operation::SetPriority { to: 3 },
        Operation::EditPayload { from: payload("1"), to: payload("2") },
    ];
    for operation in operations {
        assert_eq!(change(harness, id, &operation), ChangeOutcome::Changed, "{operation:?}");
    }
    let mut after = harness.pq.find(id).unwrap().unwrap();
    assert_eq!((after.state, after.schedule_at, after.priority), (JobState::Ready, None, 3));
    assert_eq!(after.payload.as_str(), "2");
    (after.state, after.schedule_at, after.priority) = (before.state, before.schedule_at, before.priority);
    after.payload = before.payload.clone();
    assert_eq!(after, before);
    let kept = harness.queue().put_with(&json!(9), &PutOptions::new().unique("u")).unwrap();
    assert_eq!(kept.id, id, "it still owns its unique key");
}

fn a_deleted_job_releases_its_unique_key<F: Fixture>(harness: &Harness<F>) {
    let unique = PutOptions::new().unique("u");
    let id = harness.put_with("a", &unique);
    assert_eq!(change(harness, id, &Operation::Delete), ChangeOutcome::Changed);
    assert!(harness.pq.find(id).unwrap().is_none());
    assert!(harness.put_with("b", &unique) != id);
}

fn a_job_that_runs_or_has_ended_is_not_changed<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put(1);
    let job = harness.lease_one();
    let edit = Operation::EditPayload { from: payload("1"), to: payload("2") };
    for operation in [&Operation::RunNow, &Operation::SetPriority { to: 1 }, &edit, &Operation::Delete] {
        let outcome = change(harness, id, operation);
        assert_eq!(outcome, ChangeOutcome::WrongState(JobState::Running), "{operation:?}");
        assert_eq!(outcome.to_string(), "it is running");
    }
    assert_eq!(change(harness, id, &Operation::Cancel), ChangeOutcome::Requested);
    harness.settle(&job, Outcome::dead("on purpose"));
    assert_eq!(change(harness, id, &edit), ChangeOutcome::WrongState(JobState::Dead));
    assert_eq!(change(harness, id, &Operation::Cancel), ChangeOutcome::WrongState(JobState::Dead));
    assert_eq!(change(harness, id, &Operation::Retry), ChangeOutcome::Changed);
    assert_eq!(state(harness, id), JobState::Ready);
    assert_eq!(change(harness, id, &Operation::RunNow), ChangeOutcome::WrongState(JobState::Ready));
}

fn a_job_that_a_transaction_holds_is_not_changed<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put(1);
    let queue = harness.queue();
    let edit = Operation::EditPayload { from: payload("1"), to: payload("2") };
    let later = Operation::Reschedule { to: When::parse(LATER).unwrap() };
    harness
        .nested(&mut harness.connect(), |conn| {
            assert!(queue.on(conn).get()?.is_some());
            for operation in [&edit, &later, &Operation::SetPriority { to: 1 }, &Operation::Delete] {
                assert_eq!(change(harness, id, operation), ChangeOutcome::Held, "{operation:?}");
            }
            crate::harness::roll_back::<()>()
        })
        .unwrap_err();
    assert_eq!(harness.pq.find(id).unwrap().unwrap().payload.as_str(), "1");
    assert_eq!(change(harness, id, &edit), ChangeOutcome::Changed);
}

fn an_unknown_job_is_not_found<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put(1);
    assert!(harness.get().is_some());
    for operation in [Operation::Cancel, Operation::Retry, Operation::Delete, Operation::RunNow] {
        assert_eq!(change(harness, id, &operation), ChangeOutcome::NotFound);
    }
}

fn all_jobs_that_a_filter_selects_are_changed_in_batches<F: Fixture>(harness: &Harness<F>) {
    harness.queue().put_many_with((0..2_500).map(|n| (json!(n), later()))).unwrap();
    let stays = harness.named::<u8>("pears").put_with(&1, &later()).unwrap().id;
    assert_eq!(harness.pq.preview(&Operation::RunNow, &apples(), 10_000).unwrap(), 2_500);
    assert_eq!(harness.pq.preview(&Operation::RunNow, &apples(), 100).unwrap(), 100);
    assert_eq!(harness.pq.preview(&Operation::Retry, &apples(), 100).unwrap(), 0);
    let mut reports = Vec::new();
    let report = harness.pq.operate(&Operation::RunNow, &apples(), |report| reports.push(report.changed));
    assert_eq!(report.unwrap(), OperationReport { changed: 2_500, skipped: 0 });
    assert_eq!(reports, [1_000, 2_000, 2_500]);
    assert_eq!(harness.counts().ready, 2_500);
    assert_eq!(state(harness, stays), JobState::Scheduled);
    assert_eq!(operate(harness, &Operation::RunNow, &apples()), (0, 0));
}

/// Otherwise an operation would not end while a producer is as fast as it.
fn jobs_that_are_put_during_an_operation_are_not_changed<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.queue();
    queue.put_many((0..1_000).map(|n| json!(n))).unwrap();
    let mut put = None;
    let report = harness.pq.operate(&Operation::Delete, &apples(), |_| {
        put.get_or_insert_with(|| queue.put(&json!("later")).unwrap());
    });
    assert_eq!(report.unwrap().changed, 1_000);
    assert_eq!(queue.counts().unwrap().waiting(), 1, "{put:?}");
}

fn jobs_are_selected_by_queue_state_task_error_and_age<F: Fixture>(harness: &Harness<F>) {
    let tasks = |name: &str| harness.named::<()>("tasks").task::<String>(name);
    let mail = tasks("mail").call(&"a".to_owned()).unwrap().id;
    // Escapes that a database cannot decode do not make a selection fail.
    let escaped = tasks("mail").call(&"\0\u{1f600}".to_owned()).unwrap().id;
    tasks("bill").call(&"mail".to_owned()).unwrap();
    let foreign = harness.named::<Value>("tasks");
    for data in [json!("\0"), json!({ "function": 1 }), json!([{ "function": "mail" }])] {
        foreign.put(&data).unwrap();
    }
    let listed = |filter: &Filter| -> Vec<JobId> {
        harness.pq.list(filter, 100).unwrap().iter().map(|job| job.id).collect()
    };
    let found = Filter::default().task("mail");
    assert_eq!(listed(&found), [mail, escaped]);
    assert_eq!(harness.pq.preview(&Operation::Cancel, &found, 100).unwrap(), 2);
    let broken = dead(harness, "it is broken", PutOptions::new());
    dead(harness, "late", PutOptions::new());
    assert_eq!(listed(&apples().error("broke")), [broken]);
    assert_eq!(listed(&apples().error("broke").state(JobState::Ready)), []);
    let now = harness.pq.now().unwrap();
    assert_eq!(listed(&apples().until(now)).len(), 2);
    assert_eq!(listed(&apples().until(now - TIMEOUT)), []);
    let store = harness.pq.store();
    store.with_connection(|conn| pq_core::store::TimeTravel::advance(store, conn, TIMEOUT)).unwrap();
    let fresh = harness.put("fresh");
    let old = apples().until(harness.pq.now().unwrap() - TIMEOUT);
    assert_eq!(operate(harness, &Operation::Delete, &old), (2, 0));
    assert_eq!(listed(&apples()), [fresh]);
    assert_eq!(operate(harness, &Operation::Delete, &found), (2, 0));
    assert_eq!(harness.named::<()>("tasks").counts().unwrap().ready, 4);
}

fn waiting_and_running_jobs_are_cancelled_by_a_filter<F: Fixture>(harness: &Harness<F>) {
    let ids = [harness.put(1), harness.put(2)];
    let jobs = harness.lease(2, TIMEOUT);
    harness.settle(&jobs[0], Outcome::Complete);
    let waits = harness.put(3);
    let blocked = ["k", "k"].map(|key| harness.put_with(4, &PutOptions::new().serialization_key(key)));
    let is_blocked = apples().state(JobState::Blocked);
    assert_eq!(operate(harness, &Operation::Cancel, &is_blocked), (1, 0));
    assert_eq!(blocked.map(|id| state(harness, id)), [JobState::Ready, JobState::Cancelled]);
    assert_eq!(harness.pq.preview(&Operation::Cancel, &apples(), 100).unwrap(), 3);
    assert_eq!(operate(harness, &Operation::Cancel, &apples()), (3, 0));
    let counted: u64 = harness.pq.counters().unwrap().iter().map(|task| task.counters.cancelled).sum();
    assert_eq!(counted, 3, "the waiting ones");
    assert_eq!(state(harness, waits), JobState::Cancelled);
    assert_eq!(state(harness, ids[1]), JobState::Running);
    assert_eq!(harness.queue().extend(&jobs[1], TIMEOUT).unwrap().cancelled, [ids[1]]);
    harness.settle(&jobs[1], Outcome::GiveBack);
    assert_eq!(state(harness, ids[1]), JobState::Cancelled);
    assert!(harness.pq.find(ids[0]).unwrap().is_none());
}

fn dead_and_cancelled_jobs_are_requeued_by_a_filter<F: Fixture>(harness: &Harness<F>) {
    let unique = || PutOptions::new().unique("u");
    let (first, broken) = (dead(harness, "late", unique()), dead(harness, "broken", PutOptions::new()));
    let other = dead(harness, "late", unique());
    let cancelled = harness.put(1);
    assert_eq!(change(harness, cancelled, &Operation::Cancel), ChangeOutcome::Changed);
    assert_eq!(operate(harness, &Operation::Retry, &apples().error("broken")), (1, 0));
    assert_eq!(state(harness, broken), JobState::Ready);
    // Two dead jobs have had the same unique key. One of them gets it back.
    assert_eq!(operate(harness, &Operation::Retry, &apples().state(JobState::Dead)), (1, 1));
    assert_eq!([first, other].map(|id| state(harness, id)), [JobState::Ready, JobState::Dead]);
    assert_eq!(change(harness, other, &Operation::Retry), ChangeOutcome::KeyInUse);
    assert_eq!(operate(harness, &Operation::Retry, &apples().state(JobState::Cancelled)), (1, 0));
    let job = harness.pq.find(cancelled).unwrap().unwrap();
    assert_eq!((job.state, job.attempt), (JobState::Ready, 0));
    assert_eq!(operate(harness, &Operation::Retry, &apples()), (0, 1));
}

fn jobs_are_moved_by_a_filter_unless_their_unique_key_is_in_use<F: Fixture>(harness: &Harness<F>) {
    let pears: Queue<_, Value> = harness.named("pears");
    let unique = PutOptions::new().unique("u");
    let stays = harness.put_with("a", &unique);
    pears.put_with(&json!("b"), &unique).unwrap();
    let moved = harness.put_with("c", &PutOptions::new().unique("v").serialization_key("k"));
    let to_pears = Operation::Move { to: pears.name().clone() };
    assert_eq!(operate(harness, &to_pears, &apples()), (1, 1));
    assert_eq!(change(harness, stays, &to_pears), ChangeOutcome::KeyInUse);
    assert_eq!(harness.pq.find(moved).unwrap().unwrap().queue.as_str(), "pears");
    let again = harness.put_with("d", &PutOptions::new().unique("v"));
    assert!(again != moved, "its unique key is free in the source queue");
    // Jobs of several queues can have the same unique key. Only one of them is moved.
    let plums: Queue<_, Value> = harness.named("plums");
    let to_plums = Operation::Move { to: plums.name().clone() };
    assert_eq!(operate(harness, &to_plums, &Filter::default()), (2, 2));
    assert_eq!(plums.counts().unwrap().ready, 2);
    assert!(plums.get(Wait::No).unwrap().is_some());
}

fn archived_jobs_are_deleted_by_a_filter<F: Fixture>(harness: &Harness<F>) {
    dead(harness, "broken", PutOptions::new());
    harness.put("a");
    harness.settle(&harness.lease_one(), Outcome::Keep { result: None });
    harness.put("waits");
    assert_eq!(operate(harness, &Operation::Delete, &apples().state(JobState::Done)), (1, 0));
    let counts = harness.counts();
    assert_eq!((counts.ready, counts.dead, counts.done), (1, 1, 0));
    assert_eq!(operate(harness, &Operation::Delete, &apples()), (2, 0));
    assert_eq!(harness.counts().total(), 0);
}

fn held_jobs_are_passed_by_an_operation<F: Fixture>(harness: &Harness<F>) {
    let held = harness.put("held");
    let queue = harness.queue();
    harness
        .nested(&mut harness.connect(), |conn| {
            assert!(queue.on(conn).get()?.is_some());
            harness.put("free");
            assert_eq!(operate(harness, &Operation::Cancel, &apples()), (1, 1));
            crate::harness::roll_back::<()>()
        })
        .unwrap_err();
    assert_eq!(state(harness, held), JobState::Ready);
}

fn an_operation_is_one_entry_of_the_audit_log<F: Fixture>(harness: &Harness<F>) {
    harness.queue().put_many((0..1_500).map(|n| json!(n))).unwrap();
    let alice = harness.pq.acting_as("alice").unwrap();
    alice.operate(&Operation::Cancel, &apples().state(JobState::Ready), |_| ()).unwrap();
    alice.operate(&Operation::RunNow, &apples(), |_| ()).unwrap();
    let id = harness.put_with(1, &later());
    alice.change(id, &Operation::SetPriority { to: 5 }).unwrap();
    alice.change(id, &Operation::Retry).unwrap();
    let entries: Vec<_> = alice.audit(None, 10).unwrap().into_iter().map(|entry| entry.record).collect();
    assert_eq!(entries.len(), 2, "{entries:?}");
    assert_eq!((entries[1].action.as_str(), entries[1].count), ("cancel", 1_500));
    assert_eq!(entries[1].details.as_deref(), Some("state ready"));
    assert_eq!(entries[1].queue.as_deref(), Some("apples"));
    assert_eq!((entries[0].action.as_str(), entries[0].job, entries[0].count), ("set priority", Some(id), 1));
    assert_eq!((entries[0].queue.as_deref(), entries[0].details.as_deref()), (Some("apples"), Some("to 5")));
}
