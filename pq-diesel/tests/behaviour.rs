//! What only PostgreSQL can show: foreign rows, plain SQL, and the statements that are sent.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::{LISTENING, Outcome, PATIENCE, database, queue, until};
use diesel::connection::{InstrumentationEvent, SimpleConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Text};
use pq_diesel::{Error, Notify, Pq, Wait, direct};
use pq_testing::Server;
use serde_json::value::RawValue;
use serde_json::{Value, json};

#[test]
fn a_plain_insert_is_a_full_put() -> Outcome {
    let database = database()?;
    let queue = queue(&database)?;
    let mut conn = database.connect()?;
    std::thread::scope(|threads| {
        let waiter = threads.spawn(|| queue.get(Wait::For(PATIENCE)));
        until(&mut conn, LISTENING)?;
        let begun = Instant::now();
        conn.batch_execute("INSERT INTO pq.queue (q_name, data) VALUES ('apples', '{\"by\": \"psql\"}')")?;
        let got = waiter.join().map_err(|_| "the waiter panicked")??;
        assert_eq!(got.map(|job| job.data), Some(json!({ "by": "psql" })));
        assert!(begun.elapsed() < PATIENCE);
        Ok(())
    })
}

#[test]
fn puts_that_notify_nobody_are_found_by_polling() -> Outcome {
    let database = database()?;
    let poll = Duration::from_millis(50);
    let pq = Pq::builder().url(database.url()).notify(Notify::Off).poll_interval(poll).build()?;
    let queue = pq.queue::<Value>("apples")?;
    std::thread::scope(|threads| {
        let waiter = threads.spawn(|| queue.get(Wait::For(PATIENCE)));
        until(&mut database.connect()?, LISTENING)?;
        queue.put(&json!(1))?;
        assert!(waiter.join().map_err(|_| "the waiter panicked")??.is_some());
        Ok(())
    })
}

#[test]
fn a_put_wakes_those_who_wait_by_the_same_handle_whatever_the_server_says() -> Outcome {
    let database = database()?;
    let joint = if database.url().contains('?') { '&' } else { '?' };
    // The trigger tells nobody of what is put on these connections.
    let silent = format!("{}{joint}options=-c%20pq.notify%3Doff", database.url());
    let pq = Pq::builder().url(&silent).poll_interval(PATIENCE * 2).build()?;
    let queue = pq.queue::<Value>("apples")?;
    std::thread::scope(|threads| {
        let waiter = threads.spawn(|| queue.get(Wait::For(PATIENCE)));
        let looked = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND query LIKE '%SKIP LOCKED%' AND state = 'idle'";
        until(&mut database.connect()?, looked)?;
        let begun = Instant::now();
        queue.put(&json!(1))?;
        assert!(waiter.join().map_err(|_| "the waiter panicked")??.is_some());
        assert!(begun.elapsed() < PATIENCE / 2, "it was found by the last look of the wait");
        Ok(())
    })
}

#[test]
fn a_transaction_of_a_handle_that_tells_after_the_commit_notifies_of_nothing_itself() -> Outcome {
    let database = database()?;
    let (mut writer, mut heard) = (database.connect()?, database.connect()?);
    let pq = Pq::builder().url(database.url()).notify(Notify::AfterCommit).build()?;
    let queue = pq.queue::<i64>("apples")?;
    let process: i32 = diesel::dsl::sql::<Integer>("SELECT pg_backend_pid()").get_result(&mut writer)?;
    heard.batch_execute("LISTEN apples; LISTEN pears; LISTEN plums")?;
    queue.on(&mut writer).transaction(|conn| -> Result<(), Error> {
        let one = queue.on(conn).put(&1)?;
        let some = queue.on(conn).transaction(|conn| queue.on(conn).put_many(&[2, 3]))?;
        assert!(one.id < some[0].id && some[0].id < some[1].id, "{one:?} {some:?}");
        // What others put is none of the handle's business.
        conn.batch_execute("INSERT INTO pq.queue (q_name, data) VALUES ('pears', '1')")?;
        Ok(())
    })?;
    // Of a transaction that it does not commit it cannot know when it is over.
    writer.transaction(|conn| pq.queue::<i64>("plums")?.on(conn).put(&1))?;
    let begun = Instant::now();
    let mut told = Vec::new();
    while ["apples", "pears", "plums"].iter().any(|queue| !told.iter().any(|(channel, _)| channel == queue)) {
        assert!(begun.elapsed() < PATIENCE, "no more is told than {told:?}");
        heard.batch_execute("SELECT")?;
        for one in heard.notifications_iter() {
            let one = one?;
            told.push((one.channel, one.process_id == process));
        }
    }
    let by_the_writer = told.iter().filter(|(_, is_the_writers)| *is_the_writers);
    assert!(by_the_writer.map(|(channel, _)| channel.as_str()).eq(["pears", "plums"]), "{told:?}");
    let got = queue.get_many(9, Wait::No)?.into_iter().map(|job| job.data);
    assert!(got.eq([1, 2, 3]));
    Ok(())
}

#[test]
fn foreign_rows_do_not_stop_the_line() -> Outcome {
    let database = database()?;
    let queue = queue(&database)?;
    let mut conn = database.connect()?;
    conn.batch_execute(
        "INSERT INTO pq.queue (q_name, data, expected_at) VALUES
             ('apples', '1', '-infinity'), ('apples', '2', '294276-12-31'), ('apples', '3', 'infinity');
         INSERT INTO pq.queue (q_name, data, schedule_at) VALUES
             ('apples', '4', '-infinity'), ('apples', '\"never\"', 'infinity'), ('apples', '\"late\"', '294276-12-31');
         INSERT INTO pq.queue (q_name, data, enqueued_at) VALUES
             ('apples', '5', 'infinity'), ('apples', '6', '4714-11-24 BC');
         INSERT INTO pq.queue (q_name, data) VALUES
             ('apples', (repeat('[', 1000) || repeat(']', 1000))::json), ('apples', '\"\\ud800\"'), ('apples', '7')",
    )?;
    let mut got = Vec::new();
    while let Some(job) = queue.get(Wait::No)? {
        // A job with such times can be given back, too.
        got.push(job.data.as_i64());
    }
    assert_eq!(got, [1, 2, 3, 4, 5, 6, 7].map(Some));
    let counts = queue.counts()?;
    assert_eq!(
        (counts.ready, counts.scheduled, counts.dead),
        (0, 2, 2),
        "nested too deep, and half a letter"
    );
    let raw: Vec<String> =
        diesel::dsl::sql::<Text>("SELECT data::text FROM pq.queue_archive ORDER BY length(data::text)")
            .load(&mut conn)?;
    assert_eq!(raw.first().map(String::as_str), Some("\"\\ud800\""), "the text is kept");
    Ok(())
}

#[test]
fn a_job_with_infinite_times_can_be_given_back() -> Outcome {
    let database = database()?;
    let queue = queue(&database)?;
    let mut conn = database.connect()?;
    conn.batch_execute(
        "INSERT INTO pq.queue (q_name, data, schedule_at, expected_at, enqueued_at)
         VALUES ('apples', '1', '-infinity', 'infinity', '-infinity')",
    )?;
    conn.transaction(|conn| {
        let job = queue.on(conn).get()?.ok_or(diesel::result::Error::NotFound)?;
        queue.on(conn).give_back(&job)
    })?;
    assert!(queue.get(Wait::No)?.is_some());
    Ok(())
}

#[test]
fn a_take_that_locked_a_newer_version_looks_again() -> Outcome {
    let database = database()?;
    let queue = queue(&database)?;
    queue.put(&json!("old"))?;
    // A row that was updated since is in another place of the table than the one first seen.
    let mut conn = database.connect()?;
    conn.batch_execute("UPDATE pq.queue SET data = '\"new\"'")?;
    assert_eq!(queue.get(Wait::No)?.map(|job| job.data), Some(json!("new")));
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
    assert_eq!(ids[0], ids[1], "each table counts its own jobs");
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
    assert_eq!(sent.swap(0, Ordering::Relaxed), 1, "a get of many");
    let prepared: i64 =
        diesel::dsl::sql::<BigInt>("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%pq%'")
            .get_result(&mut conn)?;
    assert_eq!(prepared, 4, "each is prepared once, by name");
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
    conn.batch_execute(&format!("PREPARE take (text, bigint) AS {take}"))?;
    for due in [false, true] {
        if due {
            conn.batch_execute(
                "INSERT INTO pq.queue (q_name, data, schedule_at) SELECT 'apples', '3', now() FROM generate_series(1, 5)",
            )?;
        }
        let plan: Vec<Line> =
            diesel::sql_query("EXPLAIN (ANALYZE, BUFFERS, TIMING off) EXECUTE take('apples', 1)")
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
fn a_get_of_one_is_planned_once_for_all() -> Outcome {
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
    // The first five are planned with their parameters, by PostgreSQL's rule.
    assert_eq!(generic, 15);
    Ok(())
}

#[test]
fn the_one_call_helpers_work_inside_the_callers_transaction() -> Outcome {
    let database = Server::shared()?.database()?;
    let mut conn = database.connect()?;
    direct::create(&mut conn)?;
    let rolled_back = conn.transaction(|conn| {
        direct::put(conn, "apples", &1)?;
        Err::<(), Error>(diesel::result::Error::RollbackTransaction.into())
    });
    assert!(rolled_back.is_err());
    assert_eq!(direct::len(&mut conn, "apples")?, 0);
    direct::put(&mut conn, "apples", &json!({ "a": 1 }))?;
    direct::put(&mut conn, "apples", &"b")?;
    assert_eq!(direct::get::<Value>(&mut conn, "apples")?, Some(json!({ "a": 1 })));
    assert_eq!(direct::clear(&mut conn, "apples")?, 1);
    assert_eq!(direct::get::<Value>(&mut conn, "apples")?, None);
    Ok(())
}

#[test]
fn the_table_can_be_queried_with_diesels_dsl() -> Outcome {
    use pq_diesel::schema::queue::dsl;
    let database = database()?;
    let mut conn = database.connect()?;
    direct::put(&mut conn, "apples", &json!({ "a": 1 }))?;
    let found: Vec<(String, Value, i32)> = dsl::queue
        .filter(dsl::q_name.eq("apples"))
        .select((dsl::q_name, dsl::data, dsl::priority))
        .load(&mut conn)?;
    assert_eq!(found, [("apples".to_owned(), json!({ "a": 1 }), 0)]);
    Ok(())
}

#[test]
fn no_transaction_is_open_while_a_wait_sleeps() -> Outcome {
    let database = database()?;
    let queue = queue(&database)?;
    let mut conn = database.connect()?;
    std::thread::scope(|threads| {
        let waiter = threads.spawn(|| queue.get_with(Wait::For(PATIENCE), |_, job| Ok::<_, Error>(job.data)));
        until(&mut conn, LISTENING)?;
        until(
            &mut conn,
            "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND query LIKE '%COMMIT' AND state = 'idle'",
        )?;
        let open: i64 = diesel::dsl::sql::<BigInt>(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL",
        )
        .get_result(&mut conn)?;
        queue.on(&mut conn).put(&json!(1))?;
        assert!(waiter.join().map_err(|_| "the waiter panicked")??.is_some());
        assert_eq!(open, 0);
        Ok(())
    })
}

#[test]
fn one_listener_serves_all_waiting_threads_of_a_handle() -> Outcome {
    let database = database()?;
    let pq = Pq::builder().url(database.url()).pool_size(4).build()?;
    std::thread::scope(|threads| {
        for n in 0..6 {
            let queue = pq.queue::<Value>(format!("queue {}", n % 3))?;
            threads.spawn(move || queue.get(Wait::For(PATIENCE)));
        }
        let mut conn = database.connect()?;
        until(&mut conn, LISTENING)?;
        for n in 0..6 {
            pq.queue::<Value>(format!("queue {}", n % 3))?.put(&json!(n))?;
        }
        let listeners: i32 = diesel::dsl::sql::<Integer>(
            "SELECT count(*)::integer FROM pg_stat_activity
             WHERE datname = current_database() AND query LIKE 'LISTEN%'",
        )
        .get_result(&mut conn)?;
        assert_eq!(listeners, 1);
        Ok(())
    })
}

#[test]
fn raw_text_can_be_had_without_decoding() -> Outcome {
    let database = database()?;
    let queue = Pq::builder().url(database.url()).build()?.queue::<Box<RawValue>>("apples")?;
    queue.put(&RawValue::from_string("{ \"b\":1 }".to_owned())?)?;
    let job = queue.get(Wait::No)?.ok_or("a job")?;
    assert_eq!(job.data.get(), "{ \"b\":1 }");
    Ok(())
}
