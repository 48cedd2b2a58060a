//! Concurrent puts and gets, which a store may serve as one group.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Barrier;
use std::sync::mpsc::channel;

use pq_core::{JobId, PutOptions, PutOutcome, Queue, Wait};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::cases;
use crate::Fixture;
use crate::harness::{Harness, TIMEOUT, ids, roll_back};

cases![
    concurrent_puts_return_the_ids_of_their_own_jobs: Both,
    concurrent_puts_keep_their_own_options: Both,
    a_refused_put_does_not_affect_concurrent_puts: Both,
    plain_puts_do_not_wait_for_a_concurrent_unique_key: Both,
    concurrent_puts_by_thread_unique_key_put_one_job: Both,
    concurrent_gets_share_no_job_and_lose_none: Both,
    concurrent_gets_return_no_more_than_the_ready_jobs: Both,
    concurrent_gets_skip_jobs_that_a_transaction_holds: Both,
    concurrent_waiters_each_get_a_job_when_it_falls_due: Own,
    concurrent_gets_release_their_keys: Own,
    an_undecodable_payload_does_not_affect_concurrent_gets: Own,
    a_panicking_caller_loses_no_job_of_another_caller: Own,
    concurrent_gets_return_nothing_from_a_paused_queue: Both,
];

/// The number of threads that call concurrently.
const THREADS: u64 = 16;

/// Runs `work` in all threads, `rounds` times and started together each time. Returns the results of each thread.
fn run_concurrently<R: Send>(rounds: u64, work: impl Fn(u64, u64) -> R + Sync) -> Vec<Vec<R>> {
    let start = Barrier::new(THREADS as usize);
    std::thread::scope(|threads| {
        let run = |thread| {
            let (start, work) = (&start, &work);
            threads.spawn(move || {
                let round = |round| {
                    start.wait();
                    work(thread, round)
                };
                (0..rounds).map(round).collect()
            })
        };
        let running: Vec<_> = (0..THREADS).map(run).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn numbers(count: u64) -> Vec<Value> {
    (0..count).map(|n| json!(n)).collect()
}

fn concurrent_puts_return_the_ids_of_their_own_jobs<F: Fixture>(harness: &Harness<F>) {
    let put = run_concurrently(5, |thread, round| {
        // One job or several, in turn.
        let jobs: Vec<Value> = (0..=(thread + round) % 3).map(|n| json!([thread, round, n])).collect();
        let ids = match &jobs[..] {
            [job] => vec![harness.put(job.clone())],
            jobs => ids(harness.queue().put_many(jobs).unwrap()),
        };
        assert_eq!(ids.len(), jobs.len());
        ids.into_iter().zip(jobs).collect::<Vec<_>>()
    });
    for by_thread in &put {
        let ids = || by_thread.iter().flatten().map(|(id, _)| *id);
        assert!(ids().zip(ids().skip(1)).all(|(a, b)| a < b), "the ids of one caller must ascend");
    }
    let returned: BTreeMap<JobId, Value> = put.iter().flatten().flatten().cloned().collect();
    assert_eq!(returned.len(), put.iter().flatten().flatten().count(), "an id was returned twice");
    let stored: BTreeMap<JobId, Value> =
        harness.get_many(1_000).into_iter().map(|job| (job.id, job.data)).collect();
    assert_eq!(stored, returned);
}

fn concurrent_puts_keep_their_own_options<F: Fixture>(harness: &Harness<F>) {
    run_concurrently(3, |thread, round| {
        let options = PutOptions::new().priority((THREADS - thread) as i32);
        let options = if thread % 2 == 0 { options } else { options.schedule_at("1h") };
        harness.put_with(json!([thread, round]), &options)
    });
    assert_eq!(harness.counts().scheduled, THREADS / 2 * 3);
    let got: Vec<u64> = harness.drain().iter().filter_map(|job| job[0].as_u64()).collect();
    let wanted: Vec<u64> = (0..THREADS).step_by(2).flat_map(|thread| [thread; 3]).collect();
    assert_eq!(got, wanted, "jobs must come by priority");
}

fn a_refused_put_does_not_affect_concurrent_puts<F: Fixture>(harness: &Harness<F>) {
    let put = run_concurrently(5, |thread, round| {
        let bad = thread == round;
        let options = if bad { PutOptions::new().schedule_at("rubbish") } else { PutOptions::new() };
        (bad, harness.try_put(&json!([thread, round]), &options).is_err())
    });
    assert!(put.iter().flatten().all(|(bad, refused)| bad == refused));
    assert_eq!(harness.counts().ready, 5 * (THREADS - 1));
}

fn plain_puts_do_not_wait_for_a_concurrent_unique_key<F: Fixture>(harness: &Harness<F>) {
    let (queue, key) = (harness.queue(), PutOptions::new().unique("k"));
    std::thread::scope(|threads| {
        let put = || queue.put_with(&json!("second"), &key).unwrap();
        let second = harness
            .transaction(|conn| {
                queue.on(conn).put_with(&json!("first"), &key)?;
                // A put of the same unique key may wait for the transaction.
                let second = threads.spawn(put);
                let (done, all) = channel();
                for n in 0..THREADS {
                    let (harness, done) = (&harness, done.clone());
                    threads.spawn(move || {
                        harness.put(n);
                        done.send(()).unwrap();
                    });
                }
                for _ in 0..THREADS {
                    all.recv_timeout(TIMEOUT).unwrap();
                }
                Ok(second)
            })
            .unwrap();
        assert_eq!(second.join().unwrap().outcome, PutOutcome::Kept);
    });
    assert_eq!(harness.counts().ready, THREADS + 1);
}

fn concurrent_puts_by_thread_unique_key_put_one_job<F: Fixture>(harness: &Harness<F>) {
    let key = PutOptions::new().unique("k");
    let put = run_concurrently(3, |thread, round| {
        let options = if thread % 2 == 0 { key.clone() } else { PutOptions::new() };
        (thread % 2 == 0, harness.put_with(json!([thread, round]), &options))
    });
    let put: Vec<_> = put.into_iter().flatten().collect();
    let ids = |unique| put.iter().filter(|put| put.0 == unique).map(|put| put.1).collect::<BTreeSet<_>>();
    assert_eq!((ids(true).len(), ids(false).len() as u64), (1, THREADS / 2 * 3));
    assert_eq!(harness.counts().ready, THREADS / 2 * 3 + 1);
}

fn concurrent_gets_share_no_job_and_lose_none<F: Fixture>(harness: &Harness<F>) {
    let ids = ids(harness.queue().put_many(numbers(500)).unwrap());
    let got = run_concurrently(8, |thread, round| {
        let count = [1, 1, 1, 3, 7][((thread + round) % 5) as usize];
        let jobs = harness.get_many(count);
        assert!(jobs.len() <= count);
        jobs.into_iter().map(|job| job.id).collect::<Vec<_>>()
    });
    for by_thread in &got {
        let ids: Vec<_> = by_thread.iter().flatten().collect();
        assert!(ids.is_sorted_by(|a, b| a < b), "a later get of one thread returns later jobs");
    }
    let mut all: Vec<JobId> = got.into_iter().flatten().flatten().collect();
    all.extend(harness.get_many(1_000).iter().map(|job| job.id));
    all.sort();
    assert_eq!(all, ids);
}

fn concurrent_gets_return_no_more_than_the_ready_jobs<F: Fixture>(harness: &Harness<F>) {
    for jobs in [0, 1, 5, THREADS - 1] {
        harness.queue().put_many(numbers(jobs)).unwrap();
        let got = run_concurrently(1, |_, _| harness.get().map(|job| job.data));
        let got: BTreeSet<u64> = got.into_iter().flatten().flatten().filter_map(|job| job.as_u64()).collect();
        assert_eq!(got, (0..jobs).collect());
        assert_eq!(harness.counts().live(), 0);
    }
}

fn concurrent_gets_skip_jobs_that_a_transaction_holds<F: Fixture>(harness: &Harness<F>) {
    harness.queue().put_many(numbers(30)).unwrap();
    let queue = harness.queue();
    let rolled_back = harness.transaction(|conn| {
        assert_eq!(queue.on(conn).get_many(10)?.len(), 10);
        let got = run_concurrently(2, |_, _| harness.get().map(|job| job.data));
        let got: BTreeSet<u64> = got.into_iter().flatten().flatten().filter_map(|job| job.as_u64()).collect();
        assert_eq!(got, (10..30).collect());
        roll_back::<()>()
    });
    assert!(rolled_back.is_err());
    assert_eq!(harness.drain(), numbers(10));
}

fn concurrent_waiters_each_get_a_job_when_it_falls_due<F: Fixture>(harness: &Harness<F>) {
    harness.put("now");
    for _ in 1..THREADS {
        harness.put_with("soon", &PutOptions::new().schedule_at("1s"));
    }
    // The timer of each waiter must find its job. The poll comes too late.
    let got = run_concurrently(1, |_, _| harness.queue().get(Wait::For(TIMEOUT)).unwrap().map(|job| job.id));
    let got: BTreeSet<JobId> = got.into_iter().flatten().flatten().collect();
    assert_eq!(got.len() as u64, THREADS);
}

fn concurrent_gets_release_their_keys<F: Fixture>(harness: &Harness<F>) {
    let options = |thread: u64, round: u64| {
        let options = PutOptions::new().unique(format!("{thread} {round}"));
        options.serialization_key(format!("{}", thread % 3))
    };
    run_concurrently(2, |thread, round| harness.put_with(json!([thread, round]), &options(thread, round)));
    let got = run_concurrently(2, |_, _| harness.queue().get(Wait::For(TIMEOUT)).unwrap().map(|job| job.id));
    let got: BTreeSet<JobId> = got.into_iter().flatten().flatten().collect();
    assert_eq!(got.len() as u64, 2 * THREADS);
    let put = run_concurrently(2, |thread, round| {
        harness.queue().put_with(&json!("again"), &options(thread, round)).unwrap().outcome
    });
    assert!(put.iter().flatten().all(|outcome| *outcome == PutOutcome::Added), "{put:?}");
}

fn an_undecodable_payload_does_not_affect_concurrent_gets<F: Fixture>(harness: &Harness<F>) {
    let mixed = (0..4 * THREADS).map(|n| if n % 4 == 1 { json!(format!("word {n}")) } else { json!(n) });
    harness.queue().put_many(mixed.collect::<Vec<_>>()).unwrap();
    let typed: Queue<_, u64> = harness.named("apples");
    let got = run_concurrently(4, |_, _| typed.get(Wait::No).unwrap().map(|job| job.data));
    let got: Vec<u64> = got.into_iter().flatten().flatten().collect();
    let different: BTreeSet<u64> = got.iter().copied().collect();
    assert_eq!(got.len(), different.len());
    assert_eq!(different, (0..4 * THREADS).filter(|n| n % 4 != 1).collect());
    assert_eq!((harness.counts().live(), harness.counts().dead), (0, THREADS));
}

/// Data whose deserializer panics if it is not a number.
struct Panicking(u64);

impl<'de> Deserialize<'de> for Panicking {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let number = Value::deserialize(from)?.as_u64();
        // `resume_unwind` prints no message; the panic is intended.
        Ok(Self(number.unwrap_or_else(|| resume_unwind(Box::new("on purpose")))))
    }
}

fn a_panicking_caller_loses_no_job_of_another_caller<F: Fixture>(harness: &Harness<F>) {
    let mixed = (0..4 * THREADS).map(|n| if n % 4 == 1 { json!("panic") } else { json!(n) });
    harness.queue().put_many(mixed.collect::<Vec<_>>()).unwrap();
    let panicking: Queue<_, Panicking> = harness.named("apples");
    let got = run_concurrently(4, |_, _| {
        let got = catch_unwind(AssertUnwindSafe(|| panicking.get(Wait::No).unwrap()));
        got.ok().flatten().map(|job| job.data.0)
    });
    let mut got: Vec<u64> = got.into_iter().flatten().flatten().collect();
    got.sort_unstable();
    assert_eq!(got, (0..4 * THREADS).filter(|n| n % 4 != 1).collect::<Vec<_>>());
}

fn concurrent_gets_return_nothing_from_a_paused_queue<F: Fixture>(harness: &Harness<F>) {
    harness.queue().put_many(numbers(THREADS)).unwrap();
    harness.queue().pause().unwrap();
    assert!(run_concurrently(2, |_, _| harness.get().is_none()).into_iter().flatten().all(|is_none| is_none));
    // Puts work while the queue is paused.
    run_concurrently(1, |thread, _| harness.put(thread));
    harness.queue().resume().unwrap();
    let got = run_concurrently(2, |_, _| harness.get().is_some());
    assert!(got.into_iter().flatten().all(|is_some| is_some));
}
