//! Leases: a job is held for a time without an open transaction.

use std::time::Duration;

use pq_core::store::{Connect, Extension, Jobs};
use pq_core::{CancelOutcome, JobId, JobState, Outcome, PutOptions, Settlement};
use serde_json::json;

use super::cases;
use crate::Fixture;
use crate::harness::{CaseError, Error, Harness, TIMEOUT, ids, roll_back};

cases![
    a_leased_job_stays_leased_after_the_commit: Both,
    a_completed_leased_job_is_deleted: Both,
    an_expired_lease_returns_the_job_and_counts_the_attempt: Both,
    a_lost_lease_of_several_jobs_counts_no_attempt: Both,
    jobs_of_lost_leases_are_alone_at_last: Both,
    only_the_return_of_an_attempt_that_did_not_begin_keeps_the_limit: Both,
    maintenance_reports_that_more_leases_may_have_expired: Both,
    an_extended_lease_does_not_expire: Both,
    an_outcome_after_the_lease_is_lost_is_refused_and_changes_nothing: Both,
    an_outcome_of_an_earlier_attempt_is_refused_while_a_later_one_runs: Both,
    an_expired_lease_is_valid_until_maintenance_returns_the_job: Both,
    a_second_outcome_is_refused: Both,
    each_job_of_a_batch_is_settled_separately: Both,
    settled_jobs_of_a_batch_are_not_returned_with_the_rest: Both,
    settle_many_answers_for_each_job: Both,
    of_two_outcomes_of_a_job_only_one_is_accepted: Both,
    a_lease_whose_jobs_a_transaction_settles_is_neither_extended_nor_lost: Both,
    a_lease_is_extended_while_a_transaction_settles_one_of_its_jobs: Both,
    a_cancellation_of_a_job_that_a_transaction_settles_changes_nothing: Both,
    a_rolled_back_outcome_has_no_effect: Both,
    a_late_outcome_aborts_its_transaction: Both,
    a_rolled_back_lease_has_no_effect: Both,
    concurrent_takers_never_lease_the_same_job: Both,
    a_checkpoint_is_stored_immediately: Both,
    a_checkpoint_after_the_lease_is_lost_is_refused: Both,
    a_leased_job_given_back_is_unchanged: Both,
    a_snoozed_job_waits_and_its_attempt_does_not_count: Both,
    a_retried_job_keeps_its_id_priority_and_expected_at: Both,
    a_retry_can_replace_the_payload: Both,
    a_returned_job_wakes_a_waiter: Both,
    jobs_are_leased_in_order: Both,
];

fn a_leased_job_stays_leased_after_the_commit<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    let job = harness.lease_one();
    assert_eq!((job.id, job.attempt, &job.data), (id, 1, &json!("a")));
    assert!(harness.get().is_none());
    assert!(harness.lease(1, TIMEOUT).is_empty());
    let counts = harness.counts();
    assert_eq!((counts.running, counts.ready), (1, 0));
    let found = harness.queue().find(id).unwrap().unwrap();
    assert_eq!((found.state, found.attempt), (JobState::Running, 1));
}

fn a_completed_leased_job_is_deleted<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    harness.settle(&harness.lease_one(), Outcome::Complete);
    assert_eq!(harness.counts().total(), 0);
    assert!(harness.queue().find(id).unwrap().is_none());
}

fn an_expired_lease_returns_the_job_and_counts_the_attempt<F: Fixture>(harness: &Harness<F>) {
    let options = PutOptions::new().priority(4).expected_at("2001-01-01T00:00:00Z");
    let id = harness.put_with("a", &options);
    assert_eq!(harness.lease(1, Duration::ZERO).len(), 1);
    assert_eq!(harness.maintain().returned, 1);
    let job = harness.lease_one();
    assert_eq!((job.id, job.attempt, job.priority), (id, 2, 4));
    assert_eq!((job.crashes, job.lease_limit), (1, Some(1)), "a job that was alone in its lease has crashed");
    assert!(job.expected_at.is_some());
    assert_eq!(harness.maintain().returned, 0);
}

/// Returns the attempt, the crashes and the error of the job.
fn history<F: Fixture>(harness: &Harness<F>, id: JobId) -> (i32, i32, String) {
    let found = harness.queue().find(id).unwrap().unwrap();
    (found.attempt, found.crashes, found.error.unwrap_or_default())
}

fn a_lost_lease_of_several_jobs_counts_no_attempt<F: Fixture>(harness: &Harness<F>) {
    let ids = [harness.put("a"), harness.put("b"), harness.put("c")];
    let jobs = harness.lease(3, Duration::ZERO);
    assert!(jobs.iter().all(|job| (job.attempt, job.lease_limit) == (1, None)));
    assert_eq!(harness.maintain().returned, 3);
    for id in ids {
        let (attempt, crashes, error) = history(harness, id);
        assert_eq!((attempt, crashes), (0, 0), "nobody knows whether it began");
        assert!(error.contains("lease of 3"), "{error}");
    }
    let jobs = harness.lease(3, TIMEOUT);
    assert!(jobs.iter().all(|job| (job.attempt, job.crashes, job.lease_limit) == (1, 0, Some(1))));
}

/// One of 64 jobs kills each worker that begins it, and it is the last of each lease.
fn jobs_of_lost_leases_are_alone_at_last<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.queue();
    let put = ids(queue.put_many(vec![json!("a"); 64]).unwrap());
    assert_eq!(harness.lease(64, Duration::ZERO).len(), 64);
    assert_eq!(harness.maintain().returned, 64);
    // Of the second lease only the first eight were kept.
    let jobs = harness.lease(64, Duration::ZERO);
    assert!(jobs.iter().all(|job| job.lease_limit == Some(8)));
    jobs[8..].iter().for_each(|job| harness.settle(job, Outcome::GiveBack));
    assert_eq!(harness.maintain().returned, 8);
    let jobs = harness.lease(64, Duration::ZERO);
    let limits = |limit| jobs.iter().filter(|job| job.lease_limit == Some(limit)).count();
    assert_eq!((limits(1), limits(8)), (8, 56));
    assert_eq!(history(harness, put[0]).0, 1, "the first of them runs");
    // Only the first was kept, and it is known to have been begun alone.
    jobs[1..].iter().for_each(|job| harness.settle(job, Outcome::GiveBack));
    assert_eq!(harness.maintain().returned, 1);
    let (attempt, crashes, error) = history(harness, put[0]);
    assert_eq!((attempt, crashes), (1, 1));
    assert!(error.contains("attempt 1"), "{error}");
    assert!(put[1..].iter().all(|id| history(harness, *id).1 == 0));
    // A lease of several jobs of which one is left does not prove that this one began.
    let jobs = harness.lease(64, Duration::ZERO);
    jobs[..63].iter().for_each(|job| harness.settle(job, Outcome::Complete));
    assert_eq!(harness.maintain().returned, 1);
    assert_eq!((history(harness, put[63]).0, history(harness, put[63]).1), (0, 0));
    assert_eq!(harness.lease_one().lease_limit, Some(1));
}

fn only_the_return_of_an_attempt_that_did_not_begin_keeps_the_limit<F: Fixture>(harness: &Harness<F>) {
    let retry = Outcome::Retry { after: Duration::ZERO, error: "again".to_owned(), payload: None };
    let cases = [
        (Outcome::GiveBack, (2, 1, Some(1))),
        (Outcome::snooze(Duration::ZERO), (2, 1, None)),
        (retry, (3, 1, None)),
    ];
    for (outcome, expected) in cases {
        for lease in [true, false] {
            harness.put("a");
            harness.lease(1, Duration::ZERO);
            assert_eq!(harness.maintain().returned, 1);
            if lease {
                harness.settle(&harness.lease_one(), outcome.clone());
            } else {
                let queue = harness.queue();
                let settled = harness.transaction(|conn| {
                    let job = queue.on(conn).get()?.unwrap();
                    Ok(queue.on(conn).settle(&job, outcome.clone())?)
                });
                settled.unwrap();
            }
            let job = harness.lease_one();
            assert_eq!((job.attempt, job.crashes, job.lease_limit), expected, "{outcome:?}");
            harness.settle(&job, Outcome::Dead { error: "no".to_owned() });
            let dead = harness.archived(JobState::Dead).remove(0);
            assert_eq!((dead.attempt, dead.crashes), (expected.0, 1));
            assert_eq!(harness.queue().retry_all_dead().unwrap(), 1);
            let job = harness.lease_one();
            assert_eq!((job.attempt, job.crashes, job.lease_limit), (1, 0, None), "requeueing resets them");
            harness.settle(&job, Outcome::Complete);
        }
    }
}

fn maintenance_reports_that_more_leases_may_have_expired<F: Fixture>(harness: &Harness<F>) {
    const LEASES: usize = 250;
    harness.queue().put_many(vec![json!("a"); LEASES]).unwrap();
    (0..LEASES).for_each(|_| assert_eq!(harness.lease(1, Duration::ZERO).len(), 1));
    let mut reports = vec![harness.maintain()];
    while reports.last().is_some_and(|report| report.more) {
        reports.push(harness.maintain());
    }
    assert_eq!(reports.iter().map(|report| report.returned).sum::<u64>(), LEASES as u64);
    assert_eq!(harness.counts().ready, LEASES as u64);
}

fn an_extended_lease_does_not_expire<F: Fixture>(harness: &Harness<F>) {
    harness.put("a");
    let job = harness.lease(1, Duration::ZERO).pop().unwrap();
    harness.queue().extend(&job, TIMEOUT).unwrap();
    assert_eq!(harness.maintain().returned, 0);
    harness.settle(&job, Outcome::Complete);
}

fn an_outcome_after_the_lease_is_lost_is_refused_and_changes_nothing<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    for outcome in [
        Outcome::Complete,
        Outcome::Keep { result: None },
        Outcome::Dead { error: "late".to_owned() },
        Outcome::Retry { after: Duration::ZERO, error: "late".to_owned(), payload: None },
        Outcome::snooze(TIMEOUT),
        Outcome::Cancel { reason: None },
        Outcome::GiveBack,
    ] {
        let job = harness.lease_one();
        harness.lose_lease(&job);
        assert!(harness.is_lease_lost(harness.try_settle(&job, outcome)));
        assert!(harness.queue().extend(&job, TIMEOUT).is_err());
        let counts = harness.counts();
        assert_eq!((counts.ready, counts.live(), counts.dead), (1, 1, 0));
    }
    assert_eq!(harness.get().map(|job| job.id), Some(id));
}

fn an_outcome_of_an_earlier_attempt_is_refused_while_a_later_one_runs<F: Fixture>(harness: &Harness<F>) {
    harness.put("a");
    let first = harness.lease_one();
    harness.lose_lease(&first);
    let second = harness.lease_one();
    assert_eq!((first.attempt, second.attempt), (1, 2));
    assert!(harness.is_lease_lost(harness.try_settle(&first, Outcome::Complete)));
    assert_eq!(harness.counts().running, 1);
    harness.settle(&second, Outcome::Complete);
    assert!(harness.is_lease_lost(harness.try_settle(&first, Outcome::Complete)));
    assert_eq!(harness.counts().live(), 0);
}

fn an_expired_lease_is_valid_until_maintenance_returns_the_job<F: Fixture>(harness: &Harness<F>) {
    harness.put("a");
    let job = harness.lease(1, Duration::ZERO).pop().unwrap();
    harness.settle(&job, Outcome::Complete);
    assert_eq!((harness.maintain().returned, harness.counts().live()), (0, 0));
}

fn a_second_outcome_is_refused<F: Fixture>(harness: &Harness<F>) {
    harness.queue().put_many(&[json!(1), json!(2)]).unwrap();
    let jobs = harness.lease(2, TIMEOUT);
    harness.settle(&jobs[0], Outcome::Complete);
    let dead = Outcome::Dead { error: "no".to_owned() };
    assert!(harness.is_lease_lost(harness.try_settle(&jobs[0], dead)));
    // It is refused in a batch as well, and does not affect the other outcomes.
    let complete = |job| Settlement { job, outcome: Outcome::Complete };
    let settlements: Vec<Settlement<'_>> = jobs.iter().map(|job| complete(&**job)).collect();
    assert_eq!(harness.queue().settle_many(&settlements).unwrap(), [false, true]);
    assert_eq!((harness.counts().live(), harness.counts().dead), (0, 0));
}

fn each_job_of_a_batch_is_settled_separately<F: Fixture>(harness: &Harness<F>) {
    let put = harness.queue().put_many(&[json!(0), json!(1), json!(2), json!(3)]).unwrap();
    let jobs = harness.lease(4, TIMEOUT);
    harness.settle(&jobs[0], Outcome::Complete);
    harness.settle(&jobs[1], Outcome::Dead { error: "broken".to_owned() });
    harness.settle(&jobs[2], Outcome::GiveBack);
    let counts = harness.counts();
    assert_eq!((counts.ready, counts.running, counts.dead), (1, 1, 1));
    assert_eq!(harness.get().map(|job| job.id), Some(put[2].id));
    harness.settle(&jobs[3], Outcome::Complete);
    assert_eq!(harness.counts().live(), 0);
}

fn settled_jobs_of_a_batch_are_not_returned_with_the_rest<F: Fixture>(harness: &Harness<F>) {
    harness.queue().put_many(&[json!(0), json!(1), json!(2)]).unwrap();
    let jobs = harness.lease(3, TIMEOUT);
    harness.settle(&jobs[1], Outcome::Complete);
    harness.lose_lease(&jobs[0]);
    assert_eq!(harness.drain(), [json!(0), json!(2)]);
}

fn settle_many_answers_for_each_job<F: Fixture>(harness: &Harness<F>) {
    harness.queue().put_many(&[json!(0), json!(1)]).unwrap();
    let lost = harness.lease_one();
    harness.lose_lease(&lost);
    let (one, other) = (harness.lease_one(), harness.lease_one());
    let settlements = [&lost, &one, &other].map(|job| Settlement { job, outcome: Outcome::Complete });
    assert_eq!(harness.queue().settle_many(&settlements).unwrap(), [false, true, true]);
    assert_eq!(harness.queue().settle_many(&[]).unwrap(), [false; 0]);
}

/// The second one may wait for the transaction of the first.
fn of_two_outcomes_of_a_job_only_one_is_accepted<F: Fixture>(harness: &Harness<F>) {
    let retry = Outcome::Retry { after: Duration::ZERO, error: "again".to_owned(), payload: None };
    for late in [Outcome::Complete, retry] {
        harness.queue().put_many(&[json!(0), json!(1)]).unwrap();
        let (queue, jobs) = (harness.queue(), harness.lease(2, TIMEOUT));
        let settlements: Vec<Settlement<'_>> =
            jobs.iter().map(|job| Settlement { job, outcome: late.clone() }).collect();
        let accepted = std::thread::scope(|threads| {
            let late = harness.transaction(|conn| {
                queue.on(conn).settle(&jobs[0], Outcome::Complete)?;
                let late = threads.spawn(|| queue.settle_many(&settlements).unwrap());
                // It most likely waits by then, or is answered at once.
                std::thread::sleep(Duration::from_millis(50));
                Ok(late)
            });
            late.unwrap().join().unwrap()
        });
        assert_eq!(accepted, [false, true]);
        assert_eq!(harness.drain().len(), usize::from(matches!(late, Outcome::Retry { .. })));
        assert_eq!(harness.counts().live(), 0);
    }
}

fn a_lease_whose_jobs_a_transaction_settles_is_neither_extended_nor_lost<F: Fixture>(harness: &Harness<F>) {
    for outcome in [Outcome::Complete, Outcome::GiveBack] {
        harness.put("a");
        let (queue, job) = (harness.queue(), harness.lease_one());
        let extend = || -> Result<_, Error<F>> {
            let store = harness.pq.store();
            store.with_connection(|conn| store.extend(conn, &[job.token], TIMEOUT))
        };
        let rolled_back = harness.transaction(|conn| {
            queue.on(conn).settle(&job, outcome.clone())?;
            assert_eq!(extend()?, [Extension::Locked(job.token)]);
            roll_back::<()>()
        });
        assert!(rolled_back.is_err());
        assert!(matches!(extend().unwrap()[..], [Extension::Extended(_)]));
        harness.settle(&job, outcome);
        assert_eq!(extend().unwrap(), []);
        harness.clear();
    }
}

fn a_lease_is_extended_while_a_transaction_settles_one_of_its_jobs<F: Fixture>(harness: &Harness<F>) {
    harness.queue().put_many(&[json!(0), json!(1)]).unwrap();
    let (queue, jobs) = (harness.queue(), harness.lease(2, Duration::ZERO));
    harness
        .transaction(|conn| {
            queue.on(conn).settle(&jobs[0], Outcome::Complete)?;
            Ok(queue.extend(&jobs[1], TIMEOUT)?)
        })
        .unwrap();
    assert_eq!(harness.maintain().returned, 0);
    harness.settle(&jobs[1], Outcome::Complete);
    assert_eq!(harness.counts().live(), 0);
}

fn a_cancellation_of_a_job_that_a_transaction_settles_changes_nothing<F: Fixture>(harness: &Harness<F>) {
    for outcome in [Outcome::Complete, Outcome::GiveBack] {
        let id = harness.put("a");
        let (queue, job) = (harness.queue(), harness.lease_one());
        let rolled_back = harness.transaction(|conn| {
            queue.on(conn).settle(&job, outcome.clone())?;
            assert_eq!(harness.queue().cancel(id)?, CancelOutcome::Held);
            roll_back::<()>()
        });
        assert!(rolled_back.is_err());
        assert_eq!(harness.queue().cancel(id).unwrap(), CancelOutcome::Requested);
        harness.settle(&job, Outcome::GiveBack);
        assert_eq!((harness.counts().live(), harness.counts().cancelled), (0, 1));
        harness.queue().prune(JobState::Cancelled, Duration::ZERO).unwrap();
    }
}

fn a_rolled_back_outcome_has_no_effect<F: Fixture>(harness: &Harness<F>) {
    harness.put("a");
    let (queue, job) = (harness.queue(), harness.lease_one());
    let rolled_back = harness.transaction(|conn| {
        queue.on(conn).settle(&job, Outcome::Complete)?;
        roll_back::<()>()
    });
    assert!(rolled_back.is_err());
    assert_eq!(harness.counts().running, 1);
    harness.settle(&job, Outcome::Complete);
}

fn a_late_outcome_aborts_its_transaction<F: Fixture>(harness: &Harness<F>) {
    harness.put("a");
    let (queue, job) = (harness.queue(), harness.lease_one());
    harness.lose_lease(&job);
    let aborted = harness.transaction(|conn| {
        queue.on(conn).put(&json!("written with the outcome"))?;
        Ok(queue.on(conn).settle(&job, Outcome::Complete)?)
    });
    assert!(aborted.is_err());
    assert_eq!(harness.drain(), [json!("a")]);
}

fn a_rolled_back_lease_has_no_effect<F: Fixture>(harness: &Harness<F>) {
    harness.put("a");
    let queue = harness.queue();
    let rolled_back = harness.transaction(|conn| {
        assert_eq!(queue.on(conn).lease(1, TIMEOUT)?.len(), 1);
        roll_back::<()>()
    });
    assert!(rolled_back.is_err());
    assert_eq!((harness.counts().running, harness.lease_one().attempt), (0, 1));
}

fn concurrent_takers_never_lease_the_same_job<F: Fixture>(harness: &Harness<F>) {
    const JOBS: usize = 200;
    harness.queue().put_many(vec![json!(1); JOBS]).unwrap();
    let start = std::sync::Barrier::new(4);
    let take = || {
        start.wait();
        let batches = std::iter::from_fn(|| Some(harness.lease(7, TIMEOUT)).filter(|jobs| !jobs.is_empty()));
        batches.flatten().map(|job| job.id).collect::<Vec<_>>()
    };
    let mut ids: Vec<_> = std::thread::scope(|threads| {
        let takers: Vec<_> = (0..4).map(|_| threads.spawn(take)).collect();
        takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect()
    });
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), harness.counts().running), (JOBS, JOBS as u64));
}

fn a_checkpoint_is_stored_immediately<F: Fixture>(harness: &Harness<F>) {
    harness.queue().put_many(&[json!("old"), json!("other")]).unwrap();
    let queue = harness.queue();
    let mut jobs = harness.lease(2, TIMEOUT);
    queue.on(&mut harness.connect()).update(&mut jobs[0], json!({ "b": "\u{0}", "a": "half" })).unwrap();
    harness.lose_lease(&jobs[0]);
    assert_eq!(harness.drain(), [json!({ "b": "\u{0}", "a": "half" }), json!("other")]);
}

fn a_checkpoint_after_the_lease_is_lost_is_refused<F: Fixture>(harness: &Harness<F>) {
    harness.put("old");
    let (queue, mut job) = (harness.queue(), harness.lease_one());
    harness.lose_lease(&job);
    assert!(harness.is_lease_lost(queue.on(&mut harness.connect()).update(&mut job, json!("late"))));
    assert_eq!((job.data, harness.drain()), (json!("old"), vec![json!("old")]));
}

fn a_leased_job_given_back_is_unchanged<F: Fixture>(harness: &Harness<F>) {
    let options = PutOptions::new().priority(-2).schedule_at("2001-01-01T00:00:00Z");
    let id = harness.put_with("a", &options);
    let before = harness.lease_one();
    harness.settle(&before, Outcome::GiveBack);
    let after = harness.lease_one();
    assert_eq!((after.id, after.attempt, after.priority), (id, 1, -2));
    assert_eq!((after.schedule_at, after.enqueued_at), (before.schedule_at, before.enqueued_at));
}

fn a_snoozed_job_waits_and_its_attempt_does_not_count<F: Fixture>(harness: &Harness<F>) {
    harness.put("a");
    harness.settle(&harness.lease_one(), Outcome::snooze(Duration::from_secs(3_600)));
    let counts = harness.counts();
    assert_eq!((counts.scheduled, counts.ready), (1, 0));
    assert!(harness.get().is_none());
    harness.put("b");
    harness.settle(&harness.lease_one(), Outcome::snooze(Duration::ZERO));
    assert_eq!(harness.lease_one().attempt, 1);
}

fn a_retried_job_keeps_its_id_priority_and_expected_at<F: Fixture>(harness: &Harness<F>) {
    let options = PutOptions::new().priority(3).expected_at("2002-01-01T00:00:00Z");
    let id = harness.put_with("a", &options);
    let first = harness.lease_one();
    let error = "broken\u{0} for now".to_owned();
    harness.settle(&first, Outcome::Retry { after: Duration::ZERO, error, payload: None });
    let found = harness.queue().find(id).unwrap().unwrap();
    assert_eq!((found.state, found.attempt), (JobState::Ready, 1));
    assert!(found.error.unwrap().contains("for now"));
    let second = harness.lease_one();
    assert_eq!((second.id, second.attempt, second.priority), (id, 2, 3));
    assert_eq!((second.expected_at, second.enqueued_at), (first.expected_at, first.enqueued_at));
    let after = Duration::from_secs(3_600);
    harness.settle(&second, Outcome::Retry { after, error: String::new(), payload: None });
    assert!(harness.get().is_none(), "it is not due yet");
}

fn a_retry_can_replace_the_payload<F: Fixture>(harness: &Harness<F>) {
    harness.put("old");
    let job = harness.lease_one();
    let payload = Some(pq_core::Payload::from_stored("{\"b\": 1, \"a\":2}".to_owned()));
    harness.settle(&job, Outcome::Retry { after: Duration::ZERO, error: "again".to_owned(), payload });
    assert_eq!(harness.lease_one().into_claim().payload.as_str(), "{\"b\": 1, \"a\":2}");
}

fn a_returned_job_wakes_a_waiter<F: Fixture>(harness: &Harness<F>) {
    harness.put("a");
    let job = harness.lease_one();
    std::thread::scope(|threads| {
        let waiter = harness.blocked_waiter(threads);
        harness.settle(&job, Outcome::GiveBack);
        assert_eq!(waiter.recv_timeout(TIMEOUT).unwrap(), Some(json!("a")));
    });
}

fn jobs_are_leased_in_order<F: Fixture>(harness: &Harness<F>) {
    harness.put_with(3, &PutOptions::new().priority(-1));
    harness.put(2);
    harness.put_with(1, &PutOptions::new().schedule_at("2001-01-01T00:00:00Z").expected_at("1h"));
    harness.put_with(0, &PutOptions::new().priority(1));
    let jobs = harness.lease(4, TIMEOUT);
    assert_eq!(jobs.iter().map(|job| job.data.clone()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    let settlements: Vec<Settlement<'_>> =
        jobs.iter().map(|job| Settlement { job, outcome: Outcome::Complete }).collect();
    harness
        .transaction(|conn| {
            let accepted = harness.pq.store().settle(conn, &settlements)?;
            accepted.all().then_some(()).ok_or(CaseError("refused".to_owned()))
        })
        .unwrap();
}
