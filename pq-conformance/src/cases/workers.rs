//! How workers run, and share queues.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::cases;
use super::tasks::{Seen, both, task};
use crate::Fixture;
use crate::harness::{Conn, Harness, TIMEOUT, Undo};
use pq_core::store::{Connect, Jobs};
use pq_core::{Cancelled, Control, Handler, PutOptions, Report, StopMode, Store, Wait, Worker};

cases![
    a_worker_that_ends_when_empty_leaves_nothing,
    a_worker_of_so_many_jobs_runs_so_many,
    an_idle_worker_is_woken_by_a_put,
    an_idle_worker_is_woken_when_a_job_falls_due,
    queues_are_worked_in_their_order,
    queues_are_worked_by_their_weight,
    jobs_that_are_worked_by_many_threads_are_worked_once,
    jobs_of_one_key_never_run_together_in_workers,
    threads_that_wait_for_one_key_are_never_all_asleep,
    a_thread_that_was_quick_with_all_keys_and_is_not_any_more_keeps_none_from_others,
    a_slow_handler_keeps_no_key_of_jobs_before_it,
    a_handler_that_is_slow_does_not_keep_others_waiting,
    a_transaction_whose_handlers_take_long_gives_the_rest_back,
    a_lease_lasts_as_long_as_its_handler,
    jobs_of_a_lost_lease_are_not_begun,
    a_worker_returns_the_jobs_of_one_that_died,
    a_worker_that_is_never_to_sweep_leaves_it_to_others,
    a_running_job_that_is_cancelled_is_told,
    a_status_shows_what_runs,
    settings_that_cannot_be_are_refused,
];

/// A handler of leased jobs that says when it has begun, and goes on when it is told.
pub(crate) struct Gate {
    pub(crate) begun: Receiver<u32>,
    pub(crate) go_on: Sender<()>,
}

pub(crate) fn gate<F: Fixture>(harness: &Harness<F>) -> (Handler<F::Store>, Gate) {
    let (begin, begun) = channel();
    let (go_on, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let handler = task::<F, u32>(harness).leased(move |_, job| {
        begin.send(job.data).unwrap();
        wait.lock().unwrap().recv_timeout(TIMEOUT).map_err(|_| "nobody told it to go on")
    });
    (handler, Gate { begun, go_on })
}

/// Stops a worker that nobody waits for any more: where a case fails, its threads would wait for it for ever.
struct Stops<'c, S: Store>(&'c Control<S>);

impl<S: Store> Drop for Stops<'_, S> {
    fn drop(&mut self) {
        self.0.stop(StopMode::Abort);
    }
}

/// Runs a worker beside `meanwhile`, and gives its report.
pub(crate) fn beside<F: Fixture>(
    worker: Worker<F::Store>,
    meanwhile: impl FnOnce(&Control<F::Store>),
) -> Report {
    let control = worker.control();
    std::thread::scope(|threads| {
        let working = threads.spawn(|| worker.run().unwrap());
        let _stops = Stops(&control);
        meanwhile(&control);
        working.join().unwrap()
    })
}

pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < TIMEOUT, "it never came to this: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn a_worker_that_ends_when_empty_leaves_nothing<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u32>(harness);
    task.call_many(&(0..300).collect::<Vec<_>>()).unwrap();
    for handler in [task.leased(|_, _| Ok::<_, Undo>(())), task.transactional(|_, _| Ok::<_, Undo>(()))] {
        let report = Worker::new(&harness.pq).threads(3).serve(handler).run_until_empty().unwrap();
        assert_eq!(report.failed, 0);
        assert_eq!(harness.counts(), pq_core::Counts::default());
    }
}

fn a_worker_of_so_many_jobs_runs_so_many<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u32>(harness);
    task.call_many(&(0..50).collect::<Vec<_>>()).unwrap();
    let report =
        Worker::new(&harness.pq).threads(3).serve(task.leased(|_, _| Ok::<_, Undo>(()))).run_jobs(17);
    assert_eq!((report.unwrap().done, harness.counts().ready), (17, 33));
    let transactional = task.transactional(|_, _| Ok::<_, Undo>(()));
    let report = Worker::new(&harness.pq).threads(3).serve(transactional).run_jobs(20);
    assert_eq!((report.unwrap().done, harness.counts().ready), (20, 13));
}

fn an_idle_worker_is_woken_by_a_put<F: Fixture>(harness: &Harness<F>) {
    let (handler, gate) = gate(harness);
    let task = task::<F, u32>(harness);
    beside::<F>(Worker::new(&harness.pq).threads(2).serve(handler), |control| {
        for n in 0..5 {
            task.call(&n).unwrap();
            assert_eq!(gate.begun.recv_timeout(TIMEOUT).unwrap(), n);
            gate.go_on.send(()).unwrap();
        }
        control.stop(StopMode::Drain);
    });
}

fn an_idle_worker_is_woken_when_a_job_falls_due<F: Fixture>(harness: &Harness<F>) {
    let (handler, gate) = gate(harness);
    beside::<F>(Worker::new(&harness.pq).serve(handler), |control| {
        let options = pq_core::CallOptions::new().schedule_at(Duration::from_millis(300));
        let put = Instant::now();
        task::<F, u32>(harness).call_with(&1, &options).unwrap();
        gate.begun.recv_timeout(TIMEOUT).unwrap();
        assert!(put.elapsed() >= Duration::from_millis(300), "it is early");
        gate.go_on.send(()).unwrap();
        control.stop(StopMode::Drain);
    });
}

fn queues_are_worked_in_their_order<F: Fixture>(harness: &Harness<F>) {
    let (first, second) = (harness.named::<u32>("first"), harness.named::<u32>("second"));
    let seen = Seen::new();
    let (one, other) = (seen.clone(), seen.clone());
    second.put_many(&[10, 11, 12]).unwrap();
    first.put_many(&[0, 1, 2]).unwrap();
    let again = first.clone();
    let handler = first.leased(move |_, job| {
        one.push(job.data);
        Ok::<_, Undo>(())
    });
    let other = second.leased(move |_, job| {
        other.push(job.data);
        // It comes while the second is worked, and goes before the rest of that.
        if job.data == 10 { again.put(&3).map(drop) } else { Ok(()) }
    });
    let report = Worker::new(&harness.pq).batch(1, 1).serve(handler).serve(other).run_until_empty().unwrap();
    assert_eq!(report.done, 7);
    assert_eq!(seen.all(), [0, 1, 2, 10, 3, 11, 12]);
}

fn queues_are_worked_by_their_weight<F: Fixture>(harness: &Harness<F>) {
    let (heavy, light) = (harness.named::<u32>("heavy"), harness.named::<u32>("light"));
    let seen = Seen::new();
    let mut worker = Worker::new(&harness.pq).batch(1, 1);
    for queue in [&heavy, &light] {
        queue.put_many(&vec![1; 40]).unwrap();
        let (seen, name) = (seen.clone(), queue.name().clone());
        worker = worker.serve(queue.transactional(move |_, _| {
            seen.push(name.as_str().to_owned());
            Ok::<_, Undo>(())
        }));
    }
    let report = worker.weight("heavy", 3).run_jobs(20).unwrap();
    assert_eq!(report.done, 20);
    let heavies = seen.all().iter().filter(|name| *name == "heavy").count();
    assert_eq!(heavies, 15, "three of four turns: {:?}", seen.all());
}

fn jobs_that_are_worked_by_many_threads_are_worked_once<F: Fixture>(harness: &Harness<F>) {
    const JOBS: u32 = 300;
    let task = task::<F, u32>(harness);
    let seen = Seen::new();
    let (one, other) = (seen.clone(), seen.clone());
    let leased = task.leased(move |_, job| {
        one.push(job.data);
        Ok::<_, Undo>(())
    });
    let transactional = task.transactional(move |_, job| {
        other.push(job.data);
        Ok::<_, Undo>(())
    });
    task.call_many(&(0..JOBS).collect::<Vec<_>>()).unwrap();
    let workers = [leased, transactional].map(|handler| Worker::new(&harness.pq).threads(2).serve(handler));
    std::thread::scope(|threads| {
        for worker in workers {
            threads.spawn(|| worker.run_until_empty().unwrap());
        }
    });
    let mut all = seen.all();
    all.sort_unstable();
    assert_eq!(all, (0..JOBS).collect::<Vec<_>>());
}

fn jobs_of_one_key_never_run_together_in_workers<F: Fixture>(harness: &Harness<F>) {
    const JOBS: u32 = 80;
    let task = task::<F, u32>(harness).serialize_by(|n| (n % 3).to_string());
    task.call_many(&(0..JOBS).collect::<Vec<_>>()).unwrap();
    let running = Arc::new(Mutex::new(HashMap::<String, u32>::new()));
    let done = Arc::new(AtomicU32::new(0));
    let run = {
        let done = Arc::clone(&done);
        move |job: &pq_core::RawJob| {
            let key = job.serialization_key.as_ref().unwrap().as_str().to_owned();
            assert_eq!(running.lock().unwrap().insert(key.clone(), 1), None, "two jobs of key {key} run");
            std::thread::yield_now();
            running.lock().unwrap().remove(&key);
            done.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Undo>(())
        }
    };
    let other = run.clone();
    let handlers = [task.leased(move |_, job| run(&job)), task.transactional(move |_, job| other(&job))];
    std::thread::scope(|threads| {
        for handler in handlers {
            let worker = Worker::new(&harness.pq).threads(2).batch(1, 4).serve(handler);
            let (control, done) = (worker.control(), Arc::clone(&done));
            threads.spawn(|| assert_eq!(worker.run().unwrap().failed, 0));
            threads.spawn(move || {
                until("all are done", || done.load(Ordering::Relaxed) == JOBS);
                control.stop(StopMode::Drain);
            });
        }
    });
    assert_eq!(harness.counts(), pq_core::Counts::default());
}

fn threads_that_wait_for_one_key_are_never_all_asleep<F: Fixture>(harness: &Harness<F>) {
    const JOBS: u32 = 200;
    let task = task::<F, u32>(harness).serialize_by(|_| "one".to_owned());
    let handlers = [task.leased(|_, _| Ok::<_, Undo>(())), task.transactional(|_, _| Ok::<_, Undo>(()))];
    for handler in handlers {
        task.call_many(&(0..JOBS).collect::<Vec<_>>()).unwrap();
        let begun = Instant::now();
        let worker = Worker::new(&harness.pq).threads(4).serve(handler);
        assert_eq!(worker.run_jobs(JOBS.into()).unwrap().done, u64::from(JOBS));
        assert!(begun.elapsed() < TIMEOUT, "they went on by the poll");
    }
}

fn a_thread_that_was_quick_with_all_keys_and_is_not_any_more_keeps_none_from_others<F: Fixture>(
    harness: &Harness<F>,
) {
    const QUICK: u32 = 60;
    let task = task::<F, u32>(harness).serialize_by(|n| (n % 10).to_string());
    let (begin, begun) = channel();
    let (go_on, wait) = channel();
    let wait = Arc::new(Mutex::new(wait));
    let handlers = both::<F, _, _, _>(&task, move |job| match job.data {
        QUICK => {
            begin.send(()).map_err(|_| "nobody waits")?;
            wait.lock().unwrap().recv_timeout(TIMEOUT).map_err(|_| "the other key was kept from others")
        }
        n if n > QUICK => go_on.send(()).map_err(|_| "nobody waits"),
        _ => Ok(()),
    });
    for handler in handlers {
        task.call_many(&(0..QUICK).collect::<Vec<_>>()).unwrap();
        beside::<F>(Worker::new(&harness.pq).threads(2).serve(handler), |control| {
            until("the quick ones are done", || control.status().report.done == u64::from(QUICK));
            task.call(&QUICK).unwrap();
            begun.recv_timeout(TIMEOUT).unwrap();
            task.call(&(QUICK + 1)).unwrap();
            until("all are done", || control.status().report.done == u64::from(QUICK) + 2);
            control.stop(StopMode::Drain);
        });
    }
}

fn a_slow_handler_keeps_no_key_of_jobs_before_it<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u32>(harness).serialize_by(|n| (n % 2).to_string());
    task.call_many(&[1, 2, 3]).unwrap();
    let (ran, others) = channel();
    let others = Mutex::new(others);
    // Where one thread takes the first two, the second of them ends when the third has run.
    let handler = task.leased(move |_, job| match job.data {
        2 => others.lock().unwrap().recv_timeout(TIMEOUT).map_err(|_| "the key was kept"),
        3 => ran.send(()).map_err(|_| "nobody waits"),
        _ => Ok(()),
    });
    beside::<F>(Worker::new(&harness.pq).threads(2).batch(2, 2).serve(handler), |control| {
        until("all are done", || control.status().report.done == 3);
        control.stop(StopMode::Drain);
    });
}

fn a_handler_that_is_slow_does_not_keep_others_waiting<F: Fixture>(harness: &Harness<F>) {
    let (handler, gate) = gate(harness);
    let task = task::<F, u32>(harness);
    task.call_many(&[0, 1, 2, 3]).unwrap();
    // One thread takes all of them, and its first handler does not end.
    beside::<F>(Worker::new(&harness.pq).batch(4, 4).serve(handler), |control| {
        assert_eq!(gate.begun.recv_timeout(TIMEOUT).unwrap(), 0);
        until("the others are given back", || harness.counts().ready == 3);
        assert_eq!(harness.lease_one().attempt, 1, "they count as not taken");
        control.stop(StopMode::Finish);
        gate.go_on.send(()).unwrap();
    });
    assert_eq!(harness.counts().live(), 3);
}

fn a_transaction_whose_handlers_take_long_gives_the_rest_back<F: Fixture>(harness: &Harness<F>) {
    let (task, pears) = (task::<F, u32>(harness), harness.named::<Value>("pears"));
    for touches in [false, true] {
        task.call_many(&[0, 1, 2, 3]).unwrap();
        let pears = pears.clone();
        let handler = task.transactional(move |conn: &mut Conn<F>, job| {
            if touches {
                pears.on(conn).put(&json!(job.data))?;
            }
            if job.data == 1 {
                std::thread::sleep(Duration::from_millis(300));
            }
            Ok::<_, Undo>(())
        });
        let report = Worker::new(&harness.pq).batch(4, 4).serve(handler).run_until_empty().unwrap();
        assert_eq!((report.done, report.given_back), (4, 2), "{report:?}");
    }
    assert_eq!(pears.counts().unwrap().ready, 4);
}

fn a_lease_lasts_as_long_as_its_handler<F: Fixture>(harness: &Harness<F>) {
    let seen = Seen::new();
    let note = seen.clone();
    let handler = task::<F, u32>(harness).leased(move |context, job| {
        note.push(job.attempt);
        std::thread::sleep(Duration::from_millis(700));
        context.extend_lease().map_err(|error| error.to_string())
    });
    task::<F, u32>(harness).call(&1).unwrap();
    let lease = Duration::from_millis(200);
    let worker = Worker::new(&harness.pq).threads(2).lease(lease).serve(handler);
    let report = worker.maintain_every(Duration::from_millis(20)).run_jobs(1).unwrap();
    assert_eq!((report.done, report.lost, seen.all()), (1, 0, vec![1]));
}

fn jobs_of_a_lost_lease_are_not_begun<F: Fixture>(harness: &Harness<F>) {
    let seen = Seen::new();
    let (note, pq) = (seen.clone(), harness.pq.clone());
    let task = task::<F, u32>(harness).max_retries(3);
    let handler = task.leased(move |context, job| {
        note.push((job.data, job.attempt));
        if (job.data, job.attempt) == (0, 1) {
            // As if the process had slept past its lease, and another one had swept.
            let (store, leases) = (pq.store(), [job.claim.lease().unwrap()]);
            store.with_connection(|conn| store.extend(conn, &leases, Duration::ZERO))?;
            while pq.maintain(&pq_core::Retention::default())?.is_none() {}
            while !context.is_lease_lost() {
                std::thread::yield_now();
            }
        }
        Ok::<_, crate::harness::Error<F>>(())
    });
    task.call_many(&[0, 1, 2]).unwrap();
    let worker = Worker::new(&harness.pq).batch(3, 3).lease(Duration::from_millis(150)).serve(handler);
    let report = worker.run_until_empty().unwrap();
    assert_eq!(seen.all(), [(0, 1), (0, 2), (1, 2), (2, 2)]);
    assert_eq!((report.done, report.lost), (3, 3));
}

fn a_worker_returns_the_jobs_of_one_that_died<F: Fixture>(harness: &Harness<F>) {
    let (handler, gate) = gate(harness);
    task::<F, u32>(harness).call(&7).unwrap();
    // Whoever took it says nothing more.
    assert_eq!(harness.lease(1, Duration::from_millis(50)).len(), 1);
    let worker =
        Worker::new(&harness.pq).maintain_every(Duration::from_millis(20)).serve(handler.max_retries(1));
    task::<F, u32>(harness).max_retries(1).call(&8).unwrap();
    let report = beside::<F>(worker, |control| {
        gate.go_on.send(()).unwrap();
        gate.go_on.send(()).unwrap();
        assert_eq!(gate.begun.recv_timeout(TIMEOUT).unwrap(), 8);
        // Its call allows no second attempt, so it is given up.
        until("it is dead", || harness.counts().dead == 1);
        control.stop(StopMode::Drain);
    });
    assert_eq!((report.done, report.dead), (1, 1));
}

fn a_worker_that_is_never_to_sweep_leaves_it_to_others<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u32>(harness);
    task.call(&1).unwrap();
    assert_eq!(harness.lease(1, Duration::from_millis(1)).len(), 1);
    task.call(&2).unwrap();
    // Long enough for a worker that sweeps to have done so.
    let handler = task.leased(|_, _| {
        std::thread::sleep(Duration::from_millis(50));
        Ok::<_, Undo>(())
    });
    let worker = Worker::new(&harness.pq).maintain_every(Duration::MAX).serve(handler);
    assert_eq!(worker.run_jobs(1).unwrap().done, 1);
    assert_eq!((harness.counts().leased, harness.maintain().returned), (1, 1));
}

fn a_running_job_that_is_cancelled_is_told<F: Fixture>(harness: &Harness<F>) {
    let (begin, begun) = channel();
    let handler = task::<F, u32>(harness).max_retries(9).leased(move |context, _| {
        begin.send(()).unwrap();
        let since = Instant::now();
        while !context.is_cancelled() && since.elapsed() < TIMEOUT {
            std::thread::sleep(Duration::from_millis(1));
        }
        Err::<(), _>("it was told")
    });
    let id = task::<F, u32>(harness).max_retries(9).call(&1).unwrap().id;
    let worker = Worker::new(&harness.pq).lease(Duration::from_millis(300)).serve(handler);
    beside::<F>(worker, |control| {
        begun.recv_timeout(TIMEOUT).unwrap();
        assert_eq!(harness.queue().cancel(id).unwrap(), Cancelled::Asked);
        until("it is cancelled", || harness.counts().cancelled == 1);
        control.stop(StopMode::Drain);
    });
    assert_eq!(harness.counts().live(), 0);
}

fn a_status_shows_what_runs<F: Fixture>(harness: &Harness<F>) {
    let (handler, gate) = gate(harness);
    let ids: Vec<_> = task::<F, u32>(harness).call_many(&[0, 1]).unwrap();
    beside::<F>(Worker::new(&harness.pq).batch(1, 1).serve(handler), |control| {
        assert_eq!(gate.begun.recv_timeout(TIMEOUT).unwrap(), 0);
        let status = control.status();
        assert_eq!((status.waiting, status.running.len(), status.stopping), (Some(1), 1, None));
        let running = &status.running[0];
        assert_eq!((running.id, running.task.as_deref(), running.attempt), (ids[0].id, Some("eat"), 1));
        assert!(running.age < TIMEOUT);
        gate.go_on.send(()).unwrap();
        gate.go_on.send(()).unwrap();
        until("both are counted", || control.status().report.done == 2);
        control.stop(StopMode::Drain);
    });
}

fn settings_that_cannot_be_are_refused<F: Fixture>(harness: &Harness<F>) {
    let apples = harness.named::<()>("apples");
    let handler = || apples.task::<()>("eat").leased(|_, _| Ok::<_, Undo>(()));
    let raw = || apples.leased(|_, _| Ok::<_, Undo>(()));
    let worker = || Worker::new(&harness.pq).serve(handler());
    let wrong = [
        (Worker::new(&harness.pq), "needs a handler"),
        (worker().threads(0), "at least one thread"),
        (worker().batch(0, 5), "cannot be"),
        (worker().batch(5, 4), "cannot be"),
        (worker().lease(Duration::ZERO), "10 ms"),
        (worker().serve(handler()), "two handlers"),
        (worker().serve(raw()), "either"),
        (worker().weight("pears", 1), "no handler"),
        (worker().weight("apples", 0), "never be served"),
    ];
    harness.queue().put_with(&json!(1), &PutOptions::new()).unwrap();
    for (worker, reason) in wrong {
        let refused = worker.run_until_empty().unwrap_err();
        let refused = harness.fixture.core_error(&refused).unwrap().to_string();
        assert!(refused.contains(reason), "{refused}");
    }
    assert!(harness.queue().get(Wait::No).unwrap().is_some());
}
