//! Takes of limited queues beside others that commit after their snapshots.
//!
//! A take is stopped between the snapshot of its statement and the lock of the row that it wants, by a policy of
//! row-level security that waits for an advisory lock. Its session has a role to which the policy applies. What only
//! reads rows passes.

mod common;

use std::thread;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use pq_diesel::admin::Role;
use pq_diesel::{Limits, Outcome as JobOutcome, Pq, PutOptions, Rate, Wait};
use serde_json::json;

use self::common::*;

const GATE: i64 = 77;

const WAITING: &str = "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database
    WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted";

/// Takes the only place, or the only token, of a queue while another take waits in front of it. Returns how many jobs
/// the other one takes then.
fn taken_by_the_second(table: &str, limits: &Limits) -> Result<usize, Box<dyn std::error::Error>> {
    let database = database()?;
    let (queue, mut owner) = (queue(&database)?, database.connect()?);
    queue.set_limits(limits)?;
    let group = PutOptions::new().group("a");
    (0..3).try_for_each(|job| queue.put_with(&json!(job), &group).map(drop))?;
    // The rows exist after the first take. A bucket is full again.
    let first = queue.lease(1, PATIENCE, Wait::No)?;
    queue.settle(&first[0], JobOutcome::Complete)?;
    owner.batch_execute("UPDATE pq.queue_buckets SET tokens = 1")?;

    let role = format!("races_{}_{}", table, database.name());
    owner.batch_execute(&format!(
        "DROP ROLE IF EXISTS {role}; CREATE ROLE {role};
         CREATE FUNCTION public.passes_gate() RETURNS boolean LANGUAGE plpgsql AS
         $$BEGIN PERFORM pg_advisory_xact_lock_shared({GATE}); RETURN true; END$$;
         ALTER TABLE pq.queue_{table} ENABLE ROW LEVEL SECURITY;
         CREATE POLICY open ON pq.queue_{table} USING (true);
         CREATE POLICY gate ON pq.queue_{table} AS RESTRICTIVE FOR UPDATE USING (public.passes_gate());
         SELECT pg_advisory_lock({GATE})"
    ))?;
    Pq::detached().grant_on(&mut owner, Role::Consumer, &role)?;
    let mut conn = database.connect()?;
    conn.batch_execute(&format!("SET ROLE {role}"))?;
    let taken = thread::scope(|threads| -> Result<usize, Box<dyn std::error::Error>> {
        let second = threads.spawn(|| queue.on(&mut conn).lease(1, PATIENCE).map(|jobs| jobs.len()));
        until(&mut owner, WAITING)?;
        assert_eq!(queue.lease(1, PATIENCE, Wait::No)?.len(), 1);
        owner.batch_execute(&format!("SELECT pg_advisory_unlock({GATE})"))?;
        Ok(second.join().map_err(|_| "the second take panicked")??)
    })?;
    drop(conn);
    owner.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))?;
    Ok(taken)
}

#[test]
fn a_place_that_was_given_away_since_the_snapshot_is_not_given_again() -> Outcome {
    assert_eq!(taken_by_the_second("places", &Limits::new().running(1))?, 0);
    assert_eq!(taken_by_the_second("places", &Limits::new().running_per_group(1))?, 0);
    Ok(())
}

#[test]
fn a_token_that_was_taken_since_the_snapshot_is_not_taken_again() -> Outcome {
    let hourly = Rate::new(1, Duration::from_secs(3_600)).burst(1);
    assert_eq!(taken_by_the_second("buckets", &Limits::new().rate(hourly))?, 0);
    assert_eq!(taken_by_the_second("buckets", &Limits::new().rate_per_group(hourly))?, 0);
    Ok(())
}
