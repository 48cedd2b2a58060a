//! Takes: each job is returned once, and held jobs are skipped.

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::sync::mpsc::channel;

use pq_core::store::MAX_TAKE_BYTES;
use pq_core::{Outcome, PutOptions, Queue, Wait};
use serde_json::{Value, json};

use super::cases;
use crate::Fixture;
use crate::harness::{Harness, TIMEOUT, roll_back};

cases![
    an_empty_queue_returns_nothing: Both,
    a_job_is_returned_once: Both,
    a_take_returns_at_most_the_requested_number: Both,
    a_take_is_bounded_in_bytes: Both,
    a_rolled_back_get_returns_the_job_to_another_consumer: Both,
    a_lost_connection_returns_its_jobs: Own,
    concurrent_takers_never_share_a_job: Both,
    jobs_that_others_hold_are_skipped_without_waiting: Both,
    a_batch_contains_the_jobs_that_others_do_not_hold: Both,
    jobs_behind_many_held_jobs_are_taken_in_order: Own,
    a_queue_returns_no_job_of_another_queue: Both,
    one_handle_serves_many_threads: Own,
];

fn an_empty_queue_returns_nothing<F: Fixture>(harness: &Harness<F>) {
    assert!(harness.get().is_none());
    assert!(harness.get_many(10).is_empty());
    assert!(
        harness.queue().get_with(Wait::No, |_, _| Ok::<_, crate::harness::CaseError>(())).unwrap().is_none()
    );
}

fn a_job_is_returned_once<F: Fixture>(harness: &Harness<F>) {
    harness.put(1);
    assert!(harness.get().is_some());
    assert!(harness.get().is_none());
    assert_eq!(harness.counts().live(), 0);
}

fn a_take_returns_at_most_the_requested_number<F: Fixture>(harness: &Harness<F>) {
    for n in 0..7 {
        harness.put(n);
    }
    assert!(harness.get_many(0).is_empty());
    assert_eq!(harness.get_many(3).len(), 3);
    assert_eq!(harness.counts().ready, 4, "jobs that were not returned are not held");
    assert_eq!(harness.get_many(100).len(), 4);
}

/// Returns text of this length that a store cannot compress.
fn noise(length: usize) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-";
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(LETTERS[(state % 64) as usize])
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// The sizes of the jobs that were taken before do not matter.
fn a_take_is_bounded_in_bytes<F: Fixture>(harness: &Harness<F>) {
    const BYTES: usize = 1_000_000;
    let (payload, fitting) = (noise(BYTES), MAX_TAKE_BYTES / BYTES + 1);
    let due = PutOptions::new().schedule_at("2001-01-01T00:00:00Z");
    let kinds: [&dyn Fn(usize) -> PutOptions; 3] =
        [&|_| PutOptions::new(), &|n| PutOptions::new().serialization_key(format!("key {n}")), &|_| {
            due.clone()
        }];
    for (kind, options) in ["ready", "keyed", "due"].into_iter().zip(kinds) {
        for n in 0..fitting + 3 {
            harness.put_with(payload.as_str(), &options(n));
        }
        assert_eq!(harness.get_many(1_000).len(), fitting, "{kind}");
        assert_eq!(harness.counts().ready, 3, "{kind}: jobs that were not returned are not held");
        let small = PutOptions::new().priority(1);
        for n in 0..20 {
            harness.put_with(n, &small);
        }
        let leased = harness.lease(1_000, TIMEOUT);
        assert_eq!(leased.len(), 23, "{kind}: small jobs before large ones");
        leased.iter().for_each(|job| harness.settle(job, Outcome::Complete));
    }
}

fn a_rolled_back_get_returns_the_job_to_another_consumer<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    let queue = harness.queue();
    let rolled_back = harness.transaction(|conn| {
        assert_eq!(queue.on(conn).get()?.map(|job| job.id), Some(id));
        assert!(queue.on(&mut harness.connect()).get()?.is_none(), "two consumers hold the job");
        roll_back::<()>()
    });
    assert!(rolled_back.is_err());
    let other = queue.on(&mut harness.connect()).get().unwrap().unwrap();
    assert_eq!((other.id, other.data), (id, json!("a")));
}

fn a_lost_connection_returns_its_jobs<F: Fixture>(harness: &Harness<F>) {
    harness.put("a");
    let queue = harness.queue();
    let work = |conn: &mut _, _| {
        // Dropping the connection inside its transaction simulates a process that dies.
        let lost = std::mem::replace(conn, harness.connect());
        drop(lost);
        roll_back::<()>()
    };
    let mut conn = harness.connect();
    let lost = harness.nested(&mut conn, |conn| {
        let job = queue.on(conn).get()?;
        work(conn, job)
    });
    assert!(lost.is_err());
    // The server notices a lost client after some time, so this waits.
    let got = queue.get(Wait::For(TIMEOUT)).unwrap();
    assert_eq!(got.map(|job| job.data), Some(json!("a")));
}

fn concurrent_takers_never_share_a_job<F: Fixture>(harness: &Harness<F>) {
    const JOBS: u64 = 400;
    let numbers: Vec<Value> = (0..JOBS).map(|n| json!(n)).collect();
    harness.queue().put_many(&numbers).unwrap();
    let start = Barrier::new(4);
    let taken: Vec<u64> = std::thread::scope(|threads| {
        let take = |size: usize| {
            let start = &start;
            threads.spawn(move || {
                start.wait();
                let mut mine = Vec::new();
                loop {
                    let jobs = harness.get_many(size);
                    if jobs.is_empty() && harness.counts().ready == 0 {
                        return mine;
                    }
                    mine.extend(jobs.iter().filter_map(|job| job.data.as_u64()));
                }
            })
        };
        let takers = [take(1), take(1), take(3), take(7)];
        takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect()
    });
    let different: BTreeSet<u64> = taken.iter().copied().collect();
    assert_eq!((taken.len() as u64, different.len() as u64), (JOBS, JOBS));
}

fn jobs_that_others_hold_are_skipped_without_waiting<F: Fixture>(harness: &Harness<F>) {
    harness.put("first");
    harness.put("second");
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            assert_eq!(queue.on(conn).get()?.map(|job| job.data), Some(json!("first")));
            let (got, others) = channel();
            std::thread::scope(|threads| {
                threads.spawn(|| got.send(harness.get().map(|job| job.data)));
                // A take that waited for the first job would deadlock: this transaction waits for the take.
                let second = others.recv_timeout(TIMEOUT).unwrap();
                assert_eq!(second, Some(json!("second")));
            });
            Ok(())
        })
        .unwrap();
}

fn a_batch_contains_the_jobs_that_others_do_not_hold<F: Fixture>(harness: &Harness<F>) {
    for n in 0..6 {
        harness.put(n);
    }
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            assert_eq!(queue.on(conn).get_many(2)?.len(), 2);
            let rest: Vec<Value> = harness.get_many(10).into_iter().map(|job| job.data).collect();
            assert_eq!(rest, [2, 3, 4, 5].map(|n| json!(n)));
            Ok(())
        })
        .unwrap();
}

fn jobs_behind_many_held_jobs_are_taken_in_order<F: Fixture>(harness: &Harness<F>) {
    const HELD: usize = 12_000;
    let plain = PutOptions::new();
    let due = PutOptions::new().schedule_at("2001-01-01T00:00:00Z");
    let keyed = PutOptions::new().serialization_key("k");
    let each = [("apples", &plain, &due), ("pears", &plain, &keyed), ("plums", &due, &plain)];
    for (name, held, otherwise) in each {
        let queue: Queue<_, Value> = harness.named(name);
        queue.put_many_with(std::iter::repeat_n((&json!("held"), held), HELD)).unwrap();
        for data in ["a", "b"] {
            queue.put_with(&json!(data), held).unwrap();
            queue.put_with(&json!(format!("{data} otherwise")), otherwise).unwrap();
        }
        harness
            .transaction(|conn| {
                // A take that meets jobs with keys returns a part of them.
                let mut held = 0;
                while held < HELD {
                    held += queue.on(conn).get_many(HELD - held)?.len();
                }
                assert_eq!(queue.get(Wait::No).unwrap().map(|job| job.data), Some(json!("a")));
                let rest = queue.get_many(2, Wait::No).unwrap();
                let rest: Vec<Value> = rest.into_iter().map(|job| job.data).collect();
                assert_eq!(rest, [json!("a otherwise"), json!("b")]);
                Ok(())
            })
            .unwrap();
        assert_eq!(queue.get(Wait::No).unwrap().map(|job| job.data), Some(json!("b otherwise")));
    }
}

fn a_queue_returns_no_job_of_another_queue<F: Fixture>(harness: &Harness<F>) {
    harness.put("apple");
    let pears: Queue<_, Value> = harness.named("pears");
    pears.put(&json!("pear")).unwrap();
    assert_eq!(pears.get(Wait::No).unwrap().map(|job| job.data), Some(json!("pear")));
    assert!(pears.get(Wait::No).unwrap().is_none());
    assert_eq!(harness.drain(), [json!("apple")]);
}

fn one_handle_serves_many_threads<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.queue();
    let start = Barrier::new(8);
    std::thread::scope(|threads| {
        for thread in 0..8 {
            let (queue, start) = (&queue, &start);
            threads.spawn(move || {
                start.wait();
                for n in 0..20 {
                    queue.put(&json!([thread, n])).unwrap();
                    queue.get(Wait::For(TIMEOUT)).unwrap().unwrap();
                }
            });
        }
    });
    assert_eq!(harness.counts().live(), 0);
}
