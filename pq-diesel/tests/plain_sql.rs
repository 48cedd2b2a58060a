//! Plain SQL on the table: rows of other writers, diesel's DSL, raw payloads and the one-call helpers.

mod common;

use std::time::Instant;

use common::{LISTENING, Outcome, PATIENCE, database, queue, until};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use pq_diesel::{Error, Pq, Wait, direct};
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
        let started = Instant::now();
        conn.batch_execute("INSERT INTO pq.queue (q_name, data) VALUES ('apples', '{\"by\": \"psql\"}')")?;
        let got = waiter.join().map_err(|_| "the waiter panicked")??;
        assert_eq!(got.map(|job| job.data), Some(json!({ "by": "psql" })));
        assert!(started.elapsed() < PATIENCE);
        Ok(())
    })
}

#[test]
fn rows_of_other_writers_do_not_stop_takes() -> Outcome {
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
        got.push(job.data.as_i64());
    }
    assert_eq!(got, [1, 2, 3, 4, 5, 6, 7].map(Some));
    let counts = queue.counts()?;
    assert_eq!(
        (counts.ready, counts.scheduled, counts.dead),
        (0, 2, 2),
        "one payload is nested too deeply, and one has a lone surrogate"
    );
    let raw: Vec<String> =
        diesel::dsl::sql::<Text>("SELECT data::text FROM pq.queue_archive ORDER BY length(data::text)")
            .load(&mut conn)?;
    assert_eq!(raw.first().map(String::as_str), Some("\"\\ud800\""), "the text of the payload is kept");
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
fn a_take_returns_the_updated_version_of_a_row() -> Outcome {
    let database = database()?;
    let queue = queue(&database)?;
    queue.put(&json!("old"))?;
    // The updated row has another place in the table than the one that the index scan finds first.
    let mut conn = database.connect()?;
    conn.batch_execute("UPDATE pq.queue SET data = '\"new\"'")?;
    assert_eq!(queue.get(Wait::No)?.map(|job| job.data), Some(json!("new")));
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
fn a_payload_can_be_read_as_raw_text() -> Outcome {
    let database = database()?;
    let queue = Pq::builder().url(database.url()).build()?.queue::<Box<RawValue>>("apples")?;
    queue.put(&RawValue::from_string("{ \"b\":1 }".to_owned())?)?;
    let job = queue.get(Wait::No)?.ok_or("a job")?;
    assert_eq!(job.data.get(), "{ \"b\":1 }");
    Ok(())
}
