//! Outcomes other than completion, cancelling, requeueing and the archive.

use std::time::Duration;

use pq_core::store::{Archive, Connect, Jobs};
use pq_core::{CancelOutcome, JobId, JobState, Outcome, Payload, PutOptions, Settlement};
use serde_json::json;

use super::cases;
use crate::Fixture;
use crate::harness::{Harness, TIMEOUT};

cases![
    a_dead_job_is_archived_with_all_its_fields: Both,
    error_text_is_stored_cleaned_and_bounded: Both,
    a_kept_job_is_archived_with_its_result: Both,
    a_completed_job_leaves_nothing: Both,
    a_transaction_accepts_every_outcome: Both,
    an_outcome_for_a_job_that_the_transaction_does_not_hold_is_refused: Both,
    a_dead_job_can_be_requeued: Own,
    all_dead_jobs_can_be_requeued_at_once: Own,
    a_dead_job_whose_unique_key_is_in_use_is_not_requeued: Own,
    a_waiting_job_can_be_cancelled: Own,
    a_cancelled_job_can_be_requeued: Own,
    cancelling_a_leased_job_notifies_its_holder: Own,
    a_leased_job_with_a_cancel_request_is_not_retried: Both,
    a_lost_job_with_a_cancel_request_is_cancelled: Own,
    a_leased_job_with_a_cancel_request_may_still_complete: Both,
    a_job_that_a_transaction_holds_cannot_be_cancelled: Both,
    a_missing_job_cannot_be_cancelled: Own,
    the_archive_is_listed_in_pages_newest_first: Own,
    the_archive_is_pruned_by_age: Own,
    maintenance_prunes_by_its_retention: Own,
];

fn put_dead<F: Fixture>(harness: &Harness<F>, data: u8) -> JobId {
    let id = harness.put(data);
    harness.settle(&harness.lease_one(), Outcome::Dead { error: "broken".to_owned() });
    id
}

fn a_dead_job_is_archived_with_all_its_fields<F: Fixture>(harness: &Harness<F>) {
    let options =
        PutOptions::new().priority(2).expected_at("2001-01-01T00:00:00Z").serialization_key("k").unique("u");
    let id = harness.put_with(json!({ "b": "\u{0}", "a": 1 }), &options);
    let job = harness.lease_one();
    harness.settle(&job, Outcome::Dead { error: "it broke".to_owned() });
    let dead = harness.archived(JobState::Dead).pop().unwrap();
    assert_eq!((dead.id, dead.attempt, dead.priority, dead.state), (id, 1, 2, JobState::Dead));
    assert_eq!(dead.payload, job.payload);
    assert_eq!((dead.enqueued_at, dead.expected_at), (job.enqueued_at, job.expected_at));
    assert_eq!(dead.error.as_deref(), Some("it broke"));
    assert_eq!(dead.serialization_key, job.serialization_key);
    assert_eq!(dead.unique_key, job.unique_key);
    assert!(dead.ended_at >= Some(dead.enqueued_at));
    assert_eq!(harness.queue().find(id).unwrap(), Some(dead));
    assert_eq!((harness.counts().dead, harness.counts().live()), (1, 0));
}

fn error_text_is_stored_cleaned_and_bounded<F: Fixture>(harness: &Harness<F>) {
    harness.put(1);
    let error = format!("NUL \u{0} and {}", "very long ж".repeat(100_000));
    harness.settle(&harness.lease_one(), Outcome::Dead { error });
    let error = harness.archived(JobState::Dead).pop().unwrap().error.unwrap();
    assert!(error.starts_with("NUL ") && error.contains("very long"), "{error}");
}

fn a_kept_job_is_archived_with_its_result<F: Fixture>(harness: &Harness<F>) {
    harness.put(1);
    let result = Some(Payload::from_stored("{\"z\": 1,  \"a\":[]}".to_owned()));
    harness.settle(&harness.lease_one(), Outcome::Keep { result });
    let done = harness.archived(JobState::Done).pop().unwrap();
    assert_eq!(done.result.unwrap().as_str(), "{\"z\": 1,  \"a\":[]}");
    assert_eq!((harness.counts().done, harness.counts().live()), (1, 0));
}

fn a_completed_job_leaves_nothing<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put(1);
    harness.settle(&harness.lease_one(), Outcome::Complete);
    assert!(harness.archived(JobState::Done).is_empty());
    assert!(harness.queue().find(id).unwrap().is_none());
}

fn a_transaction_accepts_every_outcome<F: Fixture>(harness: &Harness<F>) {
    let outcomes = [
        Outcome::Complete,
        Outcome::Keep { result: None },
        Outcome::Dead { error: "broken".to_owned() },
        Outcome::Cancel { reason: Some("no more".to_owned()) },
        Outcome::Retry { after: Duration::ZERO, error: "again".to_owned(), payload: None },
        Outcome::snooze(10 * TIMEOUT),
        Outcome::GiveBack,
    ];
    let queue = harness.queue();
    for (n, outcome) in outcomes.into_iter().enumerate() {
        harness.put_with(n, &PutOptions::new().serialization_key(format!("{n}")).priority(100 - n as i32));
        harness
            .transaction(|conn| {
                let job = queue.on(conn).get_many(2)?.into_iter().find(|job| job.data == n).unwrap();
                Ok(queue.on(conn).settle(&job, outcome)?)
            })
            .unwrap();
    }
    let counts = harness.counts();
    assert_eq!((counts.done, counts.dead, counts.cancelled), (1, 1, 1));
    assert_eq!((counts.scheduled, counts.live()), (1, 2));
}

fn an_outcome_for_a_job_that_the_transaction_does_not_hold_is_refused<F: Fixture>(harness: &Harness<F>) {
    harness.put(1);
    let queue = harness.queue();
    let job = harness.transaction(|conn| Ok(queue.on(conn).get()?.unwrap())).unwrap();
    for outcome in [Outcome::Complete, Outcome::GiveBack, Outcome::Dead { error: "late".to_owned() }] {
        let refused = harness.transaction(|conn| {
            let accepted =
                harness.pq.store().settle(conn, &[Settlement { job: &job, outcome: outcome.clone() }])?;
            assert_eq!(accepted, [false]);
            Ok(())
        });
        refused.unwrap();
    }
    assert_eq!(harness.counts().total(), 0);
}

fn a_dead_job_can_be_requeued<F: Fixture>(harness: &Harness<F>) {
    let id = put_dead(harness, 1);
    assert!(harness.queue().retry(id).unwrap());
    let job = harness.lease_one();
    assert_eq!((job.id, job.attempt), (id, 1), "requeueing resets the attempts");
    assert!(!harness.queue().retry(id).unwrap());
    assert!(harness.archived(JobState::Dead).is_empty());
    // The requeued job can be archived again.
    harness.settle(&job, Outcome::Dead { error: "again".to_owned() });
    assert_eq!(harness.archived(JobState::Dead).len(), 1);
}

fn all_dead_jobs_can_be_requeued_at_once<F: Fixture>(harness: &Harness<F>) {
    let ids = [put_dead(harness, 1), put_dead(harness, 2), put_dead(harness, 3)];
    assert_eq!(harness.queue().retry_many(&ids[..1]).unwrap(), 1);
    harness.put_with(0, &PutOptions::new().priority(9));
    harness.settle(&harness.lease_one(), Outcome::Cancel { reason: None });
    assert_eq!(harness.queue().retry_all_dead().unwrap(), 2);
    assert_eq!(harness.drain(), [1, 2, 3]);
    assert_eq!(harness.counts().cancelled, 1);
}

fn a_dead_job_whose_unique_key_is_in_use_is_not_requeued<F: Fixture>(harness: &Harness<F>) {
    let options = PutOptions::new().unique("a");
    let old = harness.put_with(1, &options);
    harness.settle(&harness.lease_one(), Outcome::Dead { error: "broken".to_owned() });
    harness.put_with(2, &options);
    assert!(!harness.queue().retry(old).unwrap());
    assert_eq!(harness.drain(), [2]);
    assert!(harness.queue().retry(old).unwrap());
    assert_eq!(harness.drain(), [1]);
}

fn a_waiting_job_can_be_cancelled<F: Fixture>(harness: &Harness<F>) {
    let ids = [harness.put(1), harness.put_with(2, &PutOptions::new().schedule_at("1h"))];
    for id in ids {
        assert_eq!(harness.queue().cancel(id).unwrap(), CancelOutcome::Cancelled);
        assert_eq!(harness.queue().cancel(id).unwrap(), CancelOutcome::NotFound);
    }
    assert!(harness.get().is_none());
    assert_eq!((harness.counts().cancelled, harness.counts().live()), (2, 0));
}

fn a_cancelled_job_can_be_requeued<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put(1);
    harness.queue().cancel(id).unwrap();
    assert!(harness.queue().retry(id).unwrap());
    assert_eq!(harness.drain(), [1]);
}

fn cancelling_a_leased_job_notifies_its_holder<F: Fixture>(harness: &Harness<F>) {
    harness.queue().put_many(&[json!(1), json!(2)]).unwrap();
    let jobs = harness.lease(2, TIMEOUT);
    assert!(harness.queue().extend(&jobs[0], TIMEOUT).unwrap().cancelled.is_empty());
    assert_eq!(harness.queue().cancel(jobs[1].id).unwrap(), CancelOutcome::Requested);
    assert_eq!(harness.queue().cancel(jobs[1].id).unwrap(), CancelOutcome::Requested);
    assert_eq!(harness.queue().extend(&jobs[0], TIMEOUT).unwrap().cancelled, [jobs[1].id]);
    assert_eq!(harness.counts().running, 2);
}

fn a_leased_job_with_a_cancel_request_is_not_retried<F: Fixture>(harness: &Harness<F>) {
    for outcome in [
        Outcome::Retry { after: Duration::ZERO, error: "again".to_owned(), payload: None },
        Outcome::snooze(Duration::ZERO),
        Outcome::GiveBack,
    ] {
        let id = harness.put(1);
        let job = harness.lease_one();
        harness.queue().cancel(id).unwrap();
        harness.settle(&job, outcome);
        assert!(harness.get().is_none());
    }
    assert_eq!(harness.counts().cancelled, 3);
}

fn a_lost_job_with_a_cancel_request_is_cancelled<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put_with(1, &PutOptions::new().unique("a").serialization_key("a"));
    let job = harness.lease_one();
    harness.queue().cancel(id).unwrap();
    harness.lose_lease(&job);
    assert!(harness.get().is_none());
    assert_eq!(harness.counts().cancelled, 1);
    harness.put_with(2, &PutOptions::new().unique("a").serialization_key("a"));
    assert_eq!(harness.drain(), [2]);
}

fn a_leased_job_with_a_cancel_request_may_still_complete<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put(1);
    let job = harness.lease_one();
    harness.queue().cancel(id).unwrap();
    harness.settle(&job, Outcome::Complete);
    assert_eq!(harness.counts().total(), 0);
}

fn a_job_that_a_transaction_holds_cannot_be_cancelled<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put(1);
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            queue.on(conn).get()?;
            assert_eq!(harness.queue().cancel(id)?, CancelOutcome::Held);
            Ok(())
        })
        .unwrap();
    assert_eq!(harness.counts().total(), 0);
}

fn a_missing_job_cannot_be_cancelled<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put(1);
    assert_eq!(harness.named::<()>("pears").cancel(id).unwrap(), CancelOutcome::NotFound);
    assert_eq!(harness.queue().cancel(JobId(id.0 + 1)).unwrap(), CancelOutcome::NotFound);
    assert_eq!(harness.drain(), [1]);
}

fn the_archive_is_listed_in_pages_newest_first<F: Fixture>(harness: &Harness<F>) {
    let ids: Vec<JobId> = (0..5).map(|n| put_dead(harness, n)).collect();
    let queue = harness.queue();
    let first = queue.archived(JobState::Dead, None, 2).unwrap();
    let rest = queue.archived(JobState::Dead, first.last(), 10).unwrap();
    let listed: Vec<JobId> = first.iter().chain(&rest).map(|job| job.id).collect();
    assert_eq!(listed, ids.into_iter().rev().collect::<Vec<_>>());
    assert!(queue.archived(JobState::Done, None, 10).unwrap().is_empty());
}

fn the_archive_is_pruned_by_age<F: Fixture>(harness: &Harness<F>) {
    put_dead(harness, 1);
    let queue = harness.queue();
    assert_eq!(queue.prune(JobState::Dead, Duration::from_secs(3_600)).unwrap(), 0);
    assert_eq!(queue.prune(JobState::Dead, Duration::MAX).unwrap(), 0);
    assert_eq!(queue.prune(JobState::Cancelled, Duration::ZERO).unwrap(), 0);
    assert_eq!(queue.prune(JobState::Dead, Duration::ZERO).unwrap(), 1);
    assert!(harness.archived(JobState::Dead).is_empty());
}

fn maintenance_prunes_by_its_retention<F: Fixture>(harness: &Harness<F>) {
    put_dead(harness, 1);
    harness.put(2);
    harness.settle(&harness.lease_one(), Outcome::Keep { result: None });
    assert_eq!(harness.maintain().pruned, 0);
    let store = harness.pq.store();
    let retention = pq_core::Retention::default().done_days(0);
    let report: Result<_, crate::harness::Error<F>> =
        store.with_connection(|conn| store.maintain(conn, &retention));
    assert_eq!(report.unwrap().unwrap().pruned, 1);
    assert_eq!((harness.counts().dead, harness.counts().done), (1, 0));
}
