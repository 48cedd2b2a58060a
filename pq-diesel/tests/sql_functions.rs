//! The SQL functions that put a job and call a task: what they store, with which errors they refuse, and who runs it.

mod common;

use std::time::Duration;

use common::{Outcome, PATIENCE, database};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use pq_diesel::{
    Backoff, CallOptions, JobState, OnConflict, Pq, PutOptions, Queue, Task, Trace, Wait, Worker,
};
use pq_testing::Server;
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// All that a put determines of the last row. A time in the past was given as an instant, any other one as a delay.
const LAST_ROW: &str = "
    SELECT concat_ws('; ', data::text, 'due', due, 'expected', wanted, priority, serial_key, unique_key, attempt,
        annotations)
    FROM (SELECT *,
        CASE WHEN schedule_at < '2020-01-01' THEN schedule_at::text ELSE (schedule_at - enqueued_at)::text END AS due,
        CASE WHEN expected_at < '2020-01-01' THEN expected_at::text ELSE (expected_at - enqueued_at)::text END AS wanted
        FROM pq.queue) AS jobs
    ORDER BY id DESC LIMIT 1";

fn headers() -> Trace {
    [("traceparent".to_owned(), "00-1".to_owned())].into()
}

fn text(conn: &mut PgConnection, sql: &str) -> QueryResult<String> {
    diesel::dsl::sql::<Text>(sql).get_result(conn)
}

fn number(conn: &mut PgConnection, sql: &str) -> QueryResult<i64> {
    diesel::dsl::sql::<BigInt>(sql).get_result(conn)
}

/// Compares the row that a SQL call stores with the one that the library stores.
fn assert_same_row(
    conn: &mut PgConnection,
    sql: &str,
    put: impl FnOnce(&mut PgConnection) -> Result<pq_diesel::Put, pq_diesel::Error>,
) -> Outcome {
    let id = number(conn, &format!("SELECT {sql}")).map_err(|error| format!("{sql}: {error}"))?;
    assert_eq!(id, number(conn, "SELECT max(id) FROM pq.queue")?, "the id of {sql}");
    let by_sql = text(conn, LAST_ROW)?;
    conn.batch_execute("DELETE FROM pq.queue")?;
    put(conn)?;
    assert_eq!(by_sql, text(conn, LAST_ROW)?, "{sql}");
    conn.batch_execute("DELETE FROM pq.queue")?;
    Ok(())
}

#[test]
fn a_put_by_sql_stores_what_the_library_stores() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let queue: Queue<Box<RawValue>> = Pq::detached().queue("apples")?;
    let data = RawValue::from_string("{ \"b\":1, \"a\":\"ж\" }".to_owned())?;
    let options = PutOptions::new;
    // In this time zone some days have 23 or 25 hours.
    conn.batch_execute("SET TimeZone TO 'Europe/Berlin'")?;
    for (arguments, options) in [
        ("", options()),
        (", NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL", options()),
        (", schedule_at => '2001-01-01 00:00+02'", options().schedule_at("2001-01-01T00:00:00+02:00")),
        (
            ", schedule_in => '1h30m', expected_in => '2 days'",
            options().schedule_at("1h30m").expected_at("2d"),
        ),
        (
            ", schedule_in => '120 days', expected_in => '240d'",
            options().schedule_at("120d").expected_at("240d"),
        ),
        (", expected_at => '2001-02-03 04:05:06.5Z'", options().expected_at("2001-02-03T04:05:06.5Z")),
        (", priority => -3, serialization_key => 'ж'", options().priority(-3).serialization_key("ж")),
        (", unique_key => 'one', priority => 2147483647", options().unique("one").priority(i32::MAX)),
        (
            ", schedule_in => '9999 days', unique_key => 'two', serialization_key => 'k', on_conflict => 'replace'",
            options().schedule_at("9999d").unique_or("two", OnConflict::Replace).serialization_key("k"),
        ),
    ] {
        let sql = format!("pq.queue_put('apples', '{}'{arguments})", data.get());
        assert_same_row(&mut conn, &sql, |conn| queue.on(conn).put_with(&*data, &options))?;
    }
    let traced: Queue<Value> = Pq::builder().trace(headers).build()?.queue("apples")?;
    for arguments in ["", ", unique_key => 'three'"] {
        let sql = format!("pq.queue_put('apples', '7', trace => '{{\"traceparent\":\"00-1\"}}'{arguments})");
        let options = if arguments.is_empty() { options() } else { options().unique("three") };
        assert_same_row(&mut conn, &sql, |conn| traced.on(conn).put_with(&json!(7), &options))?;
    }
    let plain = Pq::detached().queue::<Value>("apples")?;
    let sql =
        "pq.queue_put('apples', '7', tags => ARRAY['b', 'ж', 'b'], metadata => '{ \"a\": [1.0, null] }',
        group_key => 'g ж', cost => 40, serialization_key => 'k', strict_order => true)";
    let noted = options().tags(["b", "ж", "b"]).metadata(json!({ "a": [1.0, null] })).group("g ж").cost(40);
    let noted = noted.serialization_key("k").strict_order();
    assert_same_row(&mut conn, sql, |conn| plain.on(conn).put_with(&json!(7), &noted))?;
    let sql = "pq.queue_put('apples', '7', trace => '{}', tags => '{}', metadata => '{}')";
    assert_same_row(&mut conn, sql, |conn| plain.on(conn).put(&json!(7)))?;
    Ok(())
}

#[test]
fn a_call_by_sql_stores_what_the_library_stores() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let name = "shop.\"mail\"\n";
    let task: Task<Value> = Pq::detached().queue("apples")?.task(name);
    let traced: Task<Value> = Pq::builder().trace(headers).build()?.queue("apples")?.task(name);
    let seconds = Duration::from_secs;
    let options = CallOptions::new;
    for (arguments, data, options) in [
        ("", json!(null), options()),
        (", NULL, NULL, max_retries => NULL, backoff => NULL", json!(null), options()),
        (", args => '[1,\"ж\"]'", json!([1, "ж"]), options()),
        (", kwargs => '{\"to\":\"a\\u0001\"}'", json!({ "to": "a\u{1}" }), options()),
        (", max_retries => 0", json!(null), options().max_retries(0)),
        (", max_retries => 5, priority => 2", json!(null), options().max_retries(5).priority(2)),
        (", timeout => '90s', lease => '1.5s'", json!(null), options().timeout(seconds(90)).lease(seconds(3) / 2)),
        (", timeout => '1.001s'", json!(null), options().timeout(Duration::from_millis(1_001))),
        (", lease => '1 day'", json!(null), options().lease(seconds(86_400))),
        (
            ", '[7]', schedule_in => '5m', expected_at => '2001-01-01Z', serialization_key => 's', unique_key => 'u',
                on_conflict => 'keep_waiting', max_retries => 2, timeout => '0'",
            json!([7]),
            options()
                .schedule_at("5m")
                .expected_at("2001-01-01T00:00:00Z")
                .serialization_key("s")
                .unique_or("u", OnConflict::KeepWaiting)
                .max_retries(2)
                .timeout(Duration::ZERO),
        ),
    ] {
        let sql = format!("pq.queue_call('apples', E'shop.\"mail\"\\n'{arguments})");
        assert_same_row(&mut conn, &sql, |conn| task.on(conn).call_with(&data, &options))?;
    }
    let sql = "pq.queue_call('apples', E'shop.\"mail\"\\n', trace => '{\"traceparent\":\"00-1\"}')";
    assert_same_row(&mut conn, sql, |conn| traced.on(conn).call(&json!(null)))?;
    let sql = "pq.queue_call('apples', E'shop.\"mail\"\\n', tags => '{a}', group_key => 'g')";
    let noted = options().tags(["a"]).group("g");
    assert_same_row(&mut conn, sql, |conn| task.on(conn).call_with(&json!(null), &noted))?;
    let both = "SELECT pq.queue_call('apples', 'shop.mail', '[ 1 ]', '{\"to\": null}')";
    number(&mut conn, both)?;
    let stored: String = text(&mut conn, "SELECT data::text FROM pq.queue")?;
    assert!(stored.contains("\"args\":[ 1 ],\"kwargs\":{\"to\": null}"), "{stored}");
    Ok(())
}

#[test]
fn both_know_the_same_texts_for_a_backoff() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let task: Task<()> = Pq::detached().queue("apples")?.task("f");
    let mut refused = 0;
    for text in [
        "0s",
        "30s",
        " 1m 30s ",
        "1h30m",
        "1.s",
        ".5s",
        "1500ms",
        "1.5s",
        "1.0019s",
        "1s1s",
        "400d",
        "99999999999999s",
        "linear 10s 5m",
        "linear 5m 10s",
        "linear  1w\t2d",
        "exponential 1s 1h",
        "exponential 1500ms 400d",
        "exponential 2h 1h",
        "",
        " ",
        "soon",
        "5",
        "-5s",
        "linear",
        "linear 1s",
        "linear 1s x",
        "exponential 1s 1h 2h",
        "linear exponential 1s",
        "quadratic 1s 1h",
        "30s'",
    ] {
        let quoted = text.replace('\'', "''");
        let sql = format!("pq.queue_call('apples', 'f', backoff => '{quoted}')");
        match text.parse::<Backoff>() {
            Ok(backoff) => {
                let options = CallOptions::new().backoff(backoff);
                assert_same_row(&mut conn, &sql, |conn| task.on(conn).call_with(&(), &options))?;
            }
            Err(_) => {
                refused += 1;
                let error = number(&mut conn, &format!("SELECT {sql}")).err().map(|error| error.to_string());
                assert!(error.is_some_and(|error| error.starts_with("invalid backoff")), "{text:?}");
            }
        }
    }
    assert_eq!(refused, 14);
    Ok(())
}

/// Puts with a key that is free, whose job waits, and whose job runs. Describes the jobs after each put by ids that
/// count from the first.
fn put_three_times(
    conn: &mut PgConnection,
    queue: &Queue<Value>,
    mut put: impl FnMut(&mut PgConnection, i32) -> Result<i64, Box<dyn std::error::Error>>,
) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let mut seen = Vec::new();
    let mut first = None;
    for n in 0..3 {
        if n == 2 {
            // The second put may have scheduled the job.
            conn.batch_execute("UPDATE pq.queue SET schedule_at = NULL, attempt = 3, error = 'old'")?;
            assert_eq!(queue.on(conn).lease(1, PATIENCE)?.len(), 1);
        }
        let id = put(conn, n)?;
        let first = *first.get_or_insert(id);
        let rows = format!(
            "SELECT coalesce(string_agg(concat_ws(' ', id - {first}, data, priority, serial_key, unique_key,
                round(extract(epoch FROM schedule_at - clock_timestamp()) / 60), attempt, error), '; ' ORDER BY id), '')
            FROM pq.queue"
        );
        seen.push(format!("{}: {}", id - first, text(conn, &rows)?));
    }
    Ok(seen)
}

#[test]
fn a_unique_key_means_the_same_for_both() -> Outcome {
    let mut differs = Vec::new();
    for (word, mode) in [
        ("keep", OnConflict::Keep),
        ("replace", OnConflict::Replace),
        ("reschedule", OnConflict::Reschedule),
        ("keep_waiting", OnConflict::KeepWaiting),
    ] {
        let (one, two) = (database()?, database()?);
        let queue = Pq::detached().queue::<Value>("apples")?;
        let by_sql = put_three_times(&mut one.connect()?, &queue, |conn, n| {
            Ok(number(
                conn,
                &format!(
                    "SELECT pq.queue_put('apples', '{n}', schedule_in => '{n} hours', priority => {n},
                        serialization_key => 'key {n}', unique_key => 'one', on_conflict => '{word}')"
                ),
            )?)
        })?;
        let by_library = put_three_times(&mut two.connect()?, &queue, |conn, n| {
            let options = PutOptions::new()
                .schedule_at(Duration::from_secs(3_600) * n.unsigned_abs())
                .priority(n)
                .serialization_key(format!("key {n}"))
                .unique_or("one", mode);
            Ok(queue.on(conn).put_with(&json!(n), &options)?.id.0)
        })?;
        assert_eq!(by_sql, by_library, "{word}");
        differs.push(by_sql);
    }
    differs.dedup();
    assert_eq!(differs.len(), 4, "{differs:?}");
    Ok(())
}

#[test]
fn an_invalid_argument_is_refused_with_its_name_and_the_rule() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    conn.batch_execute(
        "CREATE FUNCTION refusal(call text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
             EXECUTE 'SELECT pq.queue_' || call;
             RETURN 'accepted';
         EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE || ' ' || SQLERRM;
         END $$",
    )?;
    let name = "invalid queue name NULL: it must have 1 to 1024 bytes, and has 0";
    for (call, expected) in [
        ("put(NULL, '1')", name),
        ("call(NULL, 'f')", name),
        ("put('', '1')", "invalid queue name '': it must have 1 to 1024 bytes, and has 0"),
        ("put(repeat('ж', 513), '1')", "it must have 1 to 1024 bytes, and has 1026"),
        ("put('q', NULL)", "invalid data: it must be a JSON document; for the JSON null write 'null'"),
        ("put('q', '1', now(), '1h')", "cannot use schedule_at and schedule_in together"),
        (
            "put('q', '1', expected_at => now(), expected_in => '1h')",
            "cannot use expected_at and expected_in together",
        ),
        ("put('q', '1', 'infinity')", "invalid schedule_at 'infinity': it must be in the years 1 to 9999"),
        ("put('q', '1', '10000-01-01 00:00Z')", "it must be in the years 1 to 9999"),
        ("put('q', '1', expected_at => '0001-12-31 23:59:59Z BC')", "it must be in the years 1 to 9999"),
        (
            "put('q', '1', expected_at => '-infinity')",
            "invalid expected_at '-infinity': it must be in the years",
        ),
        (
            "put('q', '1', NULL, '3650001 days')",
            "invalid schedule_in '3650001 days': it must be at most 3650000 days",
        ),
        (
            "put('q', '1', expected_in => '-3650001 days')",
            "invalid expected_in '-3650001 days': it must be at most",
        ),
        (
            "put('q', '1', serialization_key => '')",
            "invalid serialization_key '': it must have 1 to 1024 bytes, and has 0",
        ),
        ("put('q', '1', unique_key => repeat('x', 1025))", "it must have 1 to 1024 bytes, and has 1025"),
        ("put('q', '1', unique_key => '')", "invalid unique_key '': it must have 1 to 1024 bytes, and has 0"),
        (
            "put('q', '1', unique_key => 'k', on_conflict => 'later')",
            "invalid on_conflict 'later': it must be keep, replace, reschedule or keep_waiting",
        ),
        (
            "put('q', '1', on_conflict => 'replace')",
            "invalid on_conflict 'replace': it must come with a unique_key",
        ),
        ("call('q', NULL)", "invalid task NULL: it must be the name of a task"),
        ("call('q', '')", "invalid task '': it must be the name of a task"),
        ("call('q', 'f', '{}')", "invalid args: they must be a JSON array, and are of type object"),
        ("call('q', 'f', 'null')", "invalid args: they must be a JSON array, and are of type null"),
        (
            "call('q', 'f', kwargs => '[]')",
            "invalid kwargs: they must be a JSON object, and are of type array",
        ),
        ("call('q', 'f', max_retries => -1)", "invalid max_retries -1: it must be at least 0"),
        (
            "call('q', 'f', backoff => 'soon')",
            "invalid backoff 'soon': it must be a delay such as 30s, or linear 10s 5m, or exponential 1s 1h",
        ),
        ("call('q', 'f', timeout => '-1s')", "invalid timeout '-00:00:01': it must be 0 to 3650000 days"),
        (
            "call('q', 'f', lease => '3650001 days')",
            "invalid lease '3650001 days': it must be 0 to 3650000 days",
        ),
        (
            "put('q', '1', trace => '[]')",
            "invalid trace: it must be a JSON object of strings, and is of type array",
        ),
        (
            "put('q', '1', tags => ARRAY(SELECT number::text FROM generate_series(1, 17) AS number))",
            "invalid tags: there must be at most 16, and there are 17",
        ),
        ("put('q', '1', tags => '{{a,b}}')", "invalid tags: they must be an array of one dimension"),
        ("put('q', '1', tags => ARRAY['a', ''])", "invalid tags: each must have 1 to 128 bytes"),
        ("put('q', '1', tags => ARRAY[NULL])", "invalid tags: each must have 1 to 128 bytes"),
        ("put('q', '1', tags => ARRAY[repeat('ж', 65)])", "invalid tags: each must have 1 to 128 bytes"),
        (
            "call('q', 'f', metadata => '[]')",
            "invalid metadata: it must be a JSON object, and is of type array",
        ),
        (
            "call('q', 'f', metadata => json_build_object('a', repeat('x', 4096)))",
            "invalid metadata: it must have at most 4096 bytes as JSON, and has 4106",
        ),
        ("put('q', '1', group_key => '')", "invalid group_key '': it must have 1 to 1024 bytes, and has 0"),
        ("call('q', 'f', cost => 0)", "invalid cost 0: it must be 1 to 1000000"),
        (
            "call('q', 'f', trace => '[]')",
            "invalid trace: it must be a JSON object of strings, and is of type array",
        ),
        (
            "call('q', 'f', trace => '{\"a\":1}')",
            "invalid trace: it must be a JSON object of strings, and has other values",
        ),
    ] {
        let refusal: String = diesel::dsl::sql::<Text>("SELECT refusal(")
            .bind::<Text, _>(call)
            .sql(")")
            .get_result(&mut conn)?;
        assert!(refusal.starts_with("22023 ") && refusal.contains(expected), "{call}: {refusal}");
    }
    // The server reads JSON, times and numbers before it calls the function.
    for (call, state) in [
        ("put('q', '{')", "22P02"),
        ("put('q', '1', 'soon')", "22007"),
        ("put('q', '1', NULL, 'soon')", "22007"),
    ] {
        let refusal: String = diesel::dsl::sql::<Text>("SELECT refusal(")
            .bind::<Text, _>(call)
            .sql(")")
            .get_result(&mut conn)?;
        assert!(refusal.starts_with(state), "{call}: {refusal}");
    }
    assert_eq!(number(&mut conn, "SELECT count(*) FROM pq.queue")?, 0, "something was put");
    Ok(())
}

#[test]
fn a_worker_runs_what_a_committed_transaction_has_called() -> Outcome {
    let database = database()?;
    let pq = Pq::connect(database.url())?;
    let mut conn = database.connect()?;
    let call = |n: i32| {
        format!("BEGIN; SELECT pq.queue_call('shop', 'add', '[{n}, 1]', max_retries => 2, backoff => '0s')")
    };
    conn.batch_execute(&call(1))?;
    conn.batch_execute("ROLLBACK")?;
    conn.batch_execute(&call(2))?;
    conn.batch_execute("COMMIT")?;
    let add: Task<(i32, i32)> = pq.queue("shop")?.task("add");
    let (seen, attempts) = std::sync::mpsc::channel();
    let handler = add.leased(move |_context, job| {
        seen.send((job.data, job.attempt)).map_err(|error| error.to_string())?;
        Err::<(), _>("it fails".to_owned())
    });
    let report = Worker::new(&pq).serve(handler).run_until_empty()?;
    assert_eq!((report.failed, report.dead), (3, 1), "{report:?}");
    let attempts: Vec<_> = attempts.iter().collect();
    assert_eq!(attempts, [((2, 1), 1), ((2, 1), 2), ((2, 1), 3)]);
    assert_eq!(pq.queue::<()>("shop")?.archived(JobState::Dead, None, 9)?.len(), 1);
    Ok(())
}

#[test]
fn the_functions_work_under_any_names() -> Outcome {
    for (schema, table) in [
        ("The \"own\" schema's", "Tab$names$le; --'"),
        ("$names0$", "$function$ 🍎 %s %L"),
        ("x", "жжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжy"),
    ] {
        let database = Server::shared()?.database()?;
        let mut conn = database.connect()?;
        let pq = Pq::builder().schema(schema).table(table).build()?;
        pq.migrate_on(&mut conn)?;
        let function = |conn: &mut PgConnection, suffix: &str| {
            text(
                conn,
                &format!(
                    "SELECT format('%I.%I', nspname, proname) FROM pg_proc
                        JOIN pg_namespace AS space ON pronamespace = space.oid
                    WHERE proname LIKE '%\\_{suffix}' AND nspname NOT LIKE 'pg\\_%'"
                ),
            )
        };
        let (put, call) = (function(&mut conn, "put")?, function(&mut conn, "call")?);
        let mut ids = Vec::new();
        for _ in 0..2 {
            ids.push(number(&mut conn, &format!("SELECT {put}('apples', '1', unique_key => 'one')"))?);
        }
        ids.push(number(&mut conn, &format!("SELECT {call}('apples', 'f')"))?);
        assert_eq!(ids, [1, 1, 3], "{put}");
        let jobs = pq.queue::<Value>("apples")?.on(&mut conn).get_many(9)?;
        assert!(jobs.len() == 2 && jobs[0].data == json!(1) && jobs[1].data["function"] == "f");
    }
    Ok(())
}

#[test]
fn a_put_by_sql_wakes_a_waiting_caller() -> Outcome {
    let database = database()?;
    // A wait that is not woken polls too late.
    let pq = Pq::builder().url(database.url()).poll_interval(10 * PATIENCE).build()?;
    let queue = pq.queue::<Value>("apples")?;
    let mut conn = database.connect()?;
    for sql in
        ["SELECT pq.queue_put('apples', '7')", "SELECT pq.queue_put('apples', '7', unique_key => 'one')"]
    {
        std::thread::scope(|threads| -> Outcome {
            let started = std::time::Instant::now();
            let waiter = threads.spawn(|| queue.get(Wait::For(2 * PATIENCE)));
            common::until(&mut conn, common::LISTENING)?;
            number(&mut conn, sql)?;
            let got = waiter.join().map_err(|_| "the waiter panicked")??;
            assert_eq!(got.map(|job| job.data), Some(json!(7)));
            assert!(started.elapsed() < PATIENCE, "the wait was not woken");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn the_sql_of_the_document_runs() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let blocks: Vec<&str> = include_str!("../../docs/sql.md").split("```sql\n").skip(1).collect();
    for block in &blocks {
        let sql = block.split("```").next().unwrap_or_default();
        conn.batch_execute(sql).map_err(|error| format!("{sql}\n{error}"))?;
    }
    let counts = "SELECT string_agg(concat_ws(' ', q_name, jobs), ', ' ORDER BY q_name)
        FROM (SELECT q_name, count(*) AS jobs FROM pq.queue GROUP BY q_name) AS queues";
    assert_eq!(text(&mut conn, counts)?, "index 1, mail 1, orders 1001, pq.workflows 1, shop 7");
    Ok(())
}
