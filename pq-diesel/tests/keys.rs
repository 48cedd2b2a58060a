//! Serialization and unique keys with plain SQL, other isolation levels and concurrent takes.

mod common;

use std::time::Duration;

use common::{Outcome, PATIENCE, database, queue, until};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use pq_core::memory::MemoryStore;
use pq_core::{NewJob, QueueName, Scan, Store};
use pq_diesel::{Key, OnConflict, Outcome as Settlement, Pq, PutOptions, PutOutcome, Wait};
use serde_json::{Value, json};

#[test]
fn plain_sql_cannot_put_a_second_job_of_a_unique_key() -> Outcome {
    let database = database()?;
    let (queue, mut conn) = (queue(&database)?, database.connect()?);
    let insert = "INSERT INTO pq.queue (q_name, data, unique_key) VALUES ('apples', '1', 'one')";
    conn.batch_execute(insert)?;
    let refused = conn.batch_execute(insert).map_err(|error| error.to_string());
    assert!(refused.is_err_and(|error| error.contains("unique key")));
    let unique = PutOptions::new().unique("one");
    assert_eq!(queue.put_with(&json!(2), &unique)?.outcome, PutOutcome::Kept);
    assert!(queue.get(Wait::No)?.is_some());
    conn.batch_execute(insert)?;
    Ok(())
}

#[test]
fn a_unique_key_is_free_after_plain_sql_took_or_deleted_its_job() -> Outcome {
    let database = database()?;
    let (queue, mut conn) = (queue(&database)?, database.connect()?);
    let unique = PutOptions::new().unique("one");
    for others in ["DELETE FROM pq.queue", "UPDATE pq.queue SET dequeued_at = now()", "TRUNCATE pq.queue"] {
        assert_eq!(queue.put_with(&json!(1), &unique)?.outcome, PutOutcome::Added);
        conn.batch_execute(others)?;
        conn.batch_execute("INSERT INTO pq.queue (q_name, data, unique_key) VALUES ('apples', '1', 'one')")?;
        conn.batch_execute(others)?;
    }
    assert_eq!(queue.put_with(&json!(1), &unique)?.outcome, PutOutcome::Added);
    Ok(())
}

#[test]
fn an_open_put_of_one_more_job_stops_no_worker() -> Outcome {
    let database = database()?;
    let (queue, mut conn) = (queue(&database)?, database.connect()?);
    let one_more = PutOptions::new().unique_or("one", OnConflict::KeepWaiting);
    let again = || Settlement::Retry { after: Duration::ZERO, error: "again".to_owned(), payload: None };
    for outcome in [Settlement::Complete, again()] {
        let returns = !matches!(outcome, Settlement::Complete);
        let first = queue.put_with(&json!(1), &one_more)?.id;
        let leased = queue.lease(1, PATIENCE, Wait::No)?;
        let rolled_back = conn.transaction(|conn| -> Outcome {
            conn.batch_execute("SET LOCAL lock_timeout = '10s'")?;
            assert_eq!(queue.on(conn).put_with(&json!(2), &one_more)?.outcome, PutOutcome::Added);
            // Waits for nothing that only the end of this transaction frees.
            queue.settle(&leased[0], outcome)?;
            Err("rolled back".into())
        });
        assert!(rolled_back.is_err_and(|error| error.to_string() == "rolled back"));
        let next = queue.put_with(&json!(3), &one_more)?;
        if returns {
            // The settling took the open put for a committed one.
            assert_eq!(queue.find(first)?.map(|job| job.unique_key), Some(None));
            assert_eq!((next.id, next.outcome), (first, PutOutcome::Kept));
        } else {
            assert_eq!(next.outcome, PutOutcome::Added, "the key is free");
        }
        queue.clear()?;
    }
    Ok(())
}

#[test]
fn a_snapshot_older_than_a_lease_cannot_take_its_key() -> Outcome {
    let database = database()?;
    let (queue, mut conn) = (queue(&database)?, database.connect()?);
    let keyed = PutOptions::new().serialization_key("one");
    queue.put_many_with([(&json!(1), &keyed), (&json!(2), &keyed)])?;
    for isolation in ["REPEATABLE READ", "SERIALIZABLE"] {
        let mut held = Vec::new();
        let taken = conn.build_transaction().run(|conn| {
            conn.batch_execute(&format!(
                "SET TRANSACTION ISOLATION LEVEL {isolation}; SELECT FROM pq.queue"
            ))?;
            held = queue.lease(1, PATIENCE, Wait::No)?;
            queue.on(conn).get_many(2)
        });
        assert_eq!(held.len(), 1);
        // A serialization failure or nothing, but never the key's second job.
        assert!(taken.is_err() || taken.is_ok_and(|jobs| jobs.is_empty()), "{isolation}");
        for job in &held {
            queue.settle(job, Settlement::GiveBack)?;
        }
    }
    Ok(())
}

/// Leases jobs round by round and keeps every fourth lease, so that more and more keys are in use. Returns the ids.
fn lease_in_rounds<S: Store>(
    store: &S,
    conn: &mut S::Conn,
    jobs: &[NewJob],
    counts: impl Fn(usize) -> usize,
) -> Result<Vec<Vec<i64>>, S::Error> {
    let name = QueueName::new("apples").map_err(S::Error::from)?;
    store.put(conn, &name, jobs)?;
    let mut rounds = Vec::new();
    for round in 0..60 {
        let taken = store.lease(conn, &name, counts(round), PATIENCE, Scan::Full)?.jobs;
        if round % 4 != 0 {
            let settlements: Vec<_> =
                taken.iter().map(|job| pq_core::Settlement { job, outcome: Settlement::Complete }).collect();
            assert!(store.settle(conn, &settlements)?.all());
        }
        rounds.push(taken.iter().map(|job| job.id.0).collect());
    }
    Ok(rounds)
}

#[test]
fn jobs_with_free_keys_are_taken_in_order() -> Outcome {
    for keys in [1, 40, 2_000] {
        let jobs: Vec<NewJob> = (0..4_000_u32)
            .map(|n| {
                let mut job = NewJob::new(pq_core::Payload::from_stored(n.to_string()));
                // Neighbours share a key, so the start of the queue has few keys.
                job.serialization_key =
                    (n % 5 != 0).then(|| Key::from_stored((n * keys / 4_000).to_string()));
                job.priority = i32::from(n % 7 == 0);
                job
            })
            .collect();
        let database = database()?;
        let pq = Pq::detached();
        let memory = MemoryStore::new();
        let found =
            lease_in_rounds(pq.store(), &mut database.connect()?, &jobs, |round| [100, 3, 1][round % 3])?;
        // A take may return fewer jobs than it could, but it skips none, and it is empty only if no key is free.
        let count = |round: usize| found[round].len().max(1);
        let expected = lease_in_rounds(&memory, &mut memory.connect(), &jobs, count)?;
        for (round, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found, expected, "round {round} of {keys} keys");
        }
    }
    Ok(())
}

/// Returns the number of rows that index scans have fetched from the table.
fn fetched(conn: &mut PgConnection) -> Result<i64, Box<dyn std::error::Error>> {
    conn.batch_execute("SELECT pg_stat_force_next_flush()").or_else(|_| {
        // An older server flushes its statistics after a second.
        std::thread::sleep(Duration::from_millis(1_200));
        conn.batch_execute("SELECT 1")
    })?;
    Ok(diesel::dsl::sql::<diesel::sql_types::BigInt>(
        "SELECT idx_tup_fetch FROM pg_stat_user_tables WHERE relid = 'pq.queue'::regclass",
    )
    .get_result(conn)?)
}

#[test]
fn takes_do_not_read_the_jobs_behind_a_key_in_use() -> Outcome {
    // A fallback reads all of the smaller number, and the last one is for more.
    for waiting in [10_000, 50_000] {
        let database = database()?;
        let (queue, mut conn) = (queue(&database)?, database.connect()?);
        queue.put_with(&json!(0), &PutOptions::new().serialization_key("busy"))?;
        let held = queue.lease(1, Duration::from_secs(600), Wait::No)?;
        conn.batch_execute(&format!(
            "INSERT INTO pq.queue (q_name, data, serial_key)
                SELECT 'apples', '1', 'busy' FROM generate_series(1, {waiting});
            INSERT INTO pq.queue (q_name, data) SELECT 'apples', '2' FROM generate_series(0, 20)"
        ))?;
        conn.batch_execute("VACUUM ANALYZE pq.queue")?;
        // The others, then none, then those of the key.
        for expected in [Some(json!(2)), None, Some(json!(1))] {
            if expected == Some(json!(1)) {
                queue.settle(&held[0], Settlement::Complete)?;
            }
            // The first take finds out whether the key is in use.
            assert_eq!(queue.on(&mut conn).get()?.map(|job| job.data), expected);
            let before = fetched(&mut conn)?;
            for _ in 0..20 {
                assert_eq!(queue.on(&mut conn).get()?.map(|job| job.data), expected);
            }
            let per_take = (fetched(&mut conn)? - before) / 20;
            assert!(per_take < 50, "{per_take} of {waiting} rows were fetched for each take of {expected:?}");
        }
    }
    Ok(())
}

/// A take that tries a key whose job has just ended holds the key's lock until its transaction ends. Other takes skip
/// the key meanwhile, so this take must return the key's next job.
#[test]
fn a_key_whose_job_ended_after_the_snapshot_yields_its_next_job() -> Outcome {
    let database = database()?;
    let (queue, mut gate) = (queue(&database)?, database.connect()?);
    gate.batch_execute(
        "ALTER FUNCTION pq.queue_lock_keyed_job RENAME TO original;
         CREATE FUNCTION pq.queue_lock_keyed_job(job_ctid tid, queue_name text, key text, key_lock bigint, new_lease bigint) RETURNS boolean
         LANGUAGE plpgsql SET lock_timeout = '30s' AS $$ BEGIN
             PERFORM pg_advisory_lock_shared(1);
             PERFORM pg_advisory_unlock_shared(1);
             RETURN pq.original(job_ctid, queue_name, key, key_lock, new_lease);
         END $$",
    )?;
    let keyed = PutOptions::new().serialization_key("one");
    for lease in [false, true] {
        queue.put_many_with([(&json!(1), &keyed), (&json!(2), &keyed)])?;
        let (mut first, mut second) = (database.connect()?, database.connect()?);
        first.batch_execute("BEGIN")?;
        assert_eq!(queue.on(&mut first).get()?.map(|job| job.data), Some(json!(1)));
        gate.batch_execute("SELECT pg_advisory_lock(1)")?;
        let taken = std::thread::scope(|threads| {
            let late = threads.spawn(|| {
                if lease {
                    let held = queue.lease(1, PATIENCE, Wait::No)?;
                    return Ok(held.into_iter().map(|job| job.data.clone()).collect());
                }
                queue.on(&mut second).get_many(1).map(|jobs| jobs.into_iter().map(|job| job.data).collect())
            });
            // The late take has a snapshot with both jobs, and waits at the first one.
            until(
                &mut gate,
                "SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = 'advisory'",
            )?;
            first.batch_execute("COMMIT")?;
            gate.batch_execute("SELECT pg_advisory_unlock(1)")?;
            let taken: Result<Vec<Value>, pq_diesel::Error> =
                late.join().map_err(|_| "the taker panicked")?;
            Ok::<_, Box<dyn std::error::Error>>(taken?)
        })?;
        assert_eq!(taken, [json!(2)], "under a lease: {lease}");
    }
    Ok(())
}

#[test]
fn one_statement_and_one_transaction_lock_a_bounded_number_of_keys() -> Outcome {
    let database = database()?;
    let (queue, mut conn) = (queue(&database)?, database.connect()?);
    conn.batch_execute(
        "INSERT INTO pq.queue (q_name, data, serial_key)
            SELECT 'apples', '1', n::text FROM generate_series(1, 20000) AS n;
        ANALYZE pq.queue",
    )?;
    assert_eq!(queue.get_many(20_000, Wait::No)?.len(), 512);
    assert_eq!(queue.lease(20_000, PATIENCE, Wait::No)?.len(), 512);
    let mut taken = 0;
    let refused = conn.transaction(|conn| {
        loop {
            taken += queue.on(conn).get_many(20_000)?.len();
            assert!(taken < 20_000, "the keys of a transaction are bounded");
        }
        #[allow(unreachable_code, reason = "names the type of the error")]
        Ok::<(), pq_diesel::Error>(())
    });
    assert!((3_000..5_000).contains(&taken), "{taken}");
    let refused = refused.map_err(|error| error.to_string());
    assert!(refused.clone().is_err_and(|error| error.contains("commit it")), "{refused:?}");
    // Nothing is lost, and another transaction goes on.
    assert_eq!(queue.counts()?.ready, 20_000 - 1_024);
    assert_eq!(queue.get_many(20_000, Wait::No)?.len(), 512);
    Ok(())
}
