//! Explaining why a job does not run.

use std::time::Duration;

use pq_core::store::{Connect, Workers};
use pq_core::{
    Heartbeat, JobId, JobState, Limits, Operation, Outcome, PutOptions, Rate, Reason, Status, StopMode,
    Worker,
};
use serde_json::json;

use super::cases;
use crate::Fixture;
use crate::harness::{CaseError, Harness, TIMEOUT, gate, roll_back, run_beside, task, wait_until};

cases![
    an_unknown_job_is_explained: Own,
    a_job_that_has_ended_is_explained: Own,
    a_job_that_is_not_due_is_explained: Own,
    a_job_that_waits_between_attempts_is_explained: Own,
    a_job_of_a_paused_queue_is_explained: Own,
    a_job_whose_limit_is_reached_is_explained: Own,
    jobs_that_come_first_are_counted: Own,
    a_job_that_waits_for_its_serialization_key_is_explained: Own,
    a_job_that_a_transaction_holds_is_explained: Own,
    a_job_without_a_worker_is_explained: Own,
    a_job_whose_task_no_worker_knows_is_explained: Own,
    a_job_whose_workers_are_refused_is_explained: Own,
    a_running_job_is_explained_with_its_worker: Own,
    several_reasons_are_in_the_order_of_their_importance: Own,
];

fn explain<F: Fixture>(harness: &Harness<F>, id: JobId) -> Vec<Reason> {
    harness.pq.explain(id).unwrap()
}

fn an_unknown_job_is_explained<F: Fixture>(harness: &Harness<F>) {
    assert_eq!(explain(harness, JobId(7)), [Reason::Unknown]);
}

fn a_job_that_has_ended_is_explained<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put(1);
    harness.settle(&harness.lease_one(), Outcome::dead("on purpose"));
    let at = harness.pq.find(id).unwrap().unwrap().ended_at;
    assert_eq!(explain(harness, id), [Reason::Ended { state: JobState::Dead, at }]);
}

fn a_job_that_is_not_due_is_explained<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put_with(1, &PutOptions::new().schedule_at("1h"));
    let until = harness.pq.find(id).unwrap().unwrap().schedule_at.unwrap();
    assert_eq!(explain(harness, id), [Reason::NotDue { until }, Reason::NoWorker]);
}

fn a_job_that_waits_between_attempts_is_explained<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put(1);
    harness.settle(&harness.lease_one(), Outcome::retry(TIMEOUT * 100, "once more"));
    let until = harness.pq.find(id).unwrap().unwrap().schedule_at.unwrap();
    let reasons = explain(harness, id);
    assert_eq!(reasons, [Reason::BetweenAttempts { until, attempts: 1 }, Reason::NoWorker]);
    assert!(reasons[0].to_string().ends_with("for attempt 2"), "{}", reasons[0]);
}

fn a_job_of_a_paused_queue_is_explained<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put(1);
    harness.pq.acting_as("alice").unwrap().queue::<()>("apples").unwrap().pause().unwrap();
    let since = harness.counts().paused_at.unwrap();
    let reasons = explain(harness, id);
    assert_eq!(reasons, [Reason::Paused { since, by: Some("alice".to_owned()) }, Reason::NoWorker]);
    assert!(reasons[0].to_string().ends_with("by alice"), "{}", reasons[0]);
}

fn a_job_whose_limit_is_reached_is_explained<F: Fixture>(harness: &Harness<F>) {
    let group = Some("a".to_owned());
    let hourly = Rate::new(60, Duration::from_secs(3_600)).burst(2);
    harness.queue().set_limits(&Limits::new().running(2).running_per_group(1).rate_of("b", hourly)).unwrap();
    let put = |group: &str, cost| harness.put_with(1, &PutOptions::new().group(group).cost(cost));
    put("a", 1);
    let (second, other) = (put("a", 1), put("b", 2));
    let running = harness.lease_one();
    let full = Reason::Full { group, running: 1, limit: 1 };
    assert_eq!(explain(harness, second), [full.clone(), Reason::NoWorker]);
    assert_eq!(explain(harness, other), [Reason::NoWorker, Reason::Behind { jobs: 1 }]);
    assert_eq!(harness.lease(9, TIMEOUT).len(), 1);
    let full_queue = Reason::Full { group: None, running: 2, limit: 2 };
    assert_eq!(explain(harness, second), [full_queue, full, Reason::NoWorker]);
    harness.settle(&running, Outcome::Complete);
    let waits = explain(harness, put("b", 1));
    let Some(Reason::NoTokens { group, until }) = waits.get(1) else { panic!("{waits:?}") };
    let wait = *until - harness.pq.now().unwrap();
    assert_eq!((group.as_deref(), wait.num_seconds()), (Some("b"), 59));
}

fn jobs_that_come_first_are_counted<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put(1);
    harness.put("later");
    harness.named::<u8>("pears").put(&1).unwrap();
    harness.put_with(2, &PutOptions::new().priority(1).schedule_at("1h"));
    assert_eq!(explain(harness, id), [Reason::NoWorker]);
    harness.put_with(3, &PutOptions::new().priority(1));
    harness.put_with(4, &PutOptions::new().priority(1).serialization_key("k"));
    harness.put_with(5, &PutOptions::new().expected_at("2001-01-01T00:00:00Z"));
    harness.put_with(6, &PutOptions::new().priority(1).schedule_at("2001-01-01T00:00:00Z"));
    let reasons = explain(harness, id);
    assert_eq!(reasons, [Reason::NoWorker, Reason::Behind { jobs: 4 }]);
    assert_eq!(reasons[1].to_string(), "4 jobs of its queue come first");
}

fn a_job_that_waits_for_its_serialization_key_is_explained<F: Fixture>(harness: &Harness<F>) {
    let keyed = PutOptions::new().serialization_key("k");
    let [first, second, third] = [1, 2, 3].map(|n| harness.put_with(n, &keyed));
    let key = || "k".to_owned();
    let behind = explain(harness, second);
    assert_eq!(
        behind,
        [Reason::BehindOfKey { key: key(), job: first }, Reason::NoWorker, Reason::Behind { jobs: 1 }]
    );
    assert_eq!(harness.lease_one().id, first);
    let in_use = |job| Reason::KeyInUse { key: key(), job: Some(job), worker: None, session: None };
    assert_eq!(explain(harness, second), [in_use(first), Reason::NoWorker]);
    assert_eq!(
        explain(harness, third),
        [
            in_use(first),
            Reason::BehindOfKey { key: key(), job: second },
            Reason::NoWorker,
            Reason::Behind { jobs: 1 }
        ]
    );
}

fn a_job_that_a_transaction_holds_is_explained<F: Fixture>(harness: &Harness<F>) {
    let keyed = PutOptions::new().serialization_key("k");
    let (id, next) = (harness.put_with(1, &keyed), harness.put_with(2, &keyed));
    let queue = harness.queue();
    harness
        .nested(&mut harness.connect(), |conn| {
            assert!(queue.on(conn).get()?.is_some());
            let reasons = explain(harness, id);
            assert!(matches!(reasons[0], Reason::Held { .. }), "{reasons:?}");
            assert!(reasons[0].to_string().ends_with("holds it"), "{}", reasons[0]);
            let reasons = explain(harness, next);
            assert!(matches!(reasons[0], Reason::KeyInUse { session: Some(_), .. }), "{reasons:?}");
            roll_back::<()>()
        })
        .unwrap_err();
    assert_eq!(explain(harness, id), [Reason::NoWorker], "the rollback has returned it");
}

fn a_job_without_a_worker_is_explained<F: Fixture>(harness: &Harness<F>) {
    let id = harness.named::<()>("pears").put(&()).unwrap().id;
    assert_eq!(explain(harness, id), [Reason::NoWorker]);
    let handler = task::<F, u32>(harness).leased(|_, _| Ok::<_, CaseError>(()));
    let worker = Worker::new(&harness.pq).heartbeat_every(Some(Duration::from_millis(5))).serve(handler);
    run_beside::<F>(worker, |control| {
        wait_until("the worker is registered", || !harness.pq.workers().unwrap().is_empty());
        assert_eq!(explain(harness, id), [Reason::NoWorker], "it serves another queue");
        control.stop(StopMode::Finish);
    });
}

fn a_job_whose_task_no_worker_knows_is_explained<F: Fixture>(harness: &Harness<F>) {
    let handler = task::<F, u32>(harness).leased(|_, _| Ok::<_, CaseError>(()));
    let worker = Worker::new(&harness.pq).heartbeat_every(Some(Duration::from_millis(5))).serve(handler);
    // The jobs are not due, so that the worker does not take them.
    let later = pq_core::CallOptions::new().schedule_at("1h");
    let known = task::<F, u32>(harness).call_with(&1, &later).unwrap().id;
    let other = harness.named::<()>("apples").task::<u32>("unknown").call_with(&1, &later).unwrap().id;
    run_beside::<F>(worker, |control| {
        wait_until("the worker is registered", || !harness.pq.workers().unwrap().is_empty());
        assert_eq!(explain(harness, other)[1..], [Reason::TaskUnknown { task: "unknown".to_owned() }]);
        assert_eq!(explain(harness, known).len(), 1, "it is only not due");
        control.stop(StopMode::Finish);
    });
}

fn a_job_whose_workers_are_refused_is_explained<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put(1);
    let (store, error) = (harness.pq.store(), "permission denied".to_owned());
    let mut heartbeat = Heartbeat {
        worker: None,
        host: "here".to_owned(),
        pid: 1,
        supervisor: 1,
        queues: vec![harness.queue().name().clone()],
        threads: 1,
        status: Status::default(),
    };
    heartbeat.status.refused = Some(error.clone());
    let worker = store.with_connection(|conn| store.heartbeat(conn, &heartbeat)).unwrap().worker;
    assert_eq!(explain(harness, id), [Reason::PollsRefused { worker, error }]);
    heartbeat.status.refused = None;
    store.with_connection(|conn| store.heartbeat(conn, &heartbeat)).unwrap();
    assert_eq!(explain(harness, id), [Reason::Next], "another worker is not refused");
}

fn a_running_job_is_explained_with_its_worker<F: Fixture>(harness: &Harness<F>) {
    let (handler, gate) = gate(harness);
    let id = task::<F, u32>(harness).call(&0).unwrap().id;
    let begun = harness.pq.now().unwrap() - Duration::from_secs(1);
    let worker = Worker::new(&harness.pq).heartbeat_every(Some(Duration::from_millis(5))).serve(handler);
    run_beside::<F>(worker, |control| {
        gate.started.recv_timeout(TIMEOUT).unwrap();
        let mut reasons = Vec::new();
        wait_until("the worker reports that it runs the job", || {
            reasons = explain(harness, id);
            matches!(&reasons[..], [Reason::Running { worker: Some(_), lease_until: Some(_) }])
        });
        let [Reason::Running { worker: Some(worker), .. }] = &reasons[..] else { panic!("{reasons:?}") };
        assert_eq!((worker.pid, worker.id), (std::process::id(), harness.pq.workers().unwrap()[0].id));
        assert!(worker.since >= begun && worker.since <= harness.pq.now().unwrap(), "{worker:?}");
        gate.proceed.send(()).unwrap();
        control.stop(StopMode::Drain);
    });
}

fn several_reasons_are_in_the_order_of_their_importance<F: Fixture>(harness: &Harness<F>) {
    harness.put(json!("first"));
    let id = harness.put_with(1, &PutOptions::new().schedule_at("1h"));
    harness.queue().pause().unwrap();
    let since = harness.counts().paused_at.unwrap();
    let until = harness.pq.find(id).unwrap().unwrap().schedule_at.unwrap();
    let paused = Reason::Paused { since, by: None };
    assert_eq!(explain(harness, id), [paused.clone(), Reason::NotDue { until }, Reason::NoWorker]);
    harness.pq.change(id, &Operation::RunNow).unwrap();
    assert_eq!(explain(harness, id), [paused, Reason::NoWorker, Reason::Behind { jobs: 1 }]);
}
