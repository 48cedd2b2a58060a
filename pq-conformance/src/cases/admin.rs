//! Operations: pausing a queue, the overview, listing jobs and moving them.

use pq_core::{Filter, JobId, JobState, Outcome, PutOptions, Queue, QueueCounts, Wait};
use serde_json::json;

use super::cases;
use crate::Fixture;
use crate::harness::{Harness, TIMEOUT, roll_back};

cases![
    a_paused_queue_returns_no_job: Both,
    pause_and_resume_report_a_change_once: Own,
    a_rolled_back_pause_has_no_effect: Both,
    resuming_a_queue_wakes_a_waiter: Own,
    jobs_leased_before_a_pause_can_be_settled: Both,
    the_overview_counts_each_queues_jobs_by_state: Own,
    the_oldest_age_starts_when_the_job_was_due: Own,
    a_job_record_has_all_fields_in_every_state: Own,
    jobs_are_listed_by_state_key_and_page: Own,
    a_moved_job_keeps_its_fields: Own,
    a_moved_job_wakes_a_waiter: Own,
    held_jobs_are_not_moved: Both,
    a_job_whose_unique_key_is_in_use_at_the_target_is_not_moved: Own,
    a_rolled_back_move_has_no_effect: Both,
];

fn overview<F: Fixture>(harness: &Harness<F>, queue: &str) -> Option<QueueCounts> {
    harness.pq.overview().unwrap().into_iter().find(|numbers| numbers.queue.as_str() == queue)
}

fn list<F: Fixture>(harness: &Harness<F>, filter: &Filter) -> Vec<JobId> {
    harness.pq.list(filter, 100).unwrap().into_iter().map(|job| job.id).collect()
}

fn a_paused_queue_returns_no_job<F: Fixture>(harness: &Harness<F>) {
    // A store may switch to its plan for keyed jobs after this take. A pause must hold for that plan, too.
    harness.put_with("keyed", &PutOptions::new().serialization_key("k"));
    assert_eq!(harness.get_many(9).len(), 1);
    harness.put("plain");
    harness.put_with("keyed", &PutOptions::new().serialization_key("k"));
    harness.put_with("scheduled", &PutOptions::new().schedule_at("2001-01-01T00:00:00Z"));
    assert!(harness.queue().pause().unwrap());
    assert!(harness.get_many(9).is_empty());
    assert!(harness.lease(9, TIMEOUT).is_empty());
    harness.put("later");
    assert!(harness.get_many(1).is_empty());
    harness.named::<u8>("pears").put(&1).unwrap();
    assert!(harness.named::<u8>("pears").get(Wait::No).unwrap().is_some(), "other queues are not paused");
    assert!(harness.queue().resume().unwrap());
    assert_eq!(harness.get_many(9).len(), 4);
}

fn pause_and_resume_report_a_change_once<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.queue();
    assert!(!queue.resume().unwrap());
    assert!(queue.pause().unwrap());
    assert!(!queue.pause().unwrap());
    assert!(
        overview(harness, "apples").unwrap().paused_at.is_some(),
        "a paused queue is listed even if it is empty"
    );
    assert!(queue.resume().unwrap());
    assert!(!queue.resume().unwrap());
    assert!(overview(harness, "apples").is_none());
}

fn a_rolled_back_pause_has_no_effect<F: Fixture>(harness: &Harness<F>) {
    harness.put("a");
    let (store, queue) = (harness.pq.store(), harness.queue());
    let done = harness.transaction(|conn| {
        pq_core::store::Admin::pause(store, conn, queue.name(), true, None)?;
        roll_back::<()>()
    });
    assert!(done.is_err());
    assert!(harness.get().is_some());
}

fn resuming_a_queue_wakes_a_waiter<F: Fixture>(harness: &Harness<F>) {
    harness.put("a");
    harness.queue().pause().unwrap();
    std::thread::scope(|threads| {
        let waiter = harness.blocked_waiter(threads);
        harness.queue().resume().unwrap();
        assert_eq!(waiter.recv_timeout(TIMEOUT).unwrap(), Some(json!("a")));
    });
}

fn jobs_leased_before_a_pause_can_be_settled<F: Fixture>(harness: &Harness<F>) {
    harness.put("a");
    harness.put("b");
    let jobs = harness.lease(2, TIMEOUT);
    harness.queue().pause().unwrap();
    harness.settle(&jobs[0], Outcome::Complete);
    harness.settle(&jobs[1], Outcome::GiveBack);
    assert!(harness.get().is_none());
    harness.queue().resume().unwrap();
    assert_eq!(harness.drain(), [json!("b")]);
}

fn the_overview_counts_each_queues_jobs_by_state<F: Fixture>(harness: &Harness<F>) {
    for data in 0..3 {
        harness.put_with(data, &PutOptions::new().serialization_key("k"));
    }
    harness.put_with("later", &PutOptions::new().schedule_at("1h"));
    harness.put_with("first", &PutOptions::new().priority(9));
    let job = harness.lease_one();
    assert_eq!(job.data, json!("first"));
    for outcome in [
        Outcome::Dead { error: "broken".to_owned() },
        Outcome::Cancel { reason: None },
        Outcome::Keep { result: None },
    ] {
        harness.put_with("ends", &PutOptions::new().priority(9));
        harness.settle(&harness.lease_one(), outcome);
    }
    harness.named::<u8>("pears").put(&1).unwrap();
    let numbers = overview(harness, "apples").unwrap();
    assert_eq!((numbers.ready, numbers.blocked, numbers.scheduled, numbers.running), (1, 2, 1, 1));
    assert_eq!((numbers.dead, numbers.cancelled, numbers.done, numbers.dequeued), (1, 1, 1, 0));
    assert_eq!((numbers.waiting(), numbers.paused_at), (4, None));
    // The leased job holds the key, so the other jobs of the key are blocked.
    let held = harness.lease_one();
    assert_eq!(held.data, json!(0));
    let numbers = overview(harness, "apples").unwrap();
    assert_eq!((numbers.ready, numbers.blocked, numbers.running), (0, 2, 2));
    assert_eq!(overview(harness, "pears").unwrap().ready, 1);
    let names: Vec<String> =
        harness.pq.overview().unwrap().iter().map(|numbers| numbers.queue.to_string()).collect();
    assert_eq!(names, ["apples", "pears"]);
}

fn the_oldest_age_starts_when_the_job_was_due<F: Fixture>(harness: &Harness<F>) {
    harness.put_with("later", &PutOptions::new().schedule_at("1h"));
    assert_eq!(overview(harness, "apples").unwrap().oldest, None);
    // The job was due before it was put. Its age starts at the put, because no take could return it before.
    harness.put_with("due", &PutOptions::new().schedule_at("2001-01-01T00:00:00Z"));
    assert!(overview(harness, "apples").unwrap().oldest.unwrap() < TIMEOUT);
}

fn a_job_record_has_all_fields_in_every_state<F: Fixture>(harness: &Harness<F>) {
    let options =
        PutOptions::new().priority(2).expected_at("2001-01-01T00:00:00Z").serialization_key("k").unique("u");
    let id = harness.put_with(json!({ "b": "\u{0}", "a": 1 }), &options);
    let shown = harness.pq.find(id).unwrap().unwrap();
    assert_eq!((shown.id, shown.queue.as_str(), shown.state), (id, "apples", JobState::Ready));
    assert_eq!((shown.priority, shown.attempt, shown.lease_until), (2, 0, None));
    assert_eq!(shown.serialization_key.as_ref().map(|key| key.as_str()), Some("k"));
    assert_eq!(shown.unique_key.as_ref().map(|key| key.as_str()), Some("u"));
    let job = harness.lease_one();
    assert_eq!((&shown.payload, shown.expected_at), (&job.payload, job.expected_at));
    let held = harness.pq.find(id).unwrap().unwrap();
    assert_eq!((held.state, held.attempt, &held.payload), (JobState::Running, 1, &job.payload));
    assert!(held.lease_until.is_some());
    harness.settle(&job, Outcome::Retry { after: TIMEOUT, error: "again".to_owned(), payload: None });
    let later = harness.pq.find(id).unwrap().unwrap();
    assert_eq!((later.state, later.error.as_deref()), (JobState::Scheduled, Some("again")));
    assert!(later.schedule_at.is_some());
    assert!(harness.queue().cancel(id).is_ok());
    let ended = harness.pq.find(id).unwrap().unwrap();
    assert_eq!((ended.state, ended.attempt), (JobState::Cancelled, 1));
    assert!(ended.ended_at.is_some());
    assert!(harness.pq.find(JobId(id.0 + 1)).unwrap().is_none());
}

fn jobs_are_listed_by_state_key_and_page<F: Fixture>(harness: &Harness<F>) {
    let first = harness.put("a");
    let keyed = ["b", "c"].map(|data| harness.put_with(data, &PutOptions::new().serialization_key("k")));
    let later = harness.put_with("later", &PutOptions::new().schedule_at("1h"));
    let running = harness.put_with("runs", &PutOptions::new().priority(1));
    harness.lease_one();
    harness.named::<u8>("pears").put(&1).unwrap();
    let apples = || Filter::queue(harness.queue().name());
    assert_eq!(list(harness, &apples()), [first, keyed[0], keyed[1], later, running]);
    assert_eq!(list(harness, &apples().state(JobState::Ready)), [first, keyed[0]]);
    assert_eq!(list(harness, &apples().state(JobState::Blocked)), [keyed[1]]);
    assert_eq!(
        list(harness, &apples().state(JobState::Scheduled).state(JobState::Running)),
        [later, running]
    );
    assert_eq!(list(harness, &apples().state(JobState::Dead)), []);
    let key = harness.pq.find(keyed[0]).unwrap().unwrap().serialization_key.unwrap();
    assert_eq!(list(harness, &apples().serialization_key(key)), keyed);
    let page: Vec<JobId> =
        harness.pq.list(&apples().after(first), 2).unwrap().iter().map(|job| job.id).collect();
    assert_eq!(page, keyed);
}

fn a_moved_job_keeps_its_fields<F: Fixture>(harness: &Harness<F>) {
    let options = PutOptions::new()
        .priority(2)
        .schedule_at("2001-01-01T00:00:00Z")
        .expected_at("2002-01-01T00:00:00Z")
        .serialization_key("k")
        .unique("u");
    let (moved, stays) = (harness.put_with("a", &options), harness.put("b"));
    let pears: Queue<_, serde_json::Value> = harness.named("pears");
    let before = harness.pq.find(moved).unwrap().unwrap();
    assert_eq!(harness.queue().move_to(&pears, Some(&[moved, JobId(moved.0 + 100)])).unwrap(), 1);
    let after = harness.pq.find(moved).unwrap().unwrap();
    assert_eq!(after.queue.as_str(), "pears");
    assert_eq!((before.enqueued_at, before.schedule_at), (after.enqueued_at, after.schedule_at));
    assert_eq!((before.expected_at, before.priority), (after.expected_at, after.priority));
    assert_eq!((before.serialization_key, before.unique_key), (after.serialization_key, after.unique_key));
    let again = harness.queue().put_with(&json!("c"), &PutOptions::new().unique("u")).unwrap();
    assert!(again.id != moved, "its unique key is free in the source queue");
    let kept = pears.put_with(&json!("d"), &PutOptions::new().unique("u")).unwrap();
    assert_eq!(kept.id, moved, "its unique key is in use in the target queue");
    assert_eq!(pears.get(Wait::No).unwrap().map(|job| job.id), Some(moved));
    assert_eq!(harness.queue().move_to(&pears, None).unwrap(), 2);
    assert_eq!(pears.get(Wait::No).unwrap().map(|job| job.id), Some(stays));
    assert!(harness.get().is_none());
}

fn a_moved_job_wakes_a_waiter<F: Fixture>(harness: &Harness<F>) {
    harness.named::<String>("pears").put(&"a".to_owned()).unwrap();
    std::thread::scope(|threads| {
        let waiter = harness.blocked_waiter(threads);
        assert_eq!(harness.named::<()>("pears").move_to(&harness.queue(), None).unwrap(), 1);
        assert_eq!(waiter.recv_timeout(TIMEOUT).unwrap(), Some(json!("a")));
    });
}

fn held_jobs_are_not_moved<F: Fixture>(harness: &Harness<F>) {
    harness.put("leased");
    let leased = harness.lease_one();
    harness.put("taken");
    let (queue, pears) = (harness.queue(), harness.named::<()>("pears"));
    harness
        .transaction(|conn| {
            assert!(queue.on(conn).get()?.is_some());
            assert_eq!(queue.move_to(&pears, None).unwrap(), 0);
            Ok(())
        })
        .unwrap();
    harness.settle(&leased, Outcome::Complete);
}

fn a_job_whose_unique_key_is_in_use_at_the_target_is_not_moved<F: Fixture>(harness: &Harness<F>) {
    let unique = PutOptions::new().unique("u");
    let stays = harness.put_with("a", &unique);
    let pears = harness.named::<serde_json::Value>("pears");
    pears.put_with(&json!("b"), &unique).unwrap();
    harness.put("c");
    assert_eq!(harness.queue().move_to(&pears, None).unwrap(), 1);
    assert_eq!(harness.get().map(|job| job.id), Some(stays));
}

fn a_rolled_back_move_has_no_effect<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    let (store, queue, pears) = (harness.pq.store(), harness.queue(), harness.named::<()>("pears"));
    let done = harness.transaction(|conn| {
        assert_eq!(pq_core::store::Admin::move_jobs(store, conn, queue.name(), pears.name(), None)?, 1);
        assert!(queue.on(&mut harness.connect()).get()?.is_none(), "others skip it until the move commits");
        roll_back::<()>()
    });
    assert!(done.is_err());
    assert_eq!(harness.get().map(|job| job.id), Some(id));
}
