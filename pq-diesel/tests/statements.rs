//! The statements that are sent: how many, how they are planned, and for which table.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use common::{Outcome, PATIENCE, database};
use diesel::connection::{InstrumentationEvent, SimpleConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use pq_core::store::{Jobs, MAX_TAKE_BYTES};
use pq_core::{Outcome as Ended, Scan, Settlement};
use pq_diesel::{Filter, Pq};
use serde_json::{Value, json};

#[test]
fn a_put_and_a_get_are_one_statement_each() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let queue = Pq::detached().queue::<Value>("apples")?;
    let sent = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&sent);
    conn.set_instrumentation(move |event: InstrumentationEvent<'_>| {
        if matches!(event, InstrumentationEvent::StartQuery { .. }) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    let many: Vec<Value> = (0..1_000).map(|n| json!(n)).collect();
    queue.on(&mut conn).put(&json!(1))?;
    assert_eq!(sent.swap(0, Ordering::Relaxed), 1, "a put");
    queue.on(&mut conn).put_many(&many)?;
    assert_eq!(sent.swap(0, Ordering::Relaxed), 1, "a put of many");
    queue.on(&mut conn).get()?;
    assert_eq!(sent.swap(0, Ordering::Relaxed), 1, "a get");
    queue.on(&mut conn).get_many(500)?;
    assert_eq!(
        sent.swap(0, Ordering::Relaxed),
        2,
        "a get of many, and whether the table has many large payloads"
    );
    let prepared: i64 =
        diesel::dsl::sql::<BigInt>("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%pq%'")
            .get_result(&mut conn)?;
    assert_eq!(prepared, 5, "each statement is prepared once, by name");
    Ok(())
}

#[test]
fn statements_of_two_tables_on_one_connection_do_not_mix() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let (one, two) = (Pq::detached(), Pq::builder().table("other").build()?);
    two.migrate_on(&mut conn)?;
    let (one, two) = (one.queue::<u8>("apples")?, two.queue::<u8>("apples")?);
    for n in 0..3 {
        one.on(&mut conn).put(&n)?;
        two.on(&mut conn).put(&(n + 100))?;
    }
    for n in 0..3 {
        assert_eq!(two.on(&mut conn).get()?.map(|job| job.data), Some(n + 100));
        assert_eq!(one.on(&mut conn).get()?.map(|job| job.data), Some(n));
    }
    Ok(())
}

#[test]
fn payloads_of_two_tables_in_one_transaction_do_not_mix() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let (one, two) = (Pq::detached(), Pq::builder().table("other").build()?);
    two.migrate_on(&mut conn)?;
    let (one, two) = (one.queue::<u8>("apples")?, two.queue::<u8>("apples")?);
    let ids = [one.on(&mut conn).put(&1)?, two.on(&mut conn).put(&101)?];
    assert_eq!(ids[0], ids[1], "each table has its own ids");
    one.on(&mut conn).transaction(|conn| -> Result<(), pq_diesel::Error> {
        let mut mine = one.on(conn).get()?.expect("a job");
        let other = two.on(conn).get()?.expect("a job");
        one.on(conn).update(&mut mine, 2)?;
        one.on(conn).give_back(&mine)?;
        two.on(conn).give_back(&other)
    })?;
    assert_eq!(one.on(&mut conn).get()?.map(|job| job.data), Some(2));
    assert_eq!(two.on(&mut conn).get()?.map(|job| job.data), Some(101));
    Ok(())
}

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text, column_name = "QUERY PLAN")]
    text: String,
}

#[test]
fn a_take_among_many_jobs_neither_scans_nor_sorts_them() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    conn.batch_execute(
        "INSERT INTO pq.queue (q_name, data) SELECT 'apples', '1' FROM generate_series(1, 20000);
         INSERT INTO pq.queue (q_name, data, schedule_at)
             SELECT 'apples', '2', now() + interval '1 day' FROM generate_series(1, 20000);
         ANALYZE pq.queue; SET plan_cache_mode = force_generic_plan",
    )?;
    let pq = Pq::detached();
    let [_, _, (_, take), _] = pq.store().hot_statements();
    conn.batch_execute(&format!("PREPARE take (text, bigint, bigint) AS {take}"))?;
    for due in [false, true] {
        if due {
            conn.batch_execute(
                "INSERT INTO pq.queue (q_name, data, schedule_at) SELECT 'apples', '3', now() FROM generate_series(1, 5)",
            )?;
        }
        let plan: Vec<Line> =
            diesel::sql_query("EXPLAIN (ANALYZE, BUFFERS, TIMING off) EXECUTE take('apples', NULL, 1)")
                .load(&mut conn)?;
        let plan: Vec<String> = plan.into_iter().map(|line| line.text).collect();
        let read = plan.iter().filter_map(|line| line.trim().strip_prefix("Buffers: shared hit=")).next();
        let read: u32 =
            read.and_then(|rest| rest.split([' ', '\n']).next()?.parse().ok()).ok_or("no buffers")?;
        assert!(!plan.iter().any(|line| line.contains("Seq Scan")), "{}", plan.join("\n"));
        assert!(read < 100, "{read} pages were read:\n{}", plan.join("\n"));
    }
    Ok(())
}

#[test]
fn jobs_are_found_by_a_tag_without_reading_the_others() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    conn.batch_execute(
        "INSERT INTO pq.queue (q_name, data, annotations) SELECT 'apples', '1', CASE number % 4
                WHEN 0 THEN jsonb_build_object('tags', ARRAY['customer ' || number])
                WHEN 1 THEN jsonb_build_object('trace', jsonb_build_object('traceparent', number::text)) END
            FROM generate_series(1, 20000) AS number;
        WITH gone AS (DELETE FROM pq.queue WHERE id <= 10000 RETURNING *)
        INSERT INTO pq.queue_archive (id, q_name, data, enqueued_at, priority, attempt, outcome, annotations)
            SELECT id, q_name, data, enqueued_at, priority, attempt, 'dead', annotations FROM gone;
        ANALYZE pq.queue, pq.queue_archive",
    )?;
    let queue = Pq::detached().queue::<Value>("apples")?;
    // The statistics are of what the session has not reported yet, of earlier transactions too.
    let rows_read = |conn: &mut PgConnection| {
        diesel::dsl::sql::<BigInt>(
            "SELECT coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::bigint
            FROM pg_stat_xact_user_tables WHERE relname IN ('queue', 'queue_archive')",
        )
        .get_result::<i64>(conn)
    };
    // A statement that was run five times may get a plan that is independent of its values.
    for number in [4, 8, 12, 16, 20, 24, 28, 19_996] {
        conn.transaction(|conn| {
            let filter = Filter::default().tag(format!("customer {number}"));
            let before = rows_read(conn)?;
            assert_eq!(queue.on(conn).list(&filter, 100)?.len(), 1);
            let read = rows_read(conn)? - before;
            assert!((1..10).contains(&read), "{read} rows were read");
            Ok::<_, pq_diesel::Error>(())
        })?;
    }
    Ok(())
}

#[test]
fn a_get_uses_a_generic_plan() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    conn.batch_execute(
        "INSERT INTO pq.queue (q_name, data) SELECT 'apples', '1' FROM generate_series(1, 20000);
         ANALYZE pq.queue",
    )?;
    let queue = Pq::detached().queue::<Value>("apples")?;
    for _ in 0..20 {
        queue.on(&mut conn).get()?;
    }
    let generic: i64 = diesel::dsl::sql::<BigInt>(
        "SELECT generic_plans FROM pg_prepared_statements WHERE statement LIKE '%DELETE%'",
    )
    .get_result(&mut conn)?;
    // PostgreSQL plans the first five executions with their parameters.
    assert_eq!(generic, 15);
    Ok(())
}

/// A full scan of the leases would read past all leases that ended since the last vacuum.
#[test]
fn settling_finds_the_lease_by_index_in_a_table_without_statistics() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    conn.batch_execute("ALTER TABLE pq.queue_leases SET (autovacuum_enabled = off)")?;
    let pq = Pq::detached();
    let (queue, store) = (pq.queue::<i64>("apples")?, pq.store());
    let keyed = pq_diesel::PutOptions::new().serialization_key("k");
    // PostgreSQL keeps the generic plan after five executions.
    for _ in 0..12 {
        conn.transaction(|conn| -> Outcome {
            for job in 0..4 {
                queue.on(conn).put(&job)?;
            }
            let lease = |conn: &mut PgConnection, count| {
                store.lease(conn, queue.name(), count, PATIENCE, Scan::Full).map(|taken| taken.jobs)
            };
            let plain = lease(conn, 2)?;
            let some = lease(conn, 2)?;
            queue.on(conn).put_with(&4, &keyed)?;
            let keyed = lease(conn, 1)?;
            for jobs in [&plain[..], &some[..1], &some[1..], &keyed] {
                let settlements: Vec<_> =
                    jobs.iter().map(|job| Settlement { job, outcome: Ended::Complete }).collect();
                assert!(store.settle(conn, &settlements)?.all());
            }
            let scans = "SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relname = 'queue_leases'";
            assert_eq!(diesel::dsl::sql::<BigInt>(scans).get_result::<i64>(conn)?, 0);
            Ok(())
        })?;
    }
    Ok(())
}

/// A take locks no job that it does not take, so that others take it while its transaction is open.
#[test]
fn a_take_does_not_lock_jobs_beyond_its_bytes() -> Outcome {
    let database = database()?;
    let (mut conn, mut other) = (database.connect()?, database.connect()?);
    let queue = Pq::detached().queue::<Value>("apples")?;
    // Whether a store can compress a payload does not matter here.
    conn.batch_execute(
        "ALTER TABLE pq.queue ALTER data SET STORAGE EXTERNAL;
         INSERT INTO pq.queue (q_name, data, priority) SELECT 'apples', to_json(1), 1 FROM generate_series(1, 5000);
         INSERT INTO pq.queue (q_name, data) SELECT 'apples', to_json(repeat('a', 320000)) FROM generate_series(1, 100)",
    )?;
    let fitting = MAX_TAKE_BYTES.div_ceil(320_000);
    for taken in [4_096, 904 + fitting] {
        assert_eq!(queue.on(&mut conn).get_many(4_096)?.len(), taken);
    }
    conn.transaction(|conn| -> Outcome {
        assert_eq!(queue.on(conn).get_many(4_096)?.len(), 100 - fitting);
        Ok(())
    })?;
    conn.batch_execute(
        "INSERT INTO pq.queue (q_name, data) SELECT 'apples', to_json(repeat('a', 320000)) FROM generate_series(1, 100)",
    )?;
    conn.transaction(|conn| -> Outcome {
        assert_eq!(queue.on(conn).get_many(4_096)?.len(), fitting);
        assert_eq!(queue.on(&mut other).get_many(8)?.len(), 8, "a few are not measured");
        assert_eq!(queue.on(&mut other).get_many(4_096)?.len(), 100 - fitting - 8);
        Ok(())
    })?;
    Ok(())
}
