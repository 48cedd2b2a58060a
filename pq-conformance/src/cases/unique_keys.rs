//! Unique keys: at most one job of a key waits or runs.

use std::sync::Barrier;
use std::time::Duration;

use pq_core::store::{Archive, Connect};
use pq_core::{JobId, OnConflict, Outcome, Put, PutOptions, PutOutcome};
use serde_json::{Value, json};

use super::cases;
use crate::Fixture;
use crate::harness::{Harness, TIMEOUT, roll_back};

cases![
    a_second_put_of_a_key_keeps_the_first_job: Both,
    a_put_can_replace_the_waiting_job: Own,
    a_replaced_job_starts_its_attempts_anew: Own,
    a_rescheduled_job_keeps_its_attempts: Own,
    a_put_can_reschedule_the_waiting_job: Own,
    one_more_job_is_put_behind_a_running_one: Both,
    a_job_that_is_kept_for_an_event_begins_after_the_put: Own,
    a_job_that_returns_behind_one_more_has_no_key: Own,
    a_retry_passes_a_job_whose_key_is_in_an_uncommitted_put: Both,
    a_leased_job_keeps_its_key: Both,
    a_running_job_is_not_replaced: Both,
    a_finished_job_releases_its_key: Both,
    a_job_that_was_got_releases_its_key: Both,
    a_rolled_back_put_leaves_the_key_free: Both,
    a_rolled_back_get_keeps_the_key: Both,
    a_returned_job_keeps_its_key: Both,
    a_batch_with_one_key_twice_puts_one_job: Own,
    a_batch_is_answered_in_order_with_ascending_ids: Own,
    a_unique_key_applies_to_its_queue_only: Own,
    a_cleared_job_releases_its_key: Both,
    rescheduling_a_job_to_now_wakes_a_waiter: Own,
    concurrent_puts_of_one_key_put_one_job: Own,
];

fn unique(key: &str) -> PutOptions {
    PutOptions::new().unique(key)
}

fn try_put<F: Fixture>(harness: &Harness<F>, data: impl Into<Value>, options: &PutOptions) -> Put {
    harness.queue().on(&mut harness.connect()).put_with(&data.into(), options).unwrap()
}

fn kept(id: JobId) -> Put {
    Put { id, outcome: PutOutcome::Kept }
}

fn a_second_put_of_a_key_keeps_the_first_job<F: Fixture>(harness: &Harness<F>) {
    let first = try_put(harness, 1, &unique("a"));
    assert_eq!(first.outcome, PutOutcome::Added);
    assert_eq!(try_put(harness, 2, &unique("a")), kept(first.id));
    assert_eq!(harness.put_with(3, &unique("a")), first.id);
    assert_eq!(harness.drain(), [1]);
}

fn a_put_can_replace_the_waiting_job<F: Fixture>(harness: &Harness<F>) {
    let first = try_put(harness, 1, &unique("a").schedule_at("1h"));
    let options = PutOptions::new().unique_or("a", OnConflict::Replace).priority(5);
    let second = try_put(harness, 2, &options);
    assert_eq!(second, Put { id: first.id, outcome: PutOutcome::Replaced });
    let job = harness.get().unwrap();
    assert_eq!((job.id, job.data.clone(), job.priority), (first.id, json!(2), 5));
    assert!(harness.get().is_none());
}

/// Puts a job of the key whose first attempt fails.
fn put_failed<F: Fixture>(harness: &Harness<F>) -> JobId {
    let id = try_put(harness, 1, &unique("a")).id;
    let again =
        Outcome::Retry { after: Duration::from_secs(3600), error: "broken".to_owned(), payload: None };
    harness.settle(&harness.lease_one(), again);
    let failed = harness.queue().find(id).unwrap().unwrap();
    assert_eq!((failed.attempt, failed.error.as_deref()), (1, Some("broken")));
    id
}

fn a_replaced_job_starts_its_attempts_anew<F: Fixture>(harness: &Harness<F>) {
    let id = put_failed(harness);
    let replaced = try_put(harness, 2, &PutOptions::new().unique_or("a", OnConflict::Replace));
    assert_eq!(replaced, Put { id, outcome: PutOutcome::Replaced });
    let job = harness.queue().find(id).unwrap().unwrap();
    assert_eq!((job.attempt, job.error), (0, None));
    assert_eq!(harness.lease_one().attempt, 1);
}

fn a_rescheduled_job_keeps_its_attempts<F: Fixture>(harness: &Harness<F>) {
    let id = put_failed(harness);
    try_put(harness, 2, &PutOptions::new().unique_or("a", OnConflict::Reschedule));
    let job = harness.queue().find(id).unwrap().unwrap();
    assert_eq!((job.attempt, job.error.as_deref()), (1, Some("broken")));
}

fn one_more() -> PutOptions {
    PutOptions::new().unique_or("a", OnConflict::KeepWaiting)
}

fn one_more_job_is_put_behind_a_running_one<F: Fixture>(harness: &Harness<F>) {
    let first = try_put(harness, 1, &one_more());
    assert_eq!(try_put(harness, 2, &one_more()), kept(first.id), "the first job waits");
    let running = harness.lease_one();
    let second = try_put(harness, 3, &one_more());
    assert_eq!(second.outcome, PutOutcome::Added);
    for options in [one_more(), unique("a")] {
        assert_eq!(try_put(harness, 4, &options), kept(second.id), "at most one waits");
    }
    harness.settle(&running, Outcome::Complete);
    assert_eq!(try_put(harness, 5, &unique("a")), kept(second.id), "the key is the second job's");
    assert_eq!(harness.drain(), [3]);
    assert_eq!(try_put(harness, 6, &unique("a")).outcome, PutOutcome::Added);
}

fn a_job_that_is_kept_for_an_event_begins_after_the_put<F: Fixture>(harness: &Harness<F>) {
    let first = try_put(harness, 1, &one_more());
    let queue = harness.queue();
    std::thread::scope(|threads| {
        let waiter = harness
            .transaction(|conn| {
                assert_eq!(queue.on(conn).put_with(&json!(2), &one_more())?, kept(first.id));
                assert!(harness.get().is_none(), "the put has not committed");
                Ok(harness.blocked_waiter(threads))
            })
            .unwrap();
        assert_eq!(waiter.recv_timeout(TIMEOUT).unwrap(), Some(json!(1)), "the commit wakes waiters");
    });
}

fn a_job_that_returns_behind_one_more_has_no_key<F: Fixture>(harness: &Harness<F>) {
    let again = Outcome::Retry { after: Duration::ZERO, error: "again".to_owned(), payload: None };
    for outcome in [Some(Outcome::GiveBack), Some(again), Some(Outcome::snooze(Duration::ZERO)), None] {
        let first = try_put(harness, 1, &one_more());
        let running = harness.lease_one();
        let second = try_put(harness, 2, &one_more());
        match outcome {
            Some(outcome) => harness.settle(&running, outcome),
            None => harness.lose_lease(&running),
        }
        assert_eq!(harness.queue().find(first.id).unwrap().unwrap().unique_key, None);
        assert_eq!(try_put(harness, 3, &one_more()), kept(second.id));
        assert_eq!(harness.drain(), [1, 2], "nothing is lost");
    }
}

fn a_retry_passes_a_job_whose_key_is_in_an_uncommitted_put<F: Fixture>(harness: &Harness<F>) {
    for options in [unique("a"), PutOptions::new(), unique("b"), unique("c")] {
        try_put(harness, 1, &options);
        harness.settle(&harness.lease_one(), Outcome::Dead { error: "broken".to_owned() });
    }
    let queue = harness.queue();
    let retry_all = || harness.pq.store().requeue(&mut harness.connect(), queue.name(), None).unwrap();
    harness
        .transaction(|conn| {
            queue.on(conn).put_with(&json!(2), &unique("b"))?;
            assert_eq!(retry_all(), 3, "all but the job whose key the open transaction claims");
            Ok(())
        })
        .unwrap();
    let counts = harness.counts();
    assert_eq!((counts.ready, counts.dead), (4, 1));
    assert_eq!(retry_all(), 0, "the key belongs to a waiting job now");
    assert_eq!(harness.drain().len(), 4);
    assert_eq!(retry_all(), 1);
}

fn a_put_can_reschedule_the_waiting_job<F: Fixture>(harness: &Harness<F>) {
    let first = try_put(harness, 1, &unique("a"));
    let options = PutOptions::new().unique_or("a", OnConflict::Reschedule).schedule_at("1h");
    assert_eq!(try_put(harness, 2, &options), Put { id: first.id, outcome: PutOutcome::Rescheduled });
    assert!(harness.get().is_none());
    let options = PutOptions::new().unique_or("a", OnConflict::Reschedule);
    assert_eq!(try_put(harness, 3, &options).outcome, PutOutcome::Rescheduled);
    assert_eq!(harness.drain(), [1], "rescheduling keeps the first payload");
}

fn a_leased_job_keeps_its_key<F: Fixture>(harness: &Harness<F>) {
    let first = try_put(harness, 1, &unique("a"));
    let job = harness.lease_one();
    assert_eq!(job.unique_key.as_ref().map(|key| key.as_str()), Some("a"));
    assert_eq!(try_put(harness, 2, &unique("a")), kept(first.id));
    assert_eq!(harness.counts().ready, 0);
}

fn a_running_job_is_not_replaced<F: Fixture>(harness: &Harness<F>) {
    let first = try_put(harness, 1, &unique("a"));
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            queue.on(conn).get()?;
            // The put does not wait for the running job, either.
            let options = PutOptions::new().unique_or("a", OnConflict::Replace);
            assert_eq!(try_put(harness, 2, &options), kept(first.id));
            Ok(())
        })
        .unwrap();
    assert_eq!(harness.counts().live(), 0);
}

fn a_finished_job_releases_its_key<F: Fixture>(harness: &Harness<F>) {
    for outcome in [
        Outcome::Complete,
        Outcome::Keep { result: None },
        Outcome::Dead { error: "broken".to_owned() },
        Outcome::Cancel { reason: None },
    ] {
        assert_eq!(try_put(harness, 1, &unique("a")).outcome, PutOutcome::Added);
        harness.settle(&harness.lease_one(), outcome);
    }
    assert_eq!(try_put(harness, 1, &unique("a")).outcome, PutOutcome::Added);
}

fn a_job_that_was_got_releases_its_key<F: Fixture>(harness: &Harness<F>) {
    let first = try_put(harness, 1, &unique("a"));
    assert_eq!(harness.get().map(|job| job.id), Some(first.id));
    let second = try_put(harness, 2, &unique("a"));
    assert_eq!(second.outcome, PutOutcome::Added);
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            queue.on(conn).get()?;
            let within = queue.on(conn).put_with(&json!(3), &unique("a"))?;
            assert_eq!(within.outcome, PutOutcome::Added, "a handler can put the next job of its key");
            Ok(())
        })
        .unwrap();
    assert_eq!(harness.drain(), [3]);
}

fn a_rolled_back_put_leaves_the_key_free<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.queue();
    let rolled_back = harness.transaction(|conn| {
        queue.on(conn).put_with(&json!(1), &unique("a"))?;
        roll_back::<()>()
    });
    assert!(rolled_back.is_err());
    assert_eq!(try_put(harness, 2, &unique("a")).outcome, PutOutcome::Added);
}

fn a_rolled_back_get_keeps_the_key<F: Fixture>(harness: &Harness<F>) {
    let first = try_put(harness, 1, &unique("a"));
    let queue = harness.queue();
    let rolled_back = harness.transaction(|conn| {
        queue.on(conn).get()?;
        roll_back::<()>()
    });
    assert!(rolled_back.is_err());
    assert_eq!(try_put(harness, 2, &unique("a")), kept(first.id));
}

fn a_returned_job_keeps_its_key<F: Fixture>(harness: &Harness<F>) {
    let first = try_put(harness, 1, &unique("a"));
    for outcome in [
        Outcome::GiveBack,
        Outcome::Retry { after: Duration::ZERO, error: "again".to_owned(), payload: None },
        Outcome::snooze(Duration::ZERO),
    ] {
        harness.settle(&harness.lease_one(), outcome);
        assert_eq!(try_put(harness, 2, &unique("a")), kept(first.id));
    }
    harness.lose_lease(&harness.lease_one());
    assert_eq!(try_put(harness, 2, &unique("a")), kept(first.id));
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            let job = queue.on(conn).get()?.unwrap();
            Ok(queue.on(conn).give_back(&job)?)
        })
        .unwrap();
    assert_eq!(try_put(harness, 2, &unique("a")), kept(first.id));
}

fn a_batch_with_one_key_twice_puts_one_job<F: Fixture>(harness: &Harness<F>) {
    let (one, two) = (unique("a"), PutOptions::new().unique_or("a", OnConflict::Replace));
    let jobs = [(json!(1), one.clone()), (json!(2), one), (json!(3), two)];
    let put = harness.queue().put_many_with(jobs.iter().map(|(data, options)| (data, options))).unwrap();
    assert_eq!(put[1], kept(put[0].id));
    assert_eq!(put[2], Put { id: put[0].id, outcome: PutOutcome::Replaced });
    assert_eq!(harness.drain(), [3]);
}

fn a_batch_is_answered_in_order_with_ascending_ids<F: Fixture>(harness: &Harness<F>) {
    let old = try_put(harness, 0, &unique("m"));
    let jobs = [
        (json!(1), unique("z")),
        (json!(2), PutOptions::new()),
        (json!(3), unique("m")),
        (json!(4), unique("a")),
    ];
    let put = harness.queue().put_many_with(jobs.iter().map(|(data, options)| (data, options))).unwrap();
    assert_eq!(put[2], kept(old.id));
    assert!(put[0].id < put[1].id && put[1].id < put[3].id, "{put:?}");
    assert_eq!(harness.drain(), [0, 1, 2, 4]);
}

fn a_unique_key_applies_to_its_queue_only<F: Fixture>(harness: &Harness<F>) {
    try_put(harness, 1, &unique("a"));
    let pears = harness.named::<Value>("pears");
    assert_eq!(pears.put_with(&json!(1), &unique("a")).unwrap().outcome, PutOutcome::Added);
}

fn a_cleared_job_releases_its_key<F: Fixture>(harness: &Harness<F>) {
    try_put(harness, 1, &unique("a"));
    assert_eq!(harness.clear(), 1);
    assert_eq!(try_put(harness, 1, &unique("a")).outcome, PutOutcome::Added);
}

fn rescheduling_a_job_to_now_wakes_a_waiter<F: Fixture>(harness: &Harness<F>) {
    try_put(harness, 1, &unique("a").schedule_at("1h"));
    std::thread::scope(|threads| {
        let waiter = harness.blocked_waiter(threads);
        try_put(harness, 2, &PutOptions::new().unique_or("a", OnConflict::Reschedule));
        assert_eq!(waiter.recv_timeout(TIMEOUT).unwrap(), Some(json!(1)));
    });
}

fn concurrent_puts_of_one_key_put_one_job<F: Fixture>(harness: &Harness<F>) {
    const THREADS: usize = 32;
    let start = Barrier::new(THREADS);
    let put = |n: usize| {
        let mut conn = harness.connect();
        let queue = harness.queue();
        start.wait();
        (0..5)
            .map(|_| {
                let data = json!(n);
                let job = harness
                    .pq
                    .store()
                    .transaction(&mut conn, |conn| queue.on(conn).put_with(&data, &unique("a")));
                job.unwrap()
            })
            .collect::<Vec<Put>>()
    };
    let all: Vec<Put> = std::thread::scope(|threads| {
        let put = &put;
        let putters: Vec<_> = (0..THREADS).map(|n| threads.spawn(move || put(n))).collect();
        putters.into_iter().flat_map(|putter| putter.join().unwrap()).collect()
    });
    assert_eq!(all.iter().filter(|put| put.outcome == PutOutcome::Added).count(), 1);
    assert!(all.iter().all(|put| put.id == all[0].id));
    assert_eq!(harness.counts().ready, 1);
    assert!(harness.lease(5, TIMEOUT).len() == 1);
}
