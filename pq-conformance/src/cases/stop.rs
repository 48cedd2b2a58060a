//! The stop modes of a worker: drain, finish and abort.

use std::sync::Mutex;
use std::sync::mpsc::channel;

use pq_core::{Report, StopMode, Worker};

use super::cases;
use crate::Fixture;
use crate::harness::{CaseError, Harness, TIMEOUT, gate, run_beside, task, wait_until};

cases![
    drain_runs_all_waiting_jobs: Own,
    finish_gives_back_jobs_that_have_not_started: Own,
    abort_notifies_handlers_and_waits_for_them: Own,
    a_stop_mode_can_only_become_stricter: Own,
];

fn drain_runs_all_waiting_jobs<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u32>(harness);
    task.call_many((0..40).collect::<Vec<_>>()).unwrap();
    for handler in
        [task.leased(|_, _| Ok::<_, CaseError>(())), task.transactional(|_, _| Ok::<_, CaseError>(()))]
    {
        let worker = Worker::new(&harness.pq).serve(handler);
        worker.control().stop(StopMode::Drain);
        worker.run().unwrap();
        assert_eq!(harness.counts().live(), 0);
        task.call_many((0..40).collect::<Vec<_>>()).unwrap();
    }
}

fn finish_gives_back_jobs_that_have_not_started<F: Fixture>(harness: &Harness<F>) {
    let (handler, gate) = gate(harness);
    task::<F, u32>(harness).call_many((0..8).collect::<Vec<_>>()).unwrap();
    let report = run_beside::<F>(Worker::new(&harness.pq).batch(8, 8).serve(handler), |control| {
        assert_eq!(gate.started.recv_timeout(TIMEOUT).unwrap(), 0);
        control.stop(StopMode::Finish);
        gate.proceed.send(()).unwrap();
    });
    assert_eq!((report.done, report.given_back), (1, 7));
    let jobs = harness.lease(10, TIMEOUT);
    assert_eq!(jobs.len(), 7);
    assert!(jobs.iter().all(|job| job.attempt == 1));
}

fn abort_notifies_handlers_and_waits_for_them<F: Fixture>(harness: &Harness<F>) {
    let (start, started) = channel();
    let (proceed, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let handler = task::<F, u32>(harness).leased(move |context, job| {
        start.send(job.data).unwrap();
        while !context.is_aborting() {
            std::thread::yield_now();
        }
        wait.lock().unwrap().recv_timeout(TIMEOUT).map_err(|_| "no signal to proceed came")
    });
    task::<F, u32>(harness).call_many((0..8).collect::<Vec<_>>()).unwrap();
    let report = run_beside::<F>(Worker::new(&harness.pq).batch(8, 8).serve(handler), |control| {
        assert_eq!(started.recv_timeout(TIMEOUT).unwrap(), 0);
        control.stop(StopMode::Abort);
        // Jobs that have not started are given back while the handler runs. The running job stays leased.
        wait_until("the other jobs are given back", || harness.counts().ready == 7);
        assert_eq!((harness.counts().running, control.status().running.len()), (1, 1));
        proceed.send(()).unwrap();
    });
    assert_eq!((report.done, report.given_back, harness.counts().running), (1, 7, 0));
}

fn a_stop_mode_can_only_become_stricter<F: Fixture>(harness: &Harness<F>) {
    let (handler, _gate) = gate(harness);
    let worker = Worker::new(&harness.pq).serve(handler);
    let control = worker.control();
    for (requested, effective) in [
        (StopMode::Drain, StopMode::Drain),
        (StopMode::Finish, StopMode::Finish),
        (StopMode::Drain, StopMode::Finish),
        (StopMode::Abort, StopMode::Abort),
        (StopMode::Finish, StopMode::Abort),
    ] {
        control.stop(requested);
        assert_eq!(control.status().stopping, Some(effective));
    }
    task::<F, u32>(harness).call(&1).unwrap();
    assert_eq!(worker.run().unwrap(), Report::default());
    assert_eq!(harness.counts().ready, 1);
}
