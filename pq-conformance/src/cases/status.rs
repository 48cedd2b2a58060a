//! Worker status: heartbeats, stop requests through the store, cron entries fired by workers.

use std::time::Duration;

use pq_core::store::{Connect, Schedules, Workers};
use pq_core::{Heartbeat, Status, StopMode, Worker};

use super::cases;
use crate::Fixture;
use crate::harness::{CaseError, Harness, TIMEOUT, gate, run_beside, task, wait_until};

cases![
    a_worker_is_registered_while_it_runs: Own,
    a_worker_can_be_stopped_through_the_store: Own,
    a_stop_request_through_the_store_can_only_become_stricter: Own,
    a_worker_without_heartbeats_is_not_registered: Own,
    a_worker_fires_due_cron_entries: Own,
];

fn a_worker_is_registered_while_it_runs<F: Fixture>(harness: &Harness<F>) {
    let (handler, gate) = gate(harness);
    let id = task::<F, u32>(harness).call(&0).unwrap().id;
    let worker =
        Worker::new(&harness.pq).threads(3).heartbeat_every(Some(Duration::from_millis(5))).serve(handler);
    run_beside::<F>(worker, |control| {
        assert_eq!(gate.started.recv_timeout(TIMEOUT).unwrap(), 0);
        wait_until("the running job is reported", || {
            harness.pq.workers().unwrap().iter().any(|worker| !worker.status.running.is_empty())
        });
        let known = harness.pq.workers().unwrap();
        assert_eq!(known.len(), 1);
        assert_eq!((known[0].pid, known[0].threads, known[0].stop), (std::process::id(), 3, None));
        assert_eq!(known[0].queues, ["apples"]);
        assert!(!known[0].host.is_empty() && known[0].heartbeat_age < TIMEOUT);
        let running = &known[0].status.running[0];
        assert_eq!((running.id, running.queue.as_str(), running.attempt), (id, "apples", 1));
        gate.proceed.send(()).unwrap();
        wait_until("the completed job is reported", || {
            harness.pq.workers().unwrap()[0].status.report.done == 1
        });
        control.stop(StopMode::Drain);
    });
    assert!(harness.pq.workers().unwrap().is_empty());
}

fn a_worker_can_be_stopped_through_the_store<F: Fixture>(harness: &Harness<F>) {
    let worker = || {
        let handler = task::<F, u32>(harness).leased(|_, _| Ok::<_, CaseError>(()));
        Worker::new(&harness.pq).heartbeat_every(Some(Duration::from_millis(5))).serve(handler)
    };
    let (one, other) = (worker(), worker());
    run_beside::<F>(other, |other| {
        wait_until("the first worker is registered", || harness.pq.workers().unwrap().len() == 1);
        let stays = harness.pq.workers().unwrap()[0].id;
        run_beside::<F>(one, |_| {
            wait_until("both workers are registered", || harness.pq.workers().unwrap().len() == 2);
            let stops =
                harness.pq.workers().unwrap().into_iter().find(|worker| worker.id != stays).unwrap().id;
            assert!(harness.pq.stop_worker(stops, StopMode::Finish).unwrap());
            // `run_beside` returns when the stopped worker has ended.
        });
        assert_eq!(harness.pq.workers().unwrap().iter().map(|worker| worker.id).collect::<Vec<_>>(), [stays]);
        assert!(!harness.pq.stop_worker(pq_core::WorkerId(stays.0 + 100), StopMode::Abort).unwrap());
        other.stop(StopMode::Drain);
    });
}

fn a_stop_request_through_the_store_can_only_become_stricter<F: Fixture>(harness: &Harness<F>) {
    let store = harness.pq.store();
    let mut beat = Heartbeat {
        worker: None,
        host: "elsewhere".to_owned(),
        pid: 7,
        supervisor: 6,
        queues: vec![harness.queue().name().clone()],
        threads: 2,
        status: Status::default(),
    };
    let heartbeat = |beat: &Heartbeat| store.heartbeat(&mut harness.connect(), beat).unwrap();
    let first = heartbeat(&beat);
    assert_eq!(first.stop, None);
    beat.worker = Some(first.worker);
    for (requested, reported) in [
        (StopMode::Drain, StopMode::Drain),
        (StopMode::Finish, StopMode::Finish),
        (StopMode::Drain, StopMode::Finish),
        (StopMode::Abort, StopMode::Abort),
        (StopMode::Finish, StopMode::Abort),
    ] {
        assert!(harness.pq.stop_worker(first.worker, requested).unwrap());
        let reply = heartbeat(&beat);
        assert_eq!((reply.worker, reply.stop), (first.worker, Some(reported)));
    }
    let known = harness.pq.workers().unwrap().pop().unwrap();
    assert_eq!((known.host.as_str(), known.pid, known.supervisor, known.threads), ("elsewhere", 7, 6, 2));
}

fn a_worker_without_heartbeats_is_not_registered<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u32>(harness);
    task.call(&0).unwrap();
    let pq = harness.pq.clone();
    let handler = task.leased(move |_, _| {
        assert!(pq.workers().unwrap().is_empty());
        Ok::<_, CaseError>(())
    });
    let report = Worker::new(&harness.pq).heartbeat_every(None).serve(handler).run_until_empty().unwrap();
    assert_eq!((report.done, report.failed), (1, 0));
}

fn a_worker_fires_due_cron_entries<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u32>(harness);
    let every_second = task.cron("tick", "* * * * * *", &7).unwrap();
    let (store, mut conn) = (harness.pq.store(), harness.connect());
    let past = store.now(&mut conn).unwrap() - Duration::from_secs(2);
    store.set_cron(&mut conn, &every_second, Some(past)).unwrap();
    let handler = task.transactional(|_, job| {
        assert_eq!(job.data, 7);
        Ok::<_, CaseError>(())
    });
    let worker = Worker::new(&harness.pq).maintain_every(Duration::from_millis(5)).serve(handler);
    let report = worker.run_jobs(2).unwrap();
    assert_eq!((report.done, report.failed), (2, 0));
}
