//! The stop modes of a worker: drain, finish and abort.

use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use pq_core::{Filter, Outcome, Report, StopMode, Worker};

use super::cases;
use crate::Fixture;
use crate::harness::{CaseError, Harness, TIMEOUT, gate, run_beside, task, wait_until};

cases![
    drain_runs_all_waiting_jobs: Own,
    finish_gives_back_jobs_that_have_not_started: Own,
    abort_notifies_handlers_and_waits_for_them: Own,
    a_handler_that_is_asked_to_end_can_give_its_job_back: Own,
    an_error_of_a_handler_that_was_asked_to_end_is_not_counted: Own,
    a_stop_ends_at_its_deadline_although_a_handler_has_not: Own,
    handlers_are_asked_to_end_before_the_deadline_of_a_stop: Own,
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

/// Aborts a worker while a leased handler runs that ends like this once it is asked to.
fn abort_handler<F: Fixture>(
    harness: &Harness<F>,
    end: impl Fn() -> Result<Outcome, String> + Send + Sync + 'static,
) -> Report {
    let (start, started) = channel();
    let handler = task::<F, u32>(harness).leased(move |context, _| {
        start.send(()).unwrap();
        while !context.should_stop() {
            std::thread::yield_now();
        }
        end()
    });
    task::<F, u32>(harness).call(&1).unwrap();
    run_beside::<F>(Worker::new(&harness.pq).serve(handler), |control| {
        started.recv_timeout(TIMEOUT).unwrap();
        control.stop(StopMode::Abort);
    })
}

fn a_handler_that_is_asked_to_end_can_give_its_job_back<F: Fixture>(harness: &Harness<F>) {
    let report = abort_handler(harness, || Ok(Outcome::GiveBack));
    assert_eq!((report.given_back, report.failed), (1, 0));
    assert_eq!(harness.lease_one().attempt, 1);
}

fn an_error_of_a_handler_that_was_asked_to_end_is_not_counted<F: Fixture>(harness: &Harness<F>) {
    let report = abort_handler(harness, || Err("interrupted".to_owned()));
    assert_eq!((report.given_back, report.failed, harness.counts().dead), (1, 0, 0));
    assert_eq!(harness.lease_one().attempt, 1);
}

fn a_stop_ends_at_its_deadline_although_a_handler_has_not<F: Fixture>(harness: &Harness<F>) {
    for leased in [false, true] {
        let (start, started) = channel();
        let (proceed, wait) = channel::<()>();
        let wait = Mutex::new(wait);
        let work = move || {
            start.send(()).unwrap();
            wait.lock().unwrap().recv_timeout(TIMEOUT).map_err(|_| "no signal to proceed came")
        };
        let handler = match leased {
            true => task::<F, u32>(harness).leased(move |_, _| work()),
            false => task::<F, u32>(harness).transactional(move |_, _| work()),
        };
        task::<F, u32>(harness).call(&1).unwrap();
        let worker = Worker::new(&harness.pq).stop_within(Duration::from_millis(100)).serve(handler);
        let report = run_beside::<F>(worker, |control| {
            started.recv_timeout(TIMEOUT).unwrap();
            control.stop(StopMode::Finish);
        });
        assert_eq!(report, Report::default());
        proceed.send(()).unwrap();
        // The closure is dropped when the handler's thread has ended.
        assert_eq!(started.recv_timeout(TIMEOUT), Err(RecvTimeoutError::Disconnected));
        let counts = harness.counts();
        assert_eq!(
            (counts.running, counts.scheduled, counts.ready),
            if leased { (0, 1, 0) } else { (0, 0, 1) }
        );
        let job = harness.queue().list(&Filter::default(), 1).unwrap().remove(0);
        assert_eq!((job.attempt, job.crashes), (0, 0));
        assert_eq!(harness.clear(), 1);
    }
}

fn handlers_are_asked_to_end_before_the_deadline_of_a_stop<F: Fixture>(harness: &Harness<F>) {
    let (start, started) = channel();
    let handler = task::<F, u32>(harness).leased(move |context, _| {
        start.send(()).unwrap();
        while !context.should_stop() {
            std::thread::yield_now();
        }
        Err::<(), _>("interrupted")
    });
    task::<F, u32>(harness).call(&1).unwrap();
    let worker = Worker::new(&harness.pq).stop_within(Duration::from_secs(5)).serve(handler);
    let report = run_beside::<F>(worker, |control| {
        started.recv_timeout(TIMEOUT).unwrap();
        control.stop(StopMode::Finish);
    });
    assert_eq!((report.given_back, harness.counts().ready), (1, 1));
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
