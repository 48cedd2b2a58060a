//! Claims: a job can be updated, given back, settled or retaken only while its claim is valid.

use std::time::Duration;

use pq_core::store::{Admin, Jobs};
use pq_core::{Job, Outcome, PutOptions, Scan, Settlement};
use serde_json::{Value, json};

use super::cases;
use crate::Fixture;
use crate::harness::{CaseError, Conn, Harness, TIMEOUT, roll_back};

cases![
    a_job_given_back_has_its_updated_payload: Both,
    a_job_given_back_is_visible_to_others_at_the_commit: Both,
    a_job_given_back_keeps_its_id_times_and_priority: Both,
    giving_a_job_back_wakes_a_waiter: Both,
    an_update_in_a_nested_rollback_is_undone: Both,
    an_update_in_a_rollback_is_undone: Both,
    an_updated_job_that_completes_leaves_no_row: Both,
    a_job_got_outside_a_transaction_has_no_claim: Both,
    a_claim_ends_with_its_transaction: Both,
    giving_a_job_back_ends_its_claim: Both,
    a_job_given_back_and_cleared_has_no_claim: Both,
    a_claim_from_a_rolled_back_get_is_not_valid_for_the_next_get: Both,
    a_rolled_back_get_ends_its_claim: Both,
    a_take_reports_jobs_whose_transaction_was_rolled_back: Both,
    a_job_can_be_retaken_after_a_rollback_to_settle_it: Both,
    a_changed_job_cannot_be_retaken: Both,
    a_job_held_by_others_or_whose_key_is_held_cannot_be_retaken: Both,
];

fn a_job_given_back_has_its_updated_payload<F: Fixture>(harness: &Harness<F>) {
    harness.put("old");
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            let mut job = queue.on(conn).get()?.unwrap();
            queue.on(conn).update(&mut job, json!({ "b": "\u{0}", "a": "new" }))?;
            assert_eq!(job.data["a"], json!("new"));
            Ok(queue.on(conn).give_back(&job)?)
        })
        .unwrap();
    assert_eq!(harness.drain(), [json!({ "b": "\u{0}", "a": "new" })]);
}

fn a_job_given_back_is_visible_to_others_at_the_commit<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            let job = queue.on(conn).get()?.unwrap();
            queue.on(conn).give_back(&job)?;
            assert!(queue.on(&mut harness.connect()).get()?.is_none());
            Ok(())
        })
        .unwrap();
    assert_eq!(harness.get().map(|job| job.id), Some(id));
}

fn a_job_given_back_keeps_its_id_times_and_priority<F: Fixture>(harness: &Harness<F>) {
    let options =
        PutOptions::new().priority(3).schedule_at("2001-01-01T00:00:00Z").expected_at("2002-01-01T00:00:00Z");
    harness.put_with("a", &options);
    let queue = harness.queue();
    let before = harness
        .transaction(|conn| {
            let job = queue.on(conn).get()?.unwrap();
            queue.on(conn).give_back(&job)?;
            Ok(job.into_claim())
        })
        .unwrap();
    let after = harness.get().unwrap();
    assert_eq!((after.id, after.enqueued_at), (before.id, before.enqueued_at));
    assert_eq!((after.schedule_at, after.expected_at), (before.schedule_at, before.expected_at));
    assert_eq!((after.priority, after.attempt), (3, before.attempt + 1));
}

fn giving_a_job_back_wakes_a_waiter<F: Fixture>(harness: &Harness<F>) {
    harness.put("a");
    let queue = harness.queue();
    std::thread::scope(|threads| {
        let mut waiter = None;
        harness
            .transaction(|conn| {
                let job = queue.on(conn).get()?.unwrap();
                waiter = Some(harness.blocked_waiter(threads));
                Ok(queue.on(conn).give_back(&job)?)
            })
            .unwrap();
        assert_eq!(waiter.unwrap().recv_timeout(TIMEOUT).unwrap(), Some(json!("a")));
    });
}

fn an_update_in_a_nested_rollback_is_undone<F: Fixture>(harness: &Harness<F>) {
    harness.put("old");
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            let mut job = queue.on(conn).get()?.unwrap();
            queue.on(conn).update(&mut job, json!("kept"))?;
            let kept = job.clone();
            let inner = queue.on(conn).transaction(|conn| {
                queue.on(conn).update(&mut job, json!("undone"))?;
                roll_back::<()>()
            });
            assert!(inner.is_err());
            // The store decides by what the transaction recorded, not by the caller's copy of the job.
            assert_eq!(kept.id, job.id);
            Ok(queue.on(conn).give_back(&job)?)
        })
        .unwrap();
    assert_eq!(harness.drain(), [json!("kept")]);
}

fn an_update_in_a_rollback_is_undone<F: Fixture>(harness: &Harness<F>) {
    harness.put("old");
    let queue = harness.queue();
    let rolled_back = harness.transaction(|conn| {
        let mut job = queue.on(conn).get()?.unwrap();
        queue.on(conn).update(&mut job, json!("new"))?;
        roll_back::<()>()
    });
    assert!(rolled_back.is_err());
    assert_eq!(harness.drain(), [json!("old")]);
}

fn an_updated_job_that_completes_leaves_no_row<F: Fixture>(harness: &Harness<F>) {
    harness.put("old");
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            let mut job = queue.on(conn).get()?.unwrap();
            Ok(queue.on(conn).update(&mut job, json!("new"))?)
        })
        .unwrap();
    assert!(harness.get().is_none());
    assert_eq!(harness.counts().live(), 0);
}

fn a_job_got_outside_a_transaction_has_no_claim<F: Fixture>(harness: &Harness<F>) {
    harness.put("a");
    let queue = harness.queue();
    let mut job = harness.get().unwrap();
    let mut conn = harness.connect();
    assert!(harness.is_not_yours(queue.on(&mut conn).update(&mut job, json!("b"))));
    assert!(harness.is_not_yours(queue.on(&mut conn).give_back(&job)));
    assert_eq!(job.data, json!("a"), "a refused update changes nothing");
    assert!(harness.get().is_none());
}

fn a_claim_ends_with_its_transaction<F: Fixture>(harness: &Harness<F>) {
    harness.put("a");
    let queue = harness.queue();
    let job = harness.transaction(|conn| Ok(queue.on(conn).get()?.unwrap())).unwrap();
    harness
        .transaction(|conn| {
            queue.on(conn).put(&json!("b"))?;
            assert!(harness.is_not_yours(queue.on(conn).give_back(&job)));
            Ok(())
        })
        .unwrap();
    assert_eq!(harness.drain(), [json!("b")]);
}

fn giving_a_job_back_ends_its_claim<F: Fixture>(harness: &Harness<F>) {
    harness.put("a");
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            let mut job = queue.on(conn).get()?.unwrap();
            queue.on(conn).give_back(&job)?;
            assert!(harness.is_not_yours(queue.on(conn).give_back(&job)));
            assert!(harness.is_not_yours(queue.on(conn).update(&mut job, json!("b"))));
            Ok(())
        })
        .unwrap();
    assert_eq!(harness.drain(), [json!("a")]);
}

fn a_job_given_back_and_cleared_has_no_claim<F: Fixture>(harness: &Harness<F>) {
    harness.put("a");
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            let mut job = queue.on(conn).get()?.unwrap();
            queue.on(conn).give_back(&job)?;
            assert_eq!(queue.on(conn).clear()?, 1);
            assert!(harness.is_not_yours(queue.on(conn).update(&mut job, json!("b"))));
            assert!(harness.is_not_yours(queue.on(conn).give_back(&job)));
            Ok(())
        })
        .unwrap();
    assert!(harness.get().is_none());
}

fn a_claim_from_a_rolled_back_get_is_not_valid_for_the_next_get<F: Fixture>(harness: &Harness<F>) {
    harness.put("a");
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            let mut stale = None;
            let inner = queue.on(conn).transaction(|conn| {
                stale = queue.on(conn).get()?;
                roll_back::<()>()
            });
            assert!(inner.is_err());
            let mut stale = stale.unwrap();
            let mut job = queue.on(conn).get()?.unwrap();
            assert!(harness.is_not_yours(queue.on(conn).update(&mut stale, json!("stale"))));
            assert!(harness.is_not_yours(queue.on(conn).give_back(&stale)));
            queue.on(conn).update(&mut job, json!("new"))?;
            Ok(queue.on(conn).give_back(&job)?)
        })
        .unwrap();
    assert_eq!(harness.drain(), [json!("new")]);
}

fn a_rolled_back_get_ends_its_claim<F: Fixture>(harness: &Harness<F>) {
    harness.put("a");
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            let mut kept = None;
            let inner = queue.on(conn).transaction(|conn| {
                kept = queue.on(conn).get()?;
                Err::<(), _>(CaseError("on purpose".to_owned()))
            });
            assert!(inner.is_err());
            assert!(harness.is_not_yours(queue.on(conn).give_back(&kept.unwrap())));
            Ok(())
        })
        .unwrap();
    assert_eq!(harness.drain(), [json!("a")]);
}

fn a_take_reports_jobs_whose_transaction_was_rolled_back<F: Fixture>(harness: &Harness<F>) {
    let (store, queue) = (harness.pq.store(), harness.queue());
    let take = |conn: &mut Conn<F>| store.take(conn, queue.name(), 2, Scan::Full);
    let options = [
        PutOptions::new(),
        PutOptions::new().priority(1),
        PutOptions::new().schedule_at("2001-01-01T00:00:00Z"),
        PutOptions::new().serialization_key("one"),
        PutOptions::new().serialization_key("one").schedule_at("2001-01-01T00:00:00Z"),
        PutOptions::new().unique("one"),
    ];
    for options in options {
        harness.put_with("a", &options);
        harness.put_with("b", &PutOptions::new().priority(-1));
        let mut reported = Vec::new();
        for end in [false, false, true] {
            let _ = harness.transaction(|conn| {
                let taken = take(conn)?;
                assert_eq!(taken.jobs.len(), 2);
                reported.push(taken.rolled_back);
                if end {
                    let back = taken.jobs.iter().map(|job| Settlement { job, outcome: Outcome::GiveBack });
                    let accepted = store.settle(conn, &back.collect::<Vec<_>>())?;
                    assert!(accepted.all());
                    return Ok(());
                }
                roll_back()
            });
        }
        assert_eq!(reported, [false, true, true], "{options:?}");
        // A job that was returned by a commit is a new row.
        harness
            .transaction(|conn| {
                let taken = take(conn)?;
                assert_eq!((taken.jobs.len(), taken.rolled_back), (2, false), "{options:?}");
                Ok(())
            })
            .unwrap();
    }
}

/// Gets the first job in a transaction that is rolled back, and returns it.
fn rolled_back<F: Fixture>(harness: &Harness<F>) -> Job<Value> {
    let mut got = None;
    let queue = harness.queue();
    let rolled_back = harness.transaction(|conn| {
        got = queue.on(conn).get()?;
        roll_back::<()>()
    });
    assert!(rolled_back.is_err());
    got.unwrap()
}

fn retaken<F: Fixture>(harness: &Harness<F>, job: &Job<Value>) -> bool {
    harness.transaction(|conn| Ok(harness.pq.store().retake(conn, job)?)).unwrap()
}

fn a_job_can_be_retaken_after_a_rollback_to_settle_it<F: Fixture>(harness: &Harness<F>) {
    let (queue, again) = (harness.queue(), || Outcome::Retry {
        after: Duration::ZERO,
        error: "again".to_owned(),
        payload: None,
    });
    let options = [
        PutOptions::new(),
        PutOptions::new().schedule_at("2001-01-01T00:00:00Z"),
        PutOptions::new().priority(1),
    ];
    for options in options.map(|options| options.unique("one").serialization_key("by one")) {
        let id = harness.put_with("a", &options);
        let job = rolled_back(harness);
        // A pause must not keep a finished job from being settled.
        harness.pq.store().pause(&mut harness.connect(), queue.name(), true, None).unwrap();
        harness
            .transaction(|conn| {
                assert!(harness.pq.store().retake(conn, &job)?);
                Ok(queue.on(conn).settle(&job, again())?)
            })
            .unwrap();
        harness.pq.store().pause(&mut harness.connect(), queue.name(), false, None).unwrap();
        assert_eq!(
            harness.put_with("b", &PutOptions::new().unique("one")),
            id,
            "the job still has its unique key"
        );
        let back = harness.get().unwrap();
        assert_eq!((back.id, back.attempt, back.data.clone()), (id, 2, json!("a")));
    }
    assert_eq!(harness.counts().live(), 0);
}

fn a_changed_job_cannot_be_retaken<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.queue();
    harness.put("a");
    let job = rolled_back(harness);
    harness
        .transaction(|conn| {
            let job = queue.on(conn).get()?.unwrap();
            let again = Outcome::Retry { after: Duration::ZERO, error: "again".to_owned(), payload: None };
            Ok(queue.on(conn).settle(&job, again)?)
        })
        .unwrap();
    assert!(!retaken(harness, &job), "another attempt has run");
    let job = rolled_back(harness);
    let transfer = |from: &str, to: &str| {
        let (from, to) = (harness.named::<Value>(from), harness.named::<Value>(to));
        harness.pq.store().move_jobs(&mut harness.connect(), from.name(), to.name(), None).unwrap();
    };
    transfer("apples", "pears");
    assert!(!retaken(harness, &job), "it is in another queue");
    transfer("pears", "apples");
    let job = rolled_back(harness);
    queue.clear().unwrap();
    assert!(!retaken(harness, &job), "it was deleted");
}

fn a_job_held_by_others_or_whose_key_is_held_cannot_be_retaken<F: Fixture>(harness: &Harness<F>) {
    let (queue, options) = (harness.queue(), PutOptions::new().serialization_key("one"));
    harness.put_with("a", &options);
    let job = rolled_back(harness);
    let held = |wanted| {
        harness
            .transaction(|conn| {
                assert_eq!(queue.on(conn).get()?.map(|job| job.data), Some(json!(wanted)));
                assert!(!retaken(harness, &job));
                roll_back::<()>()
            })
            .unwrap_err();
    };
    held("a");
    harness.put_with("first of its key", &options.clone().priority(1));
    held("first of its key");
    assert!(retaken(harness, &job));
    assert_eq!(harness.drain(), [json!("first of its key")]);
}
