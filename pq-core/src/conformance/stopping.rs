//! How workers stop.

use std::sync::Mutex;
use std::sync::mpsc::channel;

use super::scene::{PATIENCE, Scene, Undo};
use super::tasks::task;
use super::working::{beside, gate, until};
use super::{Fixture, cases};
use crate::{Report, StopMode, Worker};

cases![
    told_to_stop_when_nothing_waits_it_works_what_is_there,
    told_to_stop_when_the_running_jobs_end_it_gives_back_the_rest,
    told_to_stop_now_it_tells_its_handlers_and_waits_for_them,
    a_stop_only_gets_sterner,
];

fn told_to_stop_when_nothing_waits_it_works_what_is_there<F: Fixture>(scene: &Scene<F>) {
    let task = task::<F, u32>(scene);
    task.call_many(&(0..40).collect::<Vec<_>>()).unwrap();
    for handler in [task.leased(|_, _| Ok::<_, Undo>(())), task.transactional(|_, _| Ok::<_, Undo>(()))] {
        let worker = Worker::new(&scene.pq).serve(handler);
        worker.control().stop(StopMode::Drain);
        worker.run().unwrap();
        assert_eq!(scene.counts().live(), 0);
        task.call_many(&(0..40).collect::<Vec<_>>()).unwrap();
    }
}

fn told_to_stop_when_the_running_jobs_end_it_gives_back_the_rest<F: Fixture>(scene: &Scene<F>) {
    let (handler, gate) = gate(scene);
    task::<F, u32>(scene).call_many(&(0..8).collect::<Vec<_>>()).unwrap();
    let report = beside::<F>(Worker::new(&scene.pq).batch(8, 8).serve(handler), |control| {
        assert_eq!(gate.begun.recv_timeout(PATIENCE).unwrap(), 0);
        control.stop(StopMode::Finish);
        gate.go_on.send(()).unwrap();
    });
    assert_eq!((report.done, report.given_back), (1, 7));
    let jobs = scene.lease(10, PATIENCE);
    assert_eq!(jobs.len(), 7);
    assert!(jobs.iter().all(|job| job.attempt == 1));
}

fn told_to_stop_now_it_tells_its_handlers_and_waits_for_them<F: Fixture>(scene: &Scene<F>) {
    let (begin, begun) = channel();
    let (go_on, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let handler = task::<F, u32>(scene).leased(move |context, job| {
        begin.send(job.data).unwrap();
        while !context.is_aborting() {
            std::thread::yield_now();
        }
        wait.lock().unwrap().recv_timeout(PATIENCE).map_err(|_| "nobody told it to go on")
    });
    task::<F, u32>(scene).call_many(&(0..8).collect::<Vec<_>>()).unwrap();
    let report = beside::<F>(Worker::new(&scene.pq).batch(8, 8).serve(handler), |control| {
        assert_eq!(begun.recv_timeout(PATIENCE).unwrap(), 0);
        control.stop(StopMode::Abort);
        // What is not begun is given back while the handler still runs, and what runs is still held.
        until("the rest is given back", || scene.counts().ready == 7);
        assert_eq!((scene.counts().leased, control.status().running.len()), (1, 1));
        go_on.send(()).unwrap();
    });
    assert_eq!((report.done, report.given_back, scene.counts().leased), (1, 7, 0));
}

fn a_stop_only_gets_sterner<F: Fixture>(scene: &Scene<F>) {
    let (handler, _gate) = gate(scene);
    let worker = Worker::new(&scene.pq).serve(handler);
    let control = worker.control();
    for (told, is) in [
        (StopMode::Drain, StopMode::Drain),
        (StopMode::Finish, StopMode::Finish),
        (StopMode::Drain, StopMode::Finish),
        (StopMode::Abort, StopMode::Abort),
        (StopMode::Finish, StopMode::Abort),
    ] {
        control.stop(told);
        assert_eq!(control.status().stopping, Some(is));
    }
    task::<F, u32>(scene).call(&1).unwrap();
    assert_eq!(worker.run().unwrap(), Report::default());
    assert_eq!(scene.counts().ready, 1);
}
