//! How workers run jobs and share queues, keys and leases.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pq_core::store::{Connect, Jobs};
use pq_core::{CallOptions, CancelOutcome, Outcome, PutOptions, StopMode, Wait, Worker};
use serde_json::{Value, json};

use super::cases;
use crate::Fixture;
use crate::harness::{
    CaseError, Conn, Error, Harness, SHORT_LEASE, Seen, TIMEOUT, both, gate, run_beside, task,
    wait_for_extension, wait_until,
};

cases![
    run_until_empty_runs_all_jobs: Own,
    run_until_empty_first_runs_the_jobs_of_expired_leases: Own,
    run_jobs_runs_the_requested_number_of_jobs: Own,
    a_put_wakes_an_idle_worker: Own,
    an_idle_worker_wakes_when_a_job_falls_due: Own,
    queues_are_served_in_registration_order: Own,
    queues_are_served_by_weight: Own,
    many_threads_run_each_job_once: Own,
    worker_threads_never_run_jobs_of_one_key_concurrently: Own,
    threads_that_wait_for_one_key_wake_in_turn: Own,
    a_slow_job_does_not_block_the_other_keys_of_its_thread: Own,
    a_slow_handler_releases_the_keys_of_earlier_jobs: Own,
    a_slow_handler_gives_back_the_rest_of_its_batch: Own,
    a_slow_transactional_handler_gives_back_the_rest_of_its_batch: Own,
    a_lease_is_extended_while_its_handler_runs: Own,
    jobs_of_a_lost_lease_are_not_started: Own,
    a_worker_begins_few_jobs_of_a_lost_lease_at_a_time: Own,
    a_worker_returns_the_jobs_of_a_dead_worker: Own,
    a_worker_with_maintenance_disabled_returns_no_jobs: Own,
    a_running_job_is_notified_of_its_cancellation: Own,
    the_status_lists_running_jobs: Own,
    the_status_counts_buffered_jobs_of_both_kinds_of_handler: Own,
    invalid_settings_are_refused: Own,
];

fn run_until_empty_runs_all_jobs<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u32>(harness);
    task.call_many((0..300).collect::<Vec<_>>()).unwrap();
    for handler in
        [task.leased(|_, _| Ok::<_, CaseError>(())), task.transactional(|_, _| Ok::<_, CaseError>(()))]
    {
        let report = Worker::new(&harness.pq).threads(3).serve(handler).run_until_empty().unwrap();
        assert_eq!(report.failed, 0);
        assert_eq!(harness.counts().total(), 0);
    }
}

/// Maintenance cannot return the expired lease before the transaction that has locked it ends. A live lease of another
/// worker does not keep the run from ending.
fn run_until_empty_first_runs_the_jobs_of_expired_leases<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u32>(harness).max_retries(1);
    task.call_many([0, 1]).unwrap();
    let (queue, expired) = (harness.queue(), harness.queue().lease(2, Duration::ZERO, Wait::No).unwrap());
    task.call(&2).unwrap();
    assert_eq!(queue.lease(1, TIMEOUT, Wait::No).unwrap().len(), 1);
    let worker = Worker::new(&harness.pq).serve(task.leased(|_, _| Ok::<_, CaseError>(())));
    let report = std::thread::scope(|threads| {
        let running = harness.nested(&mut harness.connect(), |conn| {
            queue.on(conn).settle(&expired[0], Outcome::GiveBack)?;
            let (report, ended) = channel();
            threads.spawn(move || report.send(worker.run_until_empty().unwrap()));
            assert!(ended.recv_timeout(Duration::from_millis(100)).is_err(), "the run ended before its jobs");
            Ok(ended)
        });
        running.unwrap().recv_timeout(TIMEOUT).unwrap()
    });
    assert_eq!((report.done, queue.counts().unwrap().running), (2, 1));
}

fn run_jobs_runs_the_requested_number_of_jobs<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u32>(harness);
    task.call_many((0..50).collect::<Vec<_>>()).unwrap();
    let report =
        Worker::new(&harness.pq).threads(3).serve(task.leased(|_, _| Ok::<_, CaseError>(()))).run_jobs(17);
    assert_eq!((report.unwrap().done, harness.counts().ready), (17, 33));
    let transactional = task.transactional(|_, _| Ok::<_, CaseError>(()));
    let report = Worker::new(&harness.pq).threads(3).serve(transactional).run_jobs(20);
    assert_eq!((report.unwrap().done, harness.counts().ready), (20, 13));
}

fn a_put_wakes_an_idle_worker<F: Fixture>(harness: &Harness<F>) {
    let (handler, gate) = gate(harness);
    let task = task::<F, u32>(harness);
    run_beside::<F>(Worker::new(&harness.pq).threads(2).serve(handler), |control| {
        for n in 0..5 {
            task.call(&n).unwrap();
            assert_eq!(gate.started.recv_timeout(TIMEOUT).unwrap(), n);
            gate.proceed.send(()).unwrap();
        }
        control.stop(StopMode::Drain);
    });
}

fn an_idle_worker_wakes_when_a_job_falls_due<F: Fixture>(harness: &Harness<F>) {
    let (handler, gate) = gate(harness);
    run_beside::<F>(Worker::new(&harness.pq).serve(handler), |control| {
        let options = pq_core::CallOptions::new().schedule_at(Duration::from_millis(200));
        let put = Instant::now();
        task::<F, u32>(harness).call_with(&1, &options).unwrap();
        gate.started.recv_timeout(TIMEOUT).unwrap();
        assert!(put.elapsed() >= Duration::from_millis(200), "the worker woke too early");
        gate.proceed.send(()).unwrap();
        control.stop(StopMode::Drain);
    });
}

fn queues_are_served_in_registration_order<F: Fixture>(harness: &Harness<F>) {
    let (first, second) = (harness.named::<u32>("first"), harness.named::<u32>("second"));
    let seen = Seen::new();
    let (one, other) = (seen.clone(), seen.clone());
    second.put_many([10, 11, 12]).unwrap();
    first.put_many([0, 1, 2]).unwrap();
    let again = first.clone();
    let handler = first.leased(move |_, job| {
        one.push(job.data);
        Ok::<_, CaseError>(())
    });
    let other = second.leased(move |_, job| {
        other.push(job.data);
        // This job is put while the second queue is served, and precedes the rest of that queue.
        if job.data == 10 { again.put(&3).map(drop) } else { Ok(()) }
    });
    let report = Worker::new(&harness.pq).batch(1, 1).serve(handler).serve(other).run_until_empty().unwrap();
    assert_eq!(report.done, 7);
    assert_eq!(seen.all(), [0, 1, 2, 10, 3, 11, 12]);
}

fn queues_are_served_by_weight<F: Fixture>(harness: &Harness<F>) {
    let (heavy, light) = (harness.named::<u32>("heavy"), harness.named::<u32>("light"));
    let seen = Seen::new();
    let mut worker = Worker::new(&harness.pq).batch(1, 1);
    for queue in [&heavy, &light] {
        queue.put_many(vec![1; 40]).unwrap();
        let (seen, name) = (seen.clone(), queue.name().clone());
        worker = worker.serve(queue.transactional(move |_, _| {
            seen.push(name.as_str().to_owned());
            Ok::<_, CaseError>(())
        }));
    }
    let report = worker.weight("heavy", 3).run_jobs(20).unwrap();
    assert_eq!(report.done, 20);
    let heavies = seen.all().iter().filter(|name| *name == "heavy").count();
    assert_eq!(heavies, 15, "three turns of four: {:?}", seen.all());
}

fn many_threads_run_each_job_once<F: Fixture>(harness: &Harness<F>) {
    const JOBS: u32 = 300;
    let task = task::<F, u32>(harness);
    let seen = Seen::new();
    let (one, other) = (seen.clone(), seen.clone());
    let leased = task.leased(move |_, job| {
        one.push(job.data);
        Ok::<_, CaseError>(())
    });
    let transactional = task.transactional(move |_, job| {
        other.push(job.data);
        Ok::<_, CaseError>(())
    });
    task.call_many((0..JOBS).collect::<Vec<_>>()).unwrap();
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

fn worker_threads_never_run_jobs_of_one_key_concurrently<F: Fixture>(harness: &Harness<F>) {
    const JOBS: u32 = 80;
    let task = task::<F, u32>(harness).serialize_by(|n| (n % 3).to_string());
    task.call_many((0..JOBS).collect::<Vec<_>>()).unwrap();
    let running = Arc::new(Mutex::new(HashMap::<String, u32>::new()));
    let done = Arc::new(AtomicU32::new(0));
    let run = {
        let done = Arc::clone(&done);
        move |job: &pq_core::Claim| {
            let key = job.serialization_key.as_ref().unwrap().as_str().to_owned();
            assert_eq!(
                running.lock().unwrap().insert(key.clone(), 1),
                None,
                "two jobs of key {key} run at once"
            );
            std::thread::yield_now();
            running.lock().unwrap().remove(&key);
            done.fetch_add(1, Ordering::Relaxed);
            Ok::<_, CaseError>(())
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
                wait_until("all jobs are done", || done.load(Ordering::Relaxed) == JOBS);
                control.stop(StopMode::Drain);
            });
        }
    });
    assert_eq!(harness.counts().total(), 0);
}

fn threads_that_wait_for_one_key_wake_in_turn<F: Fixture>(harness: &Harness<F>) {
    const JOBS: u32 = 50;
    let task = task::<F, u32>(harness).serialize_by(|_| "one".to_owned());
    let handlers =
        [task.leased(|_, _| Ok::<_, CaseError>(())), task.transactional(|_, _| Ok::<_, CaseError>(()))];
    for handler in handlers {
        task.call_many((0..JOBS).collect::<Vec<_>>()).unwrap();
        let begun = Instant::now();
        let worker = Worker::new(&harness.pq).threads(4).serve(handler);
        assert_eq!(worker.run_jobs(JOBS.into()).unwrap().done, u64::from(JOBS));
        assert!(begun.elapsed() < TIMEOUT, "the threads continued only by polling");
    }
}

fn a_slow_job_does_not_block_the_other_keys_of_its_thread<F: Fixture>(harness: &Harness<F>) {
    const QUICK: u32 = 60;
    let task = task::<F, u32>(harness).serialize_by(|n| (n % 10).to_string());
    let (start, started) = channel();
    let (proceed, wait) = channel();
    let wait = Arc::new(Mutex::new(wait));
    let handlers = both::<F, _, _, _>(&task, move |job| match job.data {
        QUICK => {
            start.send(()).map_err(|_| "the receiver is gone")?;
            wait.lock().unwrap().recv_timeout(TIMEOUT).map_err(|_| "the other key was not released")
        }
        n if n > QUICK => proceed.send(()).map_err(|_| "the receiver is gone"),
        _ => Ok(()),
    });
    for handler in handlers {
        task.call_many((0..QUICK).collect::<Vec<_>>()).unwrap();
        run_beside::<F>(Worker::new(&harness.pq).threads(2).serve(handler), |control| {
            wait_until("the quick jobs are done", || control.status().report.done == u64::from(QUICK));
            task.call(&QUICK).unwrap();
            started.recv_timeout(TIMEOUT).unwrap();
            task.call(&(QUICK + 1)).unwrap();
            wait_until("all jobs are done", || control.status().report.done == u64::from(QUICK) + 2);
            control.stop(StopMode::Drain);
        });
    }
}

fn a_slow_handler_releases_the_keys_of_earlier_jobs<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u32>(harness).serialize_by(|n| (n % 2).to_string());
    task.call_many([1, 2, 3]).unwrap();
    let (ran, others) = channel();
    let others = Mutex::new(others);
    // If one thread takes jobs 1 and 2, job 2 ends only when job 3 has run, which needs the key of job 1.
    let handler = task.leased(move |_, job| match job.data {
        2 => others.lock().unwrap().recv_timeout(TIMEOUT).map_err(|_| "the key was not released"),
        3 => ran.send(()).map_err(|_| "the receiver is gone"),
        _ => Ok(()),
    });
    run_beside::<F>(Worker::new(&harness.pq).threads(2).batch(2, 2).serve(handler), |control| {
        wait_until("all jobs are done", || control.status().report.done == 3);
        control.stop(StopMode::Drain);
    });
}

fn a_slow_handler_gives_back_the_rest_of_its_batch<F: Fixture>(harness: &Harness<F>) {
    let (handler, gate) = gate(harness);
    let task = task::<F, u32>(harness);
    task.call_many([0, 1, 2, 3]).unwrap();
    // One thread takes all four jobs, and its first handler does not end.
    run_beside::<F>(Worker::new(&harness.pq).batch(4, 4).serve(handler), |control| {
        assert_eq!(gate.started.recv_timeout(TIMEOUT).unwrap(), 0);
        wait_until("the other jobs are given back", || harness.counts().ready == 3);
        assert_eq!(harness.lease_one().attempt, 1, "giving back must not count as an attempt");
        control.stop(StopMode::Finish);
        gate.proceed.send(()).unwrap();
    });
    assert_eq!(harness.counts().live(), 3);
}

fn a_slow_transactional_handler_gives_back_the_rest_of_its_batch<F: Fixture>(harness: &Harness<F>) {
    let (task, pears) = (task::<F, u32>(harness), harness.named::<Value>("pears"));
    for touches in [false, true] {
        task.call_many([0, 1, 2, 3]).unwrap();
        let pears = pears.clone();
        let handler = task.transactional(move |conn: &mut Conn<F>, job| {
            if touches {
                pears.on(conn).put(&json!(job.data))?;
            }
            if job.data == 1 {
                std::thread::sleep(Duration::from_millis(250));
            }
            Ok::<_, CaseError>(())
        });
        let report = Worker::new(&harness.pq).batch(4, 4).serve(handler).run_until_empty().unwrap();
        // A slow machine may make more handlers slow, and give more jobs back.
        assert_eq!((report.done, report.given_back >= 2), (4, true), "{report:?}");
    }
    assert_eq!(pears.counts().unwrap().ready, 4);
}

fn a_lease_is_extended_while_its_handler_runs<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u32>(harness);
    let pq = harness.pq.clone();
    let handler = task.leased(move |context, job| {
        wait_for_extension(&pq, job.id, SHORT_LEASE);
        context.extend_lease().map_err(|error| error.to_string())
    });
    task.call(&1).unwrap();
    let worker = Worker::new(&harness.pq).threads(2).lease(SHORT_LEASE).maintain_every(Duration::MAX);
    let report = worker.serve(handler).run_jobs(1).unwrap();
    assert_eq!((report.done, report.lost), (1, 0));
}

fn jobs_of_a_lost_lease_are_not_started<F: Fixture>(harness: &Harness<F>) {
    let seen = Seen::new();
    let (note, pq) = (seen.clone(), harness.pq.clone());
    let task = task::<F, u32>(harness);
    let handler = task.leased(move |context, job| {
        note.push((job.data, job.attempt));
        if note.all() == [(0, 1)] {
            // Simulates a process that slept past its lease while another process ran maintenance.
            let (store, leases) = (pq.store(), [job.lease().unwrap()]);
            // The worker may extend the lease between the two.
            let mut returned = 0;
            while returned == 0 {
                store.with_connection(|conn| store.extend(conn, &leases, Duration::ZERO))?;
                returned = pq.maintain(&pq_core::Retention::default())?.map_or(0, |report| report.returned);
            }
            while !context.is_lease_lost() {
                std::thread::yield_now();
            }
        }
        Ok::<_, crate::harness::Error<F>>(())
    });
    task.call_many([0, 1, 2]).unwrap();
    let worker =
        Worker::new(&harness.pq).batch(3, 3).lease(SHORT_LEASE).maintain_every(Duration::MAX).serve(handler);
    let report = worker.run_until_empty().unwrap();
    assert_eq!(
        seen.all(),
        [(0, 1), (0, 1), (1, 1), (2, 1)],
        "no attempt of a lost lease of several jobs counts"
    );
    // On a busy machine the worker gives the other two back before it knows of the loss.
    assert!(report.done == 3 && (1..=3).contains(&report.lost), "{report:?}");
}

/// If one of the jobs kills its worker, few others are lost with it. The rest can be taken meanwhile.
fn a_worker_begins_few_jobs_of_a_lost_lease_at_a_time<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u32>(harness);
    task.call_many(0..64).unwrap();
    assert_eq!(harness.lease(64, Duration::ZERO).len(), 64);
    assert_eq!(harness.maintain().returned, 64);
    let (queue, running) = (harness.queue(), Seen::new());
    let note = running.clone();
    let handler = task.leased(move |_, job| {
        note.push((job.attempt, queue.counts()?.running));
        Ok::<_, Error<F>>(())
    });
    let report = Worker::new(&harness.pq).batch(64, 64).serve(handler).run_until_empty().unwrap();
    assert_eq!((report.done, report.failed), (64, 0));
    let running = running.all();
    assert_eq!(running.len(), 64);
    assert!(running.iter().all(|(attempt, running)| (*attempt, *running <= 8) == (1, true)), "{running:?}");
}

fn a_worker_returns_the_jobs_of_a_dead_worker<F: Fixture>(harness: &Harness<F>) {
    let (handler, gate) = gate(harness);
    task::<F, u32>(harness).call_with(&7, &CallOptions::new().max_retries(0)).unwrap();
    // The consumer of this lease is dead: it never settles or extends.
    assert_eq!(harness.lease(1, Duration::ZERO).len(), 1);
    let worker = Worker::new(&harness.pq).maintain_every(Duration::from_millis(20)).serve(handler);
    let report = run_beside::<F>(worker, |control| {
        // The call allows no retry, and needs none: the death of its worker is no failure.
        assert_eq!(gate.started.recv_timeout(TIMEOUT).unwrap(), 7);
        gate.proceed.send(()).unwrap();
        control.stop(StopMode::Drain);
    });
    assert_eq!((report.done, report.dead), (1, 0));
}

fn a_worker_with_maintenance_disabled_returns_no_jobs<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u32>(harness);
    task.call(&1).unwrap();
    assert_eq!(harness.lease(1, Duration::from_millis(1)).len(), 1);
    task.call(&2).unwrap();
    // Long enough for a worker with maintenance to return the expired lease.
    let handler = task.leased(|_, _| {
        std::thread::sleep(Duration::from_millis(50));
        Ok::<_, CaseError>(())
    });
    let worker = Worker::new(&harness.pq).maintain_every(Duration::MAX).serve(handler);
    assert_eq!(worker.run_jobs(1).unwrap().done, 1);
    assert_eq!((harness.counts().running, harness.maintain().returned), (1, 1));
}

fn a_running_job_is_notified_of_its_cancellation<F: Fixture>(harness: &Harness<F>) {
    let (start, started) = channel();
    let handler = task::<F, u32>(harness).max_retries(9).leased(move |context, _| {
        start.send(()).unwrap();
        let since = Instant::now();
        while !context.is_cancelled() && since.elapsed() < TIMEOUT {
            std::thread::sleep(Duration::from_millis(1));
        }
        Err::<(), _>("it was notified")
    });
    let id = task::<F, u32>(harness).max_retries(9).call(&1).unwrap().id;
    let worker = Worker::new(&harness.pq).lease(SHORT_LEASE).maintain_every(Duration::MAX).serve(handler);
    run_beside::<F>(worker, |control| {
        started.recv_timeout(TIMEOUT).unwrap();
        assert_eq!(harness.queue().cancel(id).unwrap(), CancelOutcome::Requested);
        wait_until("the job is cancelled", || harness.counts().cancelled == 1);
        control.stop(StopMode::Drain);
    });
    assert_eq!(harness.counts().live(), 0);
}

fn the_status_lists_running_jobs<F: Fixture>(harness: &Harness<F>) {
    let (handler, gate) = gate(harness);
    let ids: Vec<_> = task::<F, u32>(harness).call_many([0, 1]).unwrap();
    run_beside::<F>(Worker::new(&harness.pq).batch(1, 1).serve(handler), |control| {
        assert_eq!(gate.started.recv_timeout(TIMEOUT).unwrap(), 0);
        let status = control.status();
        assert_eq!((status.waiting, status.running.len(), status.stopping), (Some(1), 1, None));
        let running = &status.running[0];
        assert_eq!((running.id, running.task.as_deref(), running.attempt), (ids[0].id, Some("eat"), 1));
        assert!(running.age < TIMEOUT);
        gate.proceed.send(()).unwrap();
        gate.proceed.send(()).unwrap();
        wait_until("both jobs are counted", || control.status().report.done == 2);
        control.stop(StopMode::Drain);
    });
}

fn the_status_counts_buffered_jobs_of_both_kinds_of_handler<F: Fixture>(harness: &Harness<F>) {
    let (leased, gate) = gate(harness);
    let (write, written) = channel();
    let pears = harness.named::<Value>("pears");
    let transactional = pears.transactional(move |_, _| write.send(()).map_err(|error| error.to_string()));
    task::<F, u32>(harness).call_many([0, 1, 2]).unwrap();
    let worker = Worker::new(&harness.pq).threads(2).batch(3, 3).serve(leased).serve(transactional);
    run_beside::<F>(worker, |control| {
        assert_eq!(gate.started.recv_timeout(TIMEOUT).unwrap(), 0);
        // The transactional thread ends a batch while the leased thread has jobs in its buffer.
        pears.put(&json!(1)).unwrap();
        written.recv_timeout(TIMEOUT).unwrap();
        for _ in 0..2 {
            gate.proceed.send(()).unwrap();
            gate.started.recv_timeout(TIMEOUT).unwrap();
            let buffered = control.status().buffered;
            assert!(buffered <= 2, "the status counts {buffered} buffered jobs");
        }
        gate.proceed.send(()).unwrap();
        wait_until("all are counted", || control.status().report.done == 4);
        assert_eq!(control.status().buffered, 0);
        control.stop(StopMode::Drain);
    });
}

fn invalid_settings_are_refused<F: Fixture>(harness: &Harness<F>) {
    let apples = harness.named::<()>("apples");
    let handler = || apples.task::<()>("eat").leased(|_, _| Ok::<_, CaseError>(()));
    let raw = || apples.leased(|_, _| Ok::<_, CaseError>(()));
    let worker = || Worker::new(&harness.pq).serve(handler());
    let wrong = [
        (Worker::new(&harness.pq), "needs a handler"),
        (worker().threads(0), "at least one thread"),
        (worker().batch(0, 5), "min must be at least 1"),
        (worker().batch(5, 4), "not exceed max"),
        (worker().lease(Duration::ZERO), "at least 10ms"),
        (worker().serve(handler()), "two handlers"),
        (worker().serve(raw()), "either"),
        (worker().weight("pears", 1), "no handler"),
        (worker().weight("apples", 0), "at least 1"),
    ];
    harness.queue().put_with(&json!(1), &PutOptions::new()).unwrap();
    for (worker, reason) in wrong {
        let refused = worker.run_until_empty().unwrap_err();
        let refused = harness.fixture.core_error(&refused).unwrap().to_string();
        assert!(refused.contains(reason), "{refused}");
    }
    assert!(harness.queue().get(Wait::No).unwrap().is_some());
}
