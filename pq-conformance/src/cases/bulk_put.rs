//! Bulk puts: `put_all` and large batches follow the same rules as single puts.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use pq_core::{JobState, PayloadLimits, PutOptions};
use serde_json::{Value, json};

use super::cases;
use crate::Fixture;
use crate::harness::{Access, Error, Harness, TIMEOUT, ids, roll_back};

cases![
    jobs_are_put_in_the_iterators_order: Both,
    an_empty_iterator_puts_nothing: Both,
    each_job_has_its_own_options: Both,
    each_job_of_a_large_batch_has_its_own_options_and_id: Both,
    ids_of_a_large_batch_ascend_after_existing_ids: Both,
    a_rolled_back_bulk_put_is_never_visible: Both,
    an_invalid_job_puts_nothing_and_leaves_the_transaction_usable: Both,
    a_panic_in_the_iterator_puts_nothing_and_leaves_the_transaction_usable: Both,
    put_all_refuses_unique_keys: Own,
    a_bulk_put_wakes_waiters_at_the_commit: Both,
    the_iterator_may_put_to_another_queue: Own,
];

/// More jobs than a store sends in one statement.
const MANY: usize = 2_500;

fn numbers(count: usize) -> impl Iterator<Item = Value> {
    (0..count).map(|n| json!({ "n": n }))
}

fn put_all<F: Fixture>(harness: &Harness<F>, jobs: impl Iterator<Item = Value>) -> Result<u64, Error<F>> {
    match harness.access() {
        Access::Own => harness.queue().put_all(jobs),
        Access::Callers => harness.queue().on(&mut harness.connect()).put_all(jobs),
    }
}

fn taken<F: Fixture>(harness: &Harness<F>) -> Vec<Value> {
    harness.get_many(2 * MANY).into_iter().map(|job| job.data).collect()
}

fn jobs_are_put_in_the_iterators_order<F: Fixture>(harness: &Harness<F>) {
    let mut awkward =
        vec![json!("\\.\t\n\r\0 \u{7f} \\N ж 🍎"), json!(null), json!(""), json!("x".repeat(200_000))];
    awkward.extend(numbers(MANY));
    let given = awkward.clone();
    assert_eq!(put_all(harness, given.into_iter()).unwrap(), awkward.len() as u64);
    assert_eq!(taken(harness), awkward);
}

fn an_empty_iterator_puts_nothing<F: Fixture>(harness: &Harness<F>) {
    assert_eq!(put_all(harness, numbers(0)).unwrap(), 0);
    assert_eq!(harness.counts().live(), 0);
}

/// Returns six different options; one of the jobs is not due.
fn various() -> [PutOptions; 6] {
    let due = chrono::DateTime::parse_from_rfc3339("2001-02-03T04:05:06.123456+02:00").unwrap();
    [
        PutOptions::new(),
        PutOptions::new().priority(-7),
        PutOptions::new().schedule_at("1h"),
        PutOptions::new().schedule_at(due).expected_at(due),
        PutOptions::new().expected_at("1h").priority(i32::MAX),
        PutOptions::new().serialization_key("a key"),
    ]
}

fn assert_various<F: Fixture>(harness: &Harness<F>, scheduled: u64) {
    let counts = harness.counts();
    assert_eq!((counts.ready, counts.scheduled), (5, scheduled));
    let jobs = harness.get_many(100);
    let order: Vec<_> = jobs.iter().map(|job| job.data["n"].as_u64().unwrap()).collect();
    assert_eq!(order, [4, 3, 0, 5, 1]);
    let due = chrono::DateTime::parse_from_rfc3339("2001-02-03T02:05:06.123456Z").unwrap().to_utc();
    assert_eq!((jobs[1].schedule_at, jobs[1].expected_at), (Some(due), Some(due)));
    assert_eq!((jobs[0].priority, jobs[4].priority), (i32::MAX, -7));
    assert_eq!(jobs[3].serialization_key.as_ref().map(pq_core::Key::as_str), Some("a key"));
    let delay = jobs[0].expected_at.unwrap() - jobs[0].enqueued_at;
    assert!((delay - chrono::TimeDelta::hours(1)).abs() < chrono::TimeDelta::minutes(10), "{delay}");
}

fn each_job_has_its_own_options<F: Fixture>(harness: &Harness<F>) {
    let jobs = || numbers(6).zip(various());
    let put = match harness.access() {
        Access::Own => harness.queue().put_all_with(jobs()),
        Access::Callers => harness.queue().on(&mut harness.connect()).put_all_with(jobs()),
    };
    assert_eq!(put.unwrap(), 6);
    assert_various(harness, 1);
}

fn each_job_of_a_large_batch_has_its_own_options_and_id<F: Fixture>(harness: &Harness<F>) {
    let data: Vec<_> = numbers(MANY).collect();
    let later = PutOptions::new().schedule_at("1d");
    let options = various();
    let jobs = data.iter().enumerate().map(|(n, data)| (data, options.get(n).unwrap_or(&later)));
    let put = match harness.access() {
        Access::Own => harness.queue().put_many_with(jobs),
        Access::Callers => harness.queue().on(&mut harness.connect()).put_many_with(jobs),
    };
    let put = put.unwrap();
    assert_eq!(put.len(), MANY);
    for n in [6, MANY - 1] {
        harness.queue().cancel(put[n].id).unwrap();
        assert_eq!(harness.archived(JobState::Cancelled)[0].payload.as_str(), data[n].to_string());
    }
    assert_various(harness, MANY as u64 - 7);
}

fn ids_of_a_large_batch_ascend_after_existing_ids<F: Fixture>(harness: &Harness<F>) {
    let first = harness.put(0);
    let data: Vec<_> = numbers(MANY).collect();
    let put = harness.transaction(|conn| Ok(harness.queue().on(conn).put_many(&data)?)).unwrap();
    let ids = ids(put);
    assert!(first < ids[0] && ids.is_sorted_by(|a, b| a < b));
    let last = harness.put(1);
    assert!(ids[MANY - 1] < last);
    let got: Vec<_> = harness.get_many(2 * MANY).iter().map(|job| (job.id, job.data.clone())).collect();
    assert_eq!(got[1..=MANY], ids.into_iter().zip(data).collect::<Vec<_>>());
}

fn a_rolled_back_bulk_put_is_never_visible<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.queue();
    let data: Vec<_> = numbers(MANY).collect();
    let rolled_back = harness.transaction(|conn| {
        assert_eq!(queue.on(conn).put_all(numbers(MANY))?, MANY as u64);
        queue.on(conn).put_many(&data)?;
        assert_eq!(queue.on(conn).counts()?.ready, 2 * MANY as u64);
        assert_eq!(
            queue.on(&mut harness.connect()).counts()?.live(),
            0,
            "others must not see uncommitted jobs"
        );
        roll_back::<()>()
    });
    assert!(rolled_back.is_err());
    assert_eq!(harness.counts().live(), 0);
}

fn an_invalid_job_puts_nothing_and_leaves_the_transaction_usable<F: Fixture>(harness: &Harness<F>) {
    let limits = PayloadLimits { max_bytes: 100, ..PayloadLimits::default() };
    let queue = harness.pq.clone().with_limits(limits).queue::<Value>("apples").unwrap();
    let bad = || numbers(MANY).chain([json!("x".repeat(200))]).chain(numbers(1));
    let too_large = |refused: Result<u64, Error<F>>| {
        let error = refused.unwrap_err();
        let error = harness.fixture.core_error(&error);
        assert!(matches!(error, Some(pq_core::Error::PayloadTooLarge { bytes: 202, .. })), "{error:?}");
    };
    too_large(queue.put_all(bad()));
    assert_eq!(harness.counts().live(), 0);
    harness
        .transaction(|conn| {
            queue.on(conn).put(&json!("before"))?;
            too_large(queue.on(conn).put_all(bad()));
            queue.on(conn).put(&json!("after"))?;
            Ok(())
        })
        .unwrap();
    assert_eq!(harness.drain(), [json!("before"), json!("after")]);
}

fn a_panic_in_the_iterator_puts_nothing_and_leaves_the_transaction_usable<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.queue();
    let bad = || numbers(MANY).chain(std::iter::from_fn(|| panic!("on purpose")));
    harness
        .transaction(|conn| {
            queue.on(conn).put(&json!("before"))?;
            let panicked = catch_unwind(AssertUnwindSafe(|| queue.on(conn).put_all(bad())));
            assert!(panicked.is_err());
            queue.on(conn).put(&json!("after"))?;
            Ok(())
        })
        .unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| queue.put_all(bad()))).is_err());
    assert_eq!(harness.drain(), [json!("before"), json!("after")]);
}

fn put_all_refuses_unique_keys<F: Fixture>(harness: &Harness<F>) {
    let jobs = numbers(2).zip([PutOptions::new(), PutOptions::new().unique("only")]);
    let refused = harness.queue().put_all_with(jobs).unwrap_err();
    assert!(matches!(harness.fixture.core_error(&refused), Some(pq_core::Error::UniqueKey)), "{refused}");
    assert_eq!(harness.counts().live(), 0);
}

fn a_bulk_put_wakes_waiters_at_the_commit<F: Fixture>(harness: &Harness<F>) {
    let data: Vec<_> = numbers(MANY).collect();
    for all in [true, false] {
        thread::scope(|threads| {
            let blocked_waiter = harness.blocked_waiter(threads);
            let put = harness.transaction(|conn| {
                let queue = harness.queue();
                if all {
                    queue.on(conn).put_all(&data).map(drop)?
                } else {
                    queue.on(conn).put_many(&data).map(drop)?
                }
                assert!(
                    blocked_waiter.recv_timeout(std::time::Duration::from_millis(20)).is_err(),
                    "no wake-up before the commit"
                );
                Ok(())
            });
            put.unwrap();
            assert_eq!(blocked_waiter.recv_timeout(TIMEOUT), Ok(Some(json!({ "n": 0 }))));
        });
        assert_eq!(harness.clear(), MANY as u64 - 1);
        thread::scope(|threads| {
            let blocked_waiter = harness.blocked_waiter(threads);
            if all {
                put_all(harness, numbers(MANY)).unwrap();
            } else {
                harness.queue().put_many(&data).unwrap();
            }
            assert_eq!(blocked_waiter.recv_timeout(TIMEOUT), Ok(Some(json!({ "n": 0 }))));
        });
        assert_eq!(harness.clear(), MANY as u64 - 1);
    }
}

fn the_iterator_may_put_to_another_queue<F: Fixture>(harness: &Harness<F>) {
    let pears = harness.named::<Value>("pears");
    let mut conn = harness.connect();
    let jobs = numbers(3).inspect(|_| assert_eq!(pears.on(&mut conn).put_all(numbers(2)).unwrap(), 2));
    assert_eq!(harness.queue().on(&mut harness.connect()).put_all(jobs).unwrap(), 3);
    assert_eq!((harness.counts().ready, pears.counts().unwrap().ready), (3, 6));
}
