//! Letting time pass, for tests: the stored times are moved back.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use pq_core::store::{Connect, Schedules, TimeTravel, Workers};
use pq_core::{Heartbeat, JobRecord, JobState, Outcome, PutOptions, Retention, Status};
use serde_json::json;

use super::cases;
use crate::Fixture;
use crate::harness::{Access, CaseError, Harness, TIMEOUT, roll_back};

cases![
    a_scheduled_job_falls_due_when_its_time_has_passed: Both,
    a_retry_comes_when_its_backoff_has_passed: Both,
    a_lease_expires_and_its_crash_counts: Both,
    the_times_of_a_job_keep_their_distances: Own,
    the_times_of_leased_jobs_move: Own,
    an_archived_job_grows_old: Own,
    a_pause_grows_old: Own,
    a_periodic_job_whose_tick_would_have_passed_fires_once: Own,
    a_periodic_job_whose_tick_is_to_come_keeps_its_distance: Own,
    a_failed_periodic_job_is_tried_again: Own,
    a_silent_worker_is_forgotten: Own,
    a_rolled_back_advance_has_moved_nothing: Both,
    an_advance_wakes_waiters: Own,
    another_table_is_not_touched: Own,
];

const HOUR: Duration = Duration::from_secs(3_600);

fn advance<F: Fixture>(harness: &Harness<F>, duration: Duration) {
    let store = harness.pq.store();
    let done = match harness.access() {
        Access::Own => store.with_connection(|conn| store.advance(conn, duration)),
        Access::Callers => store.advance(&mut harness.connect(), duration),
    };
    done.unwrap();
}

fn in_an_hour() -> PutOptions {
    PutOptions::new().schedule_at(HOUR)
}

fn a_scheduled_job_falls_due_when_its_time_has_passed<F: Fixture>(harness: &Harness<F>) {
    harness.put_with(1, &in_an_hour());
    advance(harness, HOUR - TIMEOUT);
    assert!(harness.get().is_none(), "{TIMEOUT:?} too early");
    advance(harness, TIMEOUT);
    assert_eq!(harness.drain(), [json!(1)]);
}

fn a_retry_comes_when_its_backoff_has_passed<F: Fixture>(harness: &Harness<F>) {
    harness.put(1);
    let job = harness.lease_one();
    harness.settle(&job, Outcome::retry(HOUR, "once more"));
    assert!(harness.get().is_none());
    advance(harness, HOUR);
    assert_eq!(harness.get().unwrap().attempt, 2);
}

fn a_lease_expires_and_its_crash_counts<F: Fixture>(harness: &Harness<F>) {
    harness.put(1);
    let job = harness.lease(1, HOUR).pop().unwrap();
    assert_eq!(harness.maintain().returned, 0);
    advance(harness, HOUR);
    assert_eq!(harness.maintain().returned, 1);
    assert!(harness.is_lease_lost(harness.try_settle(&job, Outcome::Complete)));
    let job = harness.get().unwrap();
    assert_eq!((job.attempt, job.crashes), (2, 1));
}

fn the_times_of_a_job_keep_their_distances<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put_with(1, &PutOptions::new().expected_at(2 * HOUR));
    harness.settle(&harness.lease_one(), Outcome::retry(HOUR, "once more"));
    let find = || harness.queue().find(id).unwrap().unwrap();
    let before = find();
    advance(harness, HOUR);
    let (job, hour) = (find(), TimeDelta::hours(1));
    assert_eq!((before.state, job.state), (JobState::Scheduled, JobState::Ready));
    assert_eq!(job.enqueued_at, before.enqueued_at - hour);
    assert_eq!(job.schedule_at, before.schedule_at.map(|at| at - hour));
    assert_eq!(job.expected_at, before.expected_at.map(|at| at - hour));
    assert_eq!(job.attempt_log[0].at, before.attempt_log[0].at - hour);
}

fn the_times_of_leased_jobs_move<F: Fixture>(harness: &Harness<F>) {
    let ids = [
        harness.put(1),
        harness.put_with(2, &PutOptions::new().expected_at(HOUR)),
        harness.put_with(3, &PutOptions::new().schedule_at(-TimeDelta::hours(1))),
    ];
    harness.settle(&harness.lease_one(), Outcome::retry(Duration::ZERO, "once more"));
    let all = || ids.map(|id| harness.queue().find(id).unwrap().unwrap());
    let before = all();
    let jobs = harness.lease(3, 3 * HOUR);
    assert_eq!(jobs.len(), 3);
    advance(harness, HOUR);
    for job in &jobs {
        harness.settle(job, Outcome::GiveBack);
    }
    let hour = TimeDelta::hours(1);
    for (before, after) in before.into_iter().zip(all()) {
        let moved = (before.enqueued_at - hour, before.schedule_at.map(|at| at - hour));
        assert_eq!((after.enqueued_at, after.schedule_at), moved, "job {}", before.id);
        assert_eq!(after.expected_at, before.expected_at.map(|at| at - hour), "job {}", before.id);
        let times = |job: &JobRecord| job.attempt_log.iter().map(|entry| entry.at).collect::<Vec<_>>();
        assert_eq!(times(&after), Vec::from_iter(times(&before).into_iter().map(|at| at - hour)));
    }
}

fn an_archived_job_grows_old<F: Fixture>(harness: &Harness<F>) {
    harness.put(1);
    let job = harness.lease_one();
    harness.settle(&job, Outcome::dead("of no use"));
    let prune = || harness.queue().prune(JobState::Dead, HOUR).unwrap();
    assert_eq!(prune(), 0);
    advance(harness, HOUR);
    assert_eq!(prune(), 1);
}

fn a_pause_grows_old<F: Fixture>(harness: &Harness<F>) {
    harness.queue().pause().unwrap();
    let paused_at = || harness.queue().counts().unwrap().paused_at.unwrap();
    let before = paused_at();
    advance(harness, HOUR);
    assert_eq!(paused_at(), before - TimeDelta::hours(1));
}

/// Sets an entry whose next tick is in an hour, whatever its expression says.
fn set_cron_in_an_hour<F: Fixture>(harness: &Harness<F>) {
    let soon = Utc::now() + TimeDelta::days(180);
    let cron =
        harness.queue().cron("bills", &format!("0 0 1 {} *", soon.format("%-m")), &json!("bill")).unwrap();
    let mut conn = harness.connect();
    let store = harness.pq.store();
    let next = store.now(&mut conn).unwrap() + TimeDelta::hours(1);
    store.set_cron(&mut conn, &cron, Some(next)).unwrap();
}

fn fire<F: Fixture>(harness: &Harness<F>) -> usize {
    harness.pq.maintain(&Retention::default()).unwrap();
    harness.drain().len()
}

fn a_periodic_job_whose_tick_would_have_passed_fires_once<F: Fixture>(harness: &Harness<F>) {
    set_cron_in_an_hour(harness);
    assert_eq!(fire(harness), 0);
    // It must not count as missed, which it would be a minute after its tick.
    advance(harness, 24 * HOUR);
    assert_eq!(fire(harness), 1);
    assert_eq!(fire(harness), 0);
}

fn a_periodic_job_whose_tick_is_to_come_keeps_its_distance<F: Fixture>(harness: &Harness<F>) {
    set_cron_in_an_hour(harness);
    let next = || harness.pq.crons().unwrap()[0].next_at.unwrap();
    let before = next();
    advance(harness, HOUR / 2);
    assert_eq!(next(), before - TimeDelta::minutes(30));
    assert_eq!(fire(harness), 0);
}

fn a_failed_periodic_job_is_tried_again<F: Fixture>(harness: &Harness<F>) {
    set_cron_in_an_hour(harness);
    advance(harness, HOUR);
    let store = harness.pq.store();
    let tick = harness.pq.crons().unwrap()[0].next_at.unwrap();
    store.fail_cron(&mut harness.connect(), "bills", tick, "no", HOUR).unwrap();
    assert_eq!(fire(harness), 0);
    advance(harness, HOUR);
    assert_eq!(harness.pq.crons().unwrap()[0].next_at, Some(tick), "a tick that is due stays as it is");
    // An hour after its tick it still is not missed, because it has failed since.
    assert_eq!(fire(harness), 1);
}

fn a_silent_worker_is_forgotten<F: Fixture>(harness: &Harness<F>) {
    let store = harness.pq.store();
    let heartbeat = Heartbeat {
        worker: None,
        host: "here".to_owned(),
        pid: 1,
        supervisor: 1,
        queues: Vec::new(),
        threads: 1,
        status: Status::default(),
    };
    store.heartbeat(&mut harness.connect(), &heartbeat).unwrap();
    harness.maintain();
    let before = harness.pq.workers().unwrap();
    advance(harness, HOUR);
    let aged = harness.pq.workers().unwrap();
    assert_eq!((before.len(), aged.len()), (1, 1));
    assert_eq!(aged[0].started_at, before[0].started_at - TimeDelta::hours(1));
    assert!(aged[0].heartbeat_age >= HOUR);
    harness.maintain();
    assert!(harness.pq.workers().unwrap().is_empty());
}

fn a_rolled_back_advance_has_moved_nothing<F: Fixture>(harness: &Harness<F>) {
    let store = harness.pq.store();
    harness.put_with(1, &in_an_hour());
    let done = harness.transaction(|conn| {
        store.advance(conn, HOUR)?;
        assert_eq!(harness.queue().on(conn).get()?.unwrap().data, 1, "the transaction itself sees it");
        roll_back::<()>()
    });
    assert!(done.is_err());
    assert!(harness.get().is_none());
    harness.transaction(|conn| Ok::<_, CaseError>(store.advance(conn, HOUR)?)).unwrap();
    assert_eq!(harness.drain(), [json!(1)]);
}

fn an_advance_wakes_waiters<F: Fixture>(harness: &Harness<F>) {
    harness.put_with(1, &in_an_hour());
    std::thread::scope(|threads| {
        let waiter = harness.blocked_waiter(threads);
        advance(harness, HOUR);
        assert_eq!(waiter.recv_timeout(TIMEOUT).unwrap(), Some(json!(1)));
    });
}

fn another_table_is_not_touched<F: Fixture>(harness: &Harness<F>) {
    let other = harness.other_table();
    let theirs = other.queue::<u8>("apples").unwrap();
    let id = theirs.put_with(&1, &in_an_hour()).unwrap().id;
    let before = theirs.find(id).unwrap();
    harness.put_with(2, &in_an_hour());
    advance(harness, HOUR);
    assert_eq!(theirs.find(id).unwrap(), before);
    assert_eq!(harness.drain(), [json!(2)]);
}
