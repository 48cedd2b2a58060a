//! Scheduled jobs: the store's clock decides when a job is due.

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use pq_core::{PutOptions, Wait};
use serde_json::json;

use super::cases;
use crate::Fixture;
use crate::harness::{Harness, TIMEOUT};

cases![
    a_job_is_never_taken_before_it_is_due: Both,
    a_delay_is_relative_to_the_stores_clock: Both,
    a_time_in_the_past_is_due: Both,
    a_job_that_falls_due_during_a_transaction_can_be_taken_by_it: Both,
    an_invalid_time_is_refused_and_nothing_is_put: Both,
];

fn a_job_is_never_taken_before_it_is_due<F: Fixture>(harness: &Harness<F>) {
    let delay = Duration::from_millis(200);
    let begun = std::time::Instant::now();
    harness.put_with("later", &PutOptions::new().schedule_at(delay));
    if let Some(job) = harness.get() {
        assert!(begun.elapsed() >= delay, "{job} was returned before it was due");
        return;
    }
    assert!(harness.queue().get(Wait::For(TIMEOUT)).unwrap().is_some());
    assert!(begun.elapsed() >= delay);
}

fn a_delay_is_relative_to_the_stores_clock<F: Fixture>(harness: &Harness<F>) {
    let delay = TimeDelta::seconds(-90);
    harness.put_with("a", &PutOptions::new().schedule_at(delay).expected_at("1h30m"));
    let job = harness.get().unwrap();
    assert_eq!(job.schedule_at.unwrap() - job.enqueued_at, delay);
    assert_eq!(job.expected_at.unwrap() - job.enqueued_at, TimeDelta::minutes(90));
}

fn a_time_in_the_past_is_due<F: Fixture>(harness: &Harness<F>) {
    harness.put_with(1, &PutOptions::new().schedule_at("0001-01-01T00:00:00Z"));
    harness.put_with(2, &PutOptions::new().schedule_at(TimeDelta::seconds(-1)));
    harness.put_with(3, &PutOptions::new().schedule_at("0s"));
    harness.put_with(4, &PutOptions::new().schedule_at("9999-12-31T23:59:59Z"));
    assert_eq!(harness.drain(), [json!(1), json!(2), json!(3)]);
}

fn a_job_that_falls_due_during_a_transaction_can_be_taken_by_it<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            // Starts the transaction in the store: some stores start it with the first statement.
            assert!(queue.on(conn).get()?.is_none());
            harness.put_with("soon", &PutOptions::new().schedule_at(Duration::from_millis(50)));
            std::thread::sleep(Duration::from_millis(100));
            assert_eq!(queue.on(conn).get()?.map(|job| job.data), Some(json!("soon")));
            let before = queue.on(conn).put_with(&json!("late"), &PutOptions::new().schedule_at("0s"))?;
            assert_eq!(queue.on(conn).get()?.map(|job| job.id), Some(before.id));
            Ok(())
        })
        .unwrap();
}

fn an_invalid_time_is_refused_and_nothing_is_put<F: Fixture>(harness: &Harness<F>) {
    let unusable = [
        PutOptions::new().schedule_at("10s garbage"),
        PutOptions::new().schedule_at(""),
        PutOptions::new().expected_at("infinity"),
        PutOptions::new().schedule_at("99999999999999999999d"),
        PutOptions::new().expected_at(TimeDelta::MAX),
        PutOptions::new().schedule_at(Duration::MAX),
        PutOptions::new().schedule_at(DateTime::<Utc>::MAX_UTC),
        PutOptions::new().expected_at(DateTime::<Utc>::MIN_UTC),
        PutOptions::new().schedule_at(NaiveDateTime::MAX),
    ];
    for options in unusable {
        let error = harness.try_put(&json!(1), &options).unwrap_err();
        let found = harness.fixture.core_error(&error);
        assert!(matches!(found, Some(pq_core::Error::InvalidTime(_))), "{options:?}: {error}");
    }
    assert_eq!(harness.counts().live(), 0);
}
