//! What only PostgreSQL can show: lost connections, foreign rows, errors, and the statements sent.

use std::error::Error as StdError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use diesel::connection::{InstrumentationEvent, SimpleConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Text};
use pq_diesel::{Error, Notify, Pq, Queue, Wait, direct};
use pq_testing::{Database, Options, Server, Stop};
use serde_json::value::RawValue;
use serde_json::{Value, json};

type Outcome = Result<(), Box<dyn StdError>>;

/// How long something that must happen may take. Nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(30);

fn database() -> Result<Database, Box<dyn StdError>> {
    let database = Server::shared()?.database()?;
    Pq::detached().migrate_on(&mut database.connect()?)?;
    Ok(database)
}

fn queue(database: &Database) -> Result<Queue<Value>, Error> {
    Ok(Pq::builder().url(database.url()).pool_size(4).build()?.queue("apples")?)
}

/// Runs `sql`, which counts something, until it counts at least one.
fn until(conn: &mut PgConnection, sql: &str) -> Outcome {
    let begun = Instant::now();
    while diesel::dsl::sql::<BigInt>(sql).get_result::<i64>(conn)? == 0 {
        assert!(begun.elapsed() < PATIENCE, "it never came to {sql}");
        std::thread::yield_now();
    }
    Ok(())
}

const LISTENING: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND query LIKE 'LISTEN%' AND state = 'idle'";

#[test]
fn a_transaction_that_the_server_has_aborted_is_no_success() -> Outcome {
    let database = database()?;
    let queue = queue(&database)?;
    queue.put(&json!("a"))?;
    let done = queue.get_with(Wait::No, |conn, _| {
        // The handler overlooks that its statement failed. COMMIT is then a rollback to the server.
        let _ = conn.batch_execute("SELECT 1 / 0");
        Ok::<_, Error>(())
    });
    assert!(done.is_err(), "the job was reported as done");
    assert_eq!(queue.get(Wait::No)?.map(|job| job.data), Some(json!("a")));
    Ok(())
}

#[test]
fn a_wait_outlives_the_loss_of_every_connection() -> Outcome {
    let database = database()?;
    let queue = queue(&database)?;
    let mut conn = database.connect()?;
    std::thread::scope(|threads| {
        let waiter = threads.spawn(|| queue.get(Wait::For(PATIENCE)));
        until(&mut conn, LISTENING)?;
        conn.batch_execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )?;
        until(&mut conn, LISTENING)?;
        queue.on(&mut conn).put(&json!("after"))?;
        let got = waiter.join().map_err(|_| "the waiter panicked")??;
        assert_eq!(got.map(|job| job.data), Some(json!("after")));
        Ok(())
    })
}

#[test]
fn a_wait_outlives_a_restart_of_the_server() -> Outcome {
    let server = Server::start(&Options::throwaway())?;
    if server.pid().is_none() {
        println!("this server cannot be restarted from here; nothing was tested");
        return Ok(());
    }
    let database = server.database()?;
    Pq::detached().migrate_on(&mut database.connect()?)?;
    let queue = queue(&database)?;
    queue.put(&json!("before"))?;
    queue.get(Wait::No)?;
    std::thread::scope(|threads| {
        let waiter = threads.spawn(|| queue.get(Wait::For(PATIENCE * 2)));
        until(&mut database.connect()?, LISTENING)?;
        server.restart(Stop::Immediate)?;
        let mut conn = database.connect()?;
        queue.on(&mut conn).put(&json!("after"))?;
        let got = waiter.join().map_err(|_| "the waiter panicked")??;
        assert_eq!(got.map(|job| job.data), Some(json!("after")));
        Ok(())
    })
}

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
fn a_table_that_is_not_there_says_what_to_run() -> Outcome {
    let database = Server::shared()?.database()?;
    for pq in [
        Pq::builder().url(database.url()).build()?,
        Pq::builder().url(database.url()).schema("a 'b'").table("C \"d\"").build()?,
    ] {
        let queue = pq.queue::<Value>("apples")?;
        for error in [
            queue.put(&json!(1)).err(),
            queue.get(Wait::For(PATIENCE)).err(),
            queue.counts().err(),
            queue.clear().err(),
        ] {
            let error = error.ok_or("it succeeded")?;
            assert!(matches!(error, Error::NotMigrated { .. }), "{error}");
            assert!(error.to_string().contains("pq migrate"), "{error}");
        }
    }
    Ok(())
}

#[test]
fn a_server_that_cannot_be_reached_is_told_at_once_and_without_the_password() {
    let urls = [
        "postgres://bob:s3cret@127.0.0.1:1/shop",
        "host=127.0.0.1 port=1 user=bob password=s3cret dbname=shop",
        "postgres://bob:s3cret@127.0.0.1:notaport/shop",
        "postgres:/bob:s3cret@nowhere",
    ];
    for url in urls {
        let begun = Instant::now();
        let error = Pq::connect(url).err().map(|error| format!("{error} {error:?}")).unwrap_or_default();
        assert!(error.contains("cannot connect"), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
        assert!(begun.elapsed() < PATIENCE);
    }
}

#[test]
fn a_wrong_password_is_told_without_the_password() -> Outcome {
    let database = database()?;
    let (scheme, rest) = database.url().split_once("://").ok_or("a URL")?;
    let server = rest.split_once('@').map_or(rest, |(_, server)| server);
    let url = format!("{scheme}://nobody_of_this_name:s3cret@{server}");
    let error = Pq::connect(&url).err().map(|error| format!("{error} {error:?}")).unwrap_or_default();
    assert!(error.contains("cannot connect") && !error.contains("s3cret"), "{error}");
    Ok(())
}

#[test]
fn a_detached_handle_says_that_it_has_no_connection() -> Outcome {
    let queue = Pq::detached().queue::<Value>("apples")?;
    let error = queue.put(&json!(1)).err().ok_or("it succeeded")?;
    assert!(matches!(error, Error::Refused(pq_core::Error::NoConnection)), "{error}");
    Ok(())
}

#[test]
fn names_that_postgres_would_cut_are_refused() {
    let refused = |schema: &str, table: &str| Pq::builder().schema(schema).table(table).build().err();
    for (schema, table) in [("", "queue"), ("pq", &*"x".repeat(64)), ("p\0q", "queue")] {
        assert!(matches!(refused(schema, table), Some(Error::InvalidIdentifier { .. })));
    }
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
    assert_eq!(prepared, 3, "each is prepared once, by name");
    Ok(())
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
    let [_, (_, take)] = pq.store().hot_statements();
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

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text, column_name = "QUERY PLAN")]
    text: String,
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
