//! Counters of what became of jobs.

use std::time::Duration;

use pq_core::store::{Admin, Connect, Counting, Schedules};
use pq_core::{
    Backoff, CallOptions, Counters, Cron, OnFailure, Outcome, QueueName, Retention, StopMode, TaskCounters,
    Wait, Worker, Workflow,
};
use serde_json::json;

use super::cases;
use crate::Fixture;
use crate::harness::{
    CaseError, Harness, TIMEOUT, both, gate, roll_back, run_beside, run_until_empty, task, wait_until,
};

cases![
    a_worker_counts_what_became_of_jobs_by_task: Own,
    a_worker_counts_how_long_jobs_waited_and_ran: Own,
    a_worker_counts_jobs_without_a_handler_under_no_task: Own,
    a_running_worker_stores_its_counters_regularly: Own,
    jobs_of_expired_leases_are_counted: Own,
    a_cancellation_is_counted_when_it_commits: Own,
    a_payload_that_cannot_be_decoded_is_counted_as_dead: Own,
    counters_are_merged_and_keep_their_sums: Own,
    counting_waits_for_no_transaction: Own,
    a_handle_counts_the_jobs_that_it_puts: Own,
    jobs_of_periodic_jobs_are_counted_as_puts: Own,
    calls_that_undo_jobs_are_counted_as_puts: Own,
];

/// Returns the counters of a task of the queue that most cases use.
fn counters<F: Fixture>(harness: &Harness<F>, task: &str) -> Counters {
    let all = harness.pq.counters().unwrap();
    let found = all.iter().find(|one| one.queue.as_str() == "apples" && one.task == task);
    found.map(|found| found.counters).unwrap_or_default()
}

/// Returns the counts: tried, done, failed, retried, dead, cancelled and lost.
fn counts(counters: &Counters) -> [u64; 7] {
    let Counters { tried, done, failed, retried, dead, cancelled, lost, .. } = *counters;
    [tried, done, failed, retried, dead, cancelled, lost]
}

fn a_worker_counts_what_became_of_jobs_by_task<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u32>(harness).max_retries(1).backoff(Backoff::fixed(Duration::ZERO));
    let handlers = both::<F, _, _, _>(&task, |job| match job.data {
        0 => Ok(Outcome::Complete),
        1 => Err(CaseError("broken".to_owned())),
        _ => Ok(Outcome::cancel("not wanted")),
    });
    for (round, handler) in (1..).zip(handlers) {
        task.call_many([0, 0, 0, 1, 2]).unwrap();
        run_until_empty(harness, handler);
        let found = counters(harness, "eat");
        assert_eq!(counts(&found), [5, 3, 2, 1, 1, 1, 0].map(|count| count * round));
        assert_eq!(found.run.count(), 6 * round);
    }
    let queue = harness.named::<u32>("pears");
    queue.put(&1).unwrap();
    let whole = queue.leased(|_, _| Ok::<_, CaseError>(()));
    Worker::new(&harness.pq).serve(whole).run_until_empty().unwrap();
    let all = harness.pq.counters().unwrap();
    let names: Vec<_> = all.iter().map(|one| (one.queue.as_str(), one.task.as_str())).collect();
    assert_eq!(names, [("apples", "eat"), ("pears", "")]);
    assert_eq!(all[1].counters.done, 1);
}

fn a_worker_counts_how_long_jobs_waited_and_ran<F: Fixture>(harness: &Harness<F>) {
    const RUN: Duration = Duration::from_millis(20);
    let task = task::<F, u32>(harness);
    let [transactional, leased] = both::<F, _, _, _>(&task, |_| {
        std::thread::sleep(RUN);
        Ok::<_, CaseError>(())
    });
    let hour = Duration::from_secs(3_600);
    let an_hour_ago = harness.pq.now().unwrap() - hour;
    task.call_with(&0, &CallOptions::new().expected_at(an_hour_ago)).unwrap();
    run_until_empty(harness, transactional);
    let first = counters(harness, "eat");
    assert_eq!([first.wait.count(), first.run.count(), first.late.count()], [1, 1, 1]);
    assert!(first.run.sum() >= RUN && first.run.sum() < TIMEOUT, "{first:?}");
    assert!(first.wait.sum() < TIMEOUT, "{first:?}");
    assert!(first.late.sum() > hour - TIMEOUT && first.late.sum() < hour + TIMEOUT, "{first:?}");
    // A job that is expected later is not late, and one that is not expected is not counted.
    task.call_with(&1, &CallOptions::new().expected_at("1h")).unwrap();
    task.call(&2).unwrap();
    run_until_empty(harness, leased);
    let all = counters(harness, "eat");
    assert_eq!([all.wait.count(), all.run.count(), all.late.count()], [3, 3, 2]);
    assert_eq!(all.late.sum(), first.late.sum());
    assert!(all.run.sum() >= 3 * RUN, "{all:?}");
}

/// A payload may contain any name, so it must not become the name of a counter.
fn a_worker_counts_jobs_without_a_handler_under_no_task<F: Fixture>(harness: &Harness<F>) {
    let known = task::<F, u32>(harness);
    harness.named::<()>("apples").task::<u32>("unknown").call(&1).unwrap();
    harness.queue().put(&json!("no call")).unwrap();
    let handler = known.leased(|_, _| Ok::<_, CaseError>(()));
    Worker::new(&harness.pq)
        .leave_unknown_tasks_for(Duration::ZERO)
        .serve(handler)
        .run_until_empty()
        .unwrap();
    let all = harness.pq.counters().unwrap();
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!((all[0].task.as_str(), counts(&all[0].counters)), ("", [0, 0, 2, 0, 2, 0, 0]));
    assert_eq!(all[0].counters.run.count(), 0, "nothing ran");
}

fn a_running_worker_stores_its_counters_regularly<F: Fixture>(harness: &Harness<F>) {
    let (handler, gate) = gate(harness);
    task::<F, u32>(harness).call_many([0, 1]).unwrap();
    let worker =
        Worker::new(&harness.pq).batch(1, 1).heartbeat_every(Some(Duration::from_millis(5))).serve(handler);
    run_beside::<F>(worker, |control| {
        gate.proceed.send(()).unwrap();
        wait_until("the first job is counted", || counters(harness, "eat").done == 1);
        gate.proceed.send(()).unwrap();
        control.stop(StopMode::Drain);
    });
    assert_eq!(counters(harness, "eat").done, 2, "the rest is counted at the end");
}

fn jobs_of_expired_leases_are_counted<F: Fixture>(harness: &Harness<F>) {
    let (task, queue) = (task::<F, u32>(harness), harness.queue());
    let ids = task.call_many([0, 1, 2]).unwrap();
    queue.put(&json!({"a": "\u{0}", "function": 1})).unwrap();
    let jobs = queue.lease(4, TIMEOUT, Wait::No).unwrap();
    queue.settle(&jobs[2], Outcome::Complete).unwrap();
    queue.cancel(ids[1].id).unwrap();
    harness.lose_lease(&jobs[0]);
    assert_eq!(counts(&counters(harness, "eat")), [0, 0, 0, 0, 0, 1, 2]);
    assert_eq!(counts(&counters(harness, "")), [0, 0, 0, 0, 0, 0, 1]);
}

fn a_cancellation_is_counted_when_it_commits<F: Fixture>(harness: &Harness<F>) {
    let (task, name) = (task::<F, u32>(harness), QueueName::new("apples").unwrap());
    let id = task.call(&0).unwrap().id;
    let store = harness.pq.store();
    let rolled_back: Result<(), CaseError> = store.with_connection(|conn| {
        store.transaction(conn, |conn| {
            store.cancel(conn, &name, id)?;
            roll_back()
        })
    });
    assert!(rolled_back.is_err());
    assert_eq!(counters(harness, "eat").cancelled, 0);
    harness.queue().cancel(id).unwrap();
    assert_eq!(counters(harness, "eat").cancelled, 1);
}

fn a_payload_that_cannot_be_decoded_is_counted_as_dead<F: Fixture>(harness: &Harness<F>) {
    harness.queue().put(&json!("text")).unwrap();
    assert!(harness.named::<u32>("apples").get(Wait::No).unwrap().is_none());
    assert_eq!(counts(&counters(harness, "")), [0, 0, 0, 0, 1, 0, 0]);
}

fn counters_are_merged_and_keep_their_sums<F: Fixture>(harness: &Harness<F>) {
    let store = harness.pq.store();
    let mut one = Counters::default();
    (one.done, one.dead) = (2, 1);
    one.wait.record(Duration::from_millis(7));
    let queue = QueueName::new("apples").unwrap();
    let counted =
        ["a", "b"].map(|task| TaskCounters { queue: queue.clone(), task: task.to_owned(), counters: one });
    for round in 1..=150 {
        let added: Result<(), CaseError> = store.with_connection(|conn| Ok(store.count(conn, &counted)?));
        added.unwrap();
        if round % 50 == 0 {
            harness.maintain();
            let found = counters(harness, "b");
            assert_eq!((found.done, found.dead), (2 * round, round));
            assert_eq!(found.wait.sum(), Duration::from_millis(7) * u32::try_from(round).unwrap());
            assert_eq!(harness.pq.counters().unwrap().len(), 2);
        }
    }
}

fn counting_waits_for_no_transaction<F: Fixture>(harness: &Harness<F>) {
    let (task, store) = (task::<F, u32>(harness), harness.pq.store());
    let ids = task.call_many([0, 1]).unwrap();
    let name = QueueName::new("apples").unwrap();
    harness
        .nested(&mut harness.connect(), |conn| {
            store.cancel(conn, &name, ids[0].id)?;
            run_until_empty(harness, task.leased(|_, _| Ok::<_, CaseError>(())));
            let found = counters(harness, "eat");
            assert_eq!((found.done, found.cancelled), (1, 0));
            Ok(())
        })
        .unwrap();
    assert_eq!(counters(harness, "eat").cancelled, 1);
}

fn a_handle_counts_the_jobs_that_it_puts<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u32>(harness);
    task.call(&1).unwrap();
    task.call_many([2, 3]).unwrap();
    assert_eq!(task.call_all([4, 5, 6]).unwrap(), 3);
    let once = CallOptions::new().unique("once");
    task.call_with(&7, &once).unwrap();
    task.call_with(&8, &once).unwrap();
    let pears = harness.named::<u32>("pears");
    harness.pq.transaction(|conn| pears.on(conn).put(&1)).unwrap();
    assert_eq!(harness.pq.counters().unwrap(), [], "a put waits for no counter");
    harness.pq.store_put_counts().unwrap();
    assert_eq!(put(harness), [("apples/eat".to_owned(), 7), ("pears/".to_owned(), 1)]);
}

/// Stores the counts of puts, and returns the jobs that were put, by queue and task.
fn put<F: Fixture>(harness: &Harness<F>) -> Vec<(String, u64)> {
    harness.pq.store_put_counts().unwrap();
    let counted = harness.pq.counters().unwrap().into_iter();
    counted.map(|one| (format!("{}/{}", one.queue, one.task), one.counters.put)).collect()
}

fn maintain<F: Fixture>(harness: &Harness<F>) {
    harness.pq.maintain(&Retention::default()).unwrap();
}

fn jobs_of_periodic_jobs_are_counted_as_puts<F: Fixture>(harness: &Harness<F>) {
    let pears = harness.named::<u32>("pears").cron("fruit", "@yearly", &1).unwrap();
    let meal = task::<F, u32>(harness).cron("meal", "@yearly", &1).unwrap();
    let broken = Cron { name: "a".to_owned(), expression: "often".to_owned(), ..pears.clone() };
    let (store, tick) = (harness.pq.store(), harness.pq.now().unwrap());
    let set_due = |cron: &Cron| store.set_cron(&mut harness.connect(), cron, Some(tick)).unwrap();
    set_due(&broken);
    maintain(harness);
    assert_eq!(put(harness), [], "its job was not put");
    set_due(&pears);
    set_due(&meal);
    maintain(harness);
    maintain(harness);
    assert!(harness.pq.run_cron("fruit").unwrap().is_some());
    assert!(harness.pq.run_cron("none").unwrap().is_none());
    assert_eq!(put(harness), [("apples/eat".to_owned(), 1), ("pears/".to_owned(), 2)]);
    // A worker puts them, too.
    store.advance_cron(&mut harness.connect(), "meal", None, Some(tick)).unwrap();
    let handler = task::<F, u32>(harness).leased(|_, _| Ok::<_, CaseError>(()));
    let worker = Worker::new(&harness.pq).maintain_every(Duration::from_millis(5)).serve(handler);
    run_beside::<F>(worker, |control| {
        wait_until("the tick is counted", || put(harness)[0].1 == 2);
        control.stop(StopMode::Drain);
    });
}

fn calls_that_undo_jobs_are_counted_as_puts<F: Fixture>(harness: &Harness<F>) {
    let (eat, wash) = (task::<F, u32>(harness), harness.named::<()>("pears").task::<u32>("wash"));
    let workflow = Workflow::new("meal").on_failure(OnFailure::Compensate);
    let workflow = workflow.job("first", &eat, &1).undo(&wash, &2).job("last", &eat, &3).after(["first"]);
    harness.pq.put_workflow(&workflow).unwrap();
    let of_graph = [("apples/eat".to_owned(), 2), ("pq.workflows/".to_owned(), 1)];
    assert_eq!(put(harness), of_graph);
    for outcome in [Outcome::Complete, Outcome::dead("broken")] {
        maintain(harness);
        harness.settle(&harness.queue().lease(1, TIMEOUT, Wait::No).unwrap()[0], outcome);
    }
    maintain(harness);
    assert!(put(harness).contains(&("pears/wash".to_owned(), 1)));
    assert_eq!(put(harness)[..1], of_graph[..1], "jobs that wait or end are put once");
}
