//! Limits while many threads and workers take jobs at the same time, and some crash.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use pq_core::{Job, Limits, Outcome, PutOptions, Retention, Wait, Worker};
use serde_json::Value;

use super::cases;
use super::limits::{in_group, limit};
use crate::Fixture;
use crate::harness::{Harness, TIMEOUT, both, roll_back, task};

cases![
    a_limit_is_never_exceeded: Own,
    places_suffice_for_as_many_jobs_as_the_limit: Own,
    a_transaction_keeps_the_places_of_its_own_jobs_only: Both,
    workers_observe_limits: Own,
    the_group_of_a_call_is_computed_from_its_arguments: Own,
];

/// The first take of a queue finds no places, and the second ones.
fn a_transaction_keeps_the_places_of_its_own_jobs_only<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.queue();
    for keyed in [false, true] {
        limit(harness, Limits::new().running_per_group(3));
        for data in 0..6 {
            let options = in_group(["a", "b"][data % 2]);
            let key = format!("k{data}");
            harness.put_with(data, &if keyed { options.serialization_key(key) } else { options });
        }
        for first in [true, false] {
            let rolled_back = harness.transaction(|conn| {
                assert_eq!(queue.on(conn).get_many(2)?.len(), 2);
                let others = queue.on(&mut harness.connect()).lease(9, TIMEOUT)?;
                assert_eq!(others.len(), 4, "keyed: {keyed}, first take: {first}");
                others.iter().for_each(|job| harness.settle(job, Outcome::GiveBack));
                roll_back::<()>()
            });
            assert!(rolled_back.is_err());
        }
        harness.drain();
        queue.set_limits(&Limits::new()).unwrap();
        harness.pq.maintain(&Retention::default()).unwrap();
    }
}

const RUNNING: i64 = 5;
const OF_GROUP: i64 = 2;

/// The jobs that threads hold. A job counts from when its take has returned until just before its end is sent, so the
/// numbers are never larger than what the store has given away.
#[derive(Default)]
struct Held {
    all: AtomicI64,
    by_group: Mutex<HashMap<String, i64>>,
}

impl Held {
    fn begin(&self, jobs: &[Job<Value>]) {
        let all = self.all.fetch_add(jobs.len() as i64, Ordering::SeqCst) + jobs.len() as i64;
        assert!(all <= RUNNING, "{all} jobs run");
        let mut by_group = self.by_group.lock().unwrap();
        for group in jobs.iter().filter_map(|job| job.annotations.group()) {
            let count = by_group.entry(group).or_default();
            *count += 1;
            assert!(*count <= OF_GROUP, "{count} jobs of a group run");
        }
    }

    fn end(&self, jobs: &[Job<Value>]) {
        let mut by_group = self.by_group.lock().unwrap();
        for group in jobs.iter().filter_map(|job| job.annotations.group()) {
            *by_group.entry(group).or_default() -= 1;
        }
        self.all.fetch_sub(jobs.len() as i64, Ordering::SeqCst);
    }
}

/// Each thread does by turns what a worker, an application and a crash do.
fn a_limit_is_never_exceeded<F: Fixture>(harness: &Harness<F>) {
    const THREADS: usize = 6;
    const JOBS: usize = 300;
    for data in 0..JOBS as u32 {
        let options = match data % 6 {
            0 => PutOptions::new(),
            1 => in_group("a").serialization_key(format!("k{}", data % 4)),
            2 => in_group("b").schedule_at("2001-01-01T00:00:00Z"),
            _ => in_group(["a", "b", "c"][data as usize % 3]),
        };
        harness.put_with(data, &options.priority((data % 2) as i32));
    }
    limit(harness, Limits::new().running(RUNNING as u32).running_per_group(OF_GROUP as u32));
    let (held, start, done) = (Held::default(), Barrier::new(THREADS), AtomicUsize::new(0));
    let (held, start, done) = (&held, &start, &done);
    std::thread::scope(|threads| {
        for thread in 0..THREADS {
            threads.spawn(move || {
                let queue = harness.queue();
                start.wait();
                for turn in thread.. {
                    if done.load(Ordering::SeqCst) >= JOBS {
                        break;
                    }
                    match turn % 6 {
                        // An application's own transaction, which commits.
                        0 | 1 => {
                            let count = harness.transaction(|conn| {
                                let jobs = queue.on(conn).get_many(2)?;
                                held.begin(&jobs);
                                std::thread::sleep(Duration::from_micros(300));
                                held.end(&jobs);
                                Ok(jobs.len())
                            });
                            done.fetch_add(count.unwrap(), Ordering::SeqCst);
                        }
                        // One that is rolled back.
                        2 => {
                            let rolled_back = harness.transaction(|conn| {
                                let jobs = queue.on(conn).get_many(3)?;
                                held.begin(&jobs);
                                held.end(&jobs);
                                roll_back::<()>()
                            });
                            assert!(rolled_back.is_err());
                        }
                        // The holder of a lease dies.
                        3 => {
                            let jobs = queue.lease(2, TIMEOUT, Wait::No).unwrap();
                            held.begin(&jobs);
                            if let Some(job) = jobs.first() {
                                held.end(&jobs);
                                queue.extend(job, Duration::ZERO).unwrap();
                            }
                        }
                        // Any worker returns its jobs.
                        4 => drop(harness.pq.maintain(&Retention::default()).unwrap()),
                        _ => {
                            let jobs = queue.lease(3, TIMEOUT, Wait::No).unwrap();
                            held.begin(&jobs);
                            std::thread::sleep(Duration::from_micros(300));
                            for job in jobs {
                                held.end(std::slice::from_ref(&job));
                                queue.settle(&job, Outcome::Complete).unwrap();
                                done.fetch_add(1, Ordering::SeqCst);
                            }
                        }
                    }
                }
            });
        }
    });
    assert_eq!(done.load(Ordering::SeqCst), JOBS);
    let counts = harness.counts();
    assert_eq!((counts.ready, counts.blocked, counts.running), (0, 0, 0));
}

/// Places are neither lost nor held for nothing by takes that run at the same time.
fn places_suffice_for_as_many_jobs_as_the_limit<F: Fixture>(harness: &Harness<F>) {
    const THREADS: u32 = 4;
    for data in 0..THREADS {
        harness.put_with(data, &in_group("a"));
    }
    limit(harness, Limits::new().running(THREADS).running_per_group(THREADS));
    let (inside, queue) = (Barrier::new(THREADS as usize), harness.queue());
    std::thread::scope(|threads| {
        for _ in 0..THREADS {
            threads.spawn(|| {
                // All of them are in their transactions at the same time, each with one job.
                queue.get_with(Wait::For(TIMEOUT), |_, _| {
                    inside.wait();
                    Ok::<_, crate::harness::Error<F>>(())
                })
            });
        }
    });
    assert!(harness.get().is_none());
}

fn workers_observe_limits<F: Fixture>(harness: &Harness<F>) {
    limit(harness, Limits::new().running(2));
    let task = task::<F, u32>(harness);
    let (running, most) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
    let handlers = both::<F, _, _, _>(&task, {
        let (running, most) = (Arc::clone(&running), Arc::clone(&most));
        move |_| {
            let now = running.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(now, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(2));
            running.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, String>(())
        }
    });
    for handler in handlers {
        task.call_many(0..20).unwrap();
        let report = Worker::new(&harness.pq).threads(4).serve(handler).run_until_empty().unwrap();
        assert_eq!(report.done, 20);
    }
    assert!(most.load(Ordering::SeqCst) <= 2);
}

fn the_group_of_a_call_is_computed_from_its_arguments<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, u32>(harness).group_by(|tenant| format!("tenant {tenant}"));
    limit(harness, Limits::new().running_per_group(1));
    task.call_many([1, 1, 2]).unwrap();
    task.call_with(&1, &pq_core::CallOptions::new().group("other")).unwrap();
    let groups: Vec<_> =
        harness.lease(9, TIMEOUT).iter().map(|job| job.annotations.group().unwrap()).collect();
    assert_eq!(groups, ["tenant 1", "tenant 2", "other"]);
}
