//! Ids that are given again, because the sequence was restarted or restored.

mod common;

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use pq_diesel::doctor::{Examination, Level};
use pq_diesel::{
    Filter, Job, JobId, JobState, Outcome as Settlement, Pq, PutOptions, Queue, Retention, Wait,
};
use pq_testing::Database;
use serde_json::{Value, json};

use self::common::*;

/// Puts a job that gets the id 1 once more.
fn put_first(queue: &Queue<Value>, conn: &mut PgConnection, data: &str) -> Outcome {
    conn.batch_execute("TRUNCATE pq.queue RESTART IDENTITY")?;
    assert_eq!(queue.on(conn).put(&json!(data))?.id, JobId(1));
    Ok(())
}

fn dead(error: &str) -> Settlement {
    Settlement::Dead { error: error.to_owned() }
}

type Setup = (Database, Pq, Queue<Value>, PgConnection);

fn setup() -> Result<Setup, Box<dyn std::error::Error>> {
    let database = database()?;
    let pq = Pq::builder().url(database.url()).build()?;
    let (queue, conn) = (pq.queue("apples")?, database.connect()?);
    Ok((database, pq, queue, conn))
}

fn lease(queue: &Queue<Value>, lease: Duration) -> Result<Job<Value>, Box<dyn std::error::Error>> {
    Ok(queue.lease(1, lease, Wait::No)?.pop().ok_or("a job")?)
}

#[test]
fn every_outcome_of_an_id_that_is_given_again_is_kept() -> Outcome {
    let (_database, pq, queue, mut conn) = setup()?;
    put_first(&queue, &mut conn, "leased")?;
    queue.settle(&lease(&queue, PATIENCE)?, dead("leased"))?;
    put_first(&queue, &mut conn, "leased again")?;
    queue.settle(&lease(&queue, PATIENCE)?, dead("leased again"))?;
    put_first(&queue, &mut conn, "in a transaction")?;
    queue.transaction(|conn| {
        let job = queue.on(conn).get()?.ok_or(pq_core::Error::not_yours(JobId(1)))?;
        queue.on(conn).settle(&job, dead("in a transaction"))
    })?;
    put_first(&queue, &mut conn, "cancelled while it waits")?;
    queue.cancel(JobId(1))?;
    put_first(&queue, &mut conn, "cancelled and expired")?;
    lease(&queue, Duration::ZERO)?;
    queue.cancel(JobId(1))?;
    pq.maintain(&Retention::default())?;

    let found = pq.list(&Filter::id(JobId(1)), 9)?;
    let ended: Vec<_> = found.iter().map(|job| job.payload.as_str().trim_matches('"').to_owned()).collect();
    assert_eq!(
        ended,
        ["cancelled and expired", "cancelled while it waits", "in a transaction", "leased again", "leased"]
    );
    Ok(())
}

#[test]
fn the_newest_job_of_an_id_is_found_and_requeued() -> Outcome {
    let (_database, pq, queue, mut conn) = setup()?;
    for data in ["old", "new"] {
        put_first(&queue, &mut conn, data)?;
        queue.settle(&lease(&queue, PATIENCE)?, dead(data))?;
    }
    queue.put(&json!("other"))?;
    let other = lease(&queue, PATIENCE)?;
    queue.settle(&other, dead("other"))?;

    let found = pq.find(JobId(1))?.ok_or("a job")?;
    assert_eq!(found.error.as_deref(), Some("new"));
    assert!(queue.retry(JobId(1))?);
    let found = pq.find(JobId(1))?.ok_or("a job")?;
    assert_eq!((found.state, found.payload.as_str()), (JobState::Ready, "\"new\""));
    // The id waits now, so the older job stays, and does not keep the other from its retry.
    assert_eq!(queue.retry_many(&[JobId(1), other.id])?, 1);
    let (first, second) = (lease(&queue, PATIENCE)?, lease(&queue, PATIENCE)?);
    assert_eq!([&first.data, &second.data], [&json!("new"), &json!("other")]);
    assert_eq!(queue.retry_all_dead()?, 0, "the id runs now");
    queue.settle(&first, Settlement::Complete)?;
    assert_eq!(queue.retry_all_dead()?, 1);
    assert_eq!(lease(&queue, PATIENCE)?.data, json!("old"));
    Ok(())
}

#[test]
fn the_doctor_compares_the_sequences_with_the_ids() -> Outcome {
    let (_database, pq, queue, mut conn) = setup()?;
    let sequences = || -> Result<Vec<(Level, String)>, pq_diesel::Error> {
        let findings = pq.examine(&Examination::new())?;
        let of_sequences = findings.into_iter().filter(|finding| finding.check == "sequences");
        Ok(of_sequences.map(|finding| (finding.level, finding.advice.unwrap_or_default())).collect())
    };
    queue.put_many(&[json!(1), json!(2)])?;
    queue.settle(&lease(&queue, PATIENCE)?, dead("broken"))?;
    assert_eq!(sequences()?[0].0, Level::Ok);
    conn.batch_execute("ALTER TABLE pq.queue ALTER COLUMN id RESTART")?;
    let found = sequences()?;
    assert_eq!(found[0].0, Level::Failure);
    assert!(found[0].1.ends_with("RESTART WITH 3"), "{}", found[0].1);
    assert!(queue.get(Wait::No)?.is_some());
    assert_eq!(sequences()?[0].0, Level::Warning, "only an archived job has an id of the sequence");
    conn.batch_execute(found[0].1.trim_start_matches("advance it: "))?;
    assert_eq!(sequences()?[0].0, Level::Ok);
    lease(
        &{
            queue.put(&json!(3))?;
            queue.clone()
        },
        PATIENCE,
    )?;
    conn.batch_execute("ALTER SEQUENCE pq.queue_lease_tokens RESTART")?;
    assert_eq!(sequences()?[0].0, Level::Failure);
    Ok(())
}

#[test]
fn expired_jobs_whose_id_waits_again_return_under_new_ids() -> Outcome {
    let (_database, pq, queue, mut conn) = setup()?;
    // Two leases have a job of the id 1, and the new ids that the sequence gives wait, too.
    for data in ["first", "second"] {
        put_first(&queue, &mut conn, data)?;
        lease(&queue, Duration::ZERO)?;
    }
    conn.batch_execute("TRUNCATE pq.queue RESTART IDENTITY")?;
    conn.batch_execute("ALTER TABLE pq.queue ALTER COLUMN id RESTART WITH 9")?;
    queue.put(&json!("innocent"))?;
    lease(&queue, Duration::ZERO)?;
    conn.batch_execute("ALTER TABLE pq.queue ALTER COLUMN id RESTART")?;
    queue.put_many(&[json!("waits"), json!("waits")])?;
    conn.batch_execute("ALTER TABLE pq.queue ALTER COLUMN id RESTART")?;

    let report = pq.maintain(&Retention::default())?.ok_or("maintenance ran")?;
    assert_eq!(report.returned, 3);
    let found = pq.list(&Filter::queue("apples"), 9)?;
    let renumbered = |job: &pq_diesel::JobRecord| {
        job.error.as_deref().is_some_and(|error| error.ends_with("; another job has the id 1"))
    };
    let mut found: Vec<(String, i64, bool)> = found
        .iter()
        .map(|job| (job.payload.as_str().trim_matches('"').to_owned(), job.id.0, renumbered(job)))
        .collect();
    found.sort();
    let expected = [
        ("first", 3, true),
        ("innocent", 9, false),
        ("second", 4, true),
        ("waits", 1, false),
        ("waits", 2, false),
    ];
    assert_eq!(found, expected.map(|(data, id, renumbered)| (data.to_owned(), id, renumbered)));
    Ok(())
}

#[test]
fn a_job_whose_id_waits_again_returns_by_any_outcome_with_its_unique_key() -> Outcome {
    let outcomes = [
        Settlement::Retry { after: Duration::ZERO, error: "broken".to_owned(), payload: None },
        Settlement::Snooze { after: Duration::ZERO, reason: None, payload: None },
        Settlement::GiveBack,
    ];
    let errors = ["broken; another job has the id 1", "another job has the id 1", "another job has the id 1"];
    for (outcome, error) in outcomes.into_iter().zip(errors) {
        let (_database, pq, queue, mut conn) = setup()?;
        queue.put_with(&json!("leased"), &PutOptions::new().unique("key"))?;
        let leased = lease(&queue, PATIENCE)?;
        put_first(&queue, &mut conn, "waits")?;
        queue.settle(&leased, outcome)?;

        let kept = queue.put_with(&json!("refused"), &PutOptions::new().unique("key"))?;
        assert_ne!(kept.id, JobId(1));
        let found = pq.find(kept.id)?.ok_or("a job")?;
        assert_eq!((found.payload.as_str(), found.error.as_deref()), ("\"leased\"", Some(error)));
        assert_eq!(queue.get_many(9, Wait::No)?.len(), 2);
        queue.put_with(&json!("after"), &PutOptions::new().unique("key"))?;
        assert_eq!(queue.get(Wait::No)?.ok_or("the key is free")?.data, json!("after"));
    }
    Ok(())
}
