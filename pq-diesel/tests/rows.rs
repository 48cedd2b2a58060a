//! Rows of calls, inserted by diesel's own statements.

mod common;

use common::{Outcome, database};
use diesel::prelude::*;
use diesel::sql_types::Text;
use pq_diesel::schema::queue;
use pq_diesel::{CallOptions, Pq, Task, Worker};
use serde_json::{Value, json};

/// What the puts have stored, in their order.
const STORED: &str = "
    SELECT string_agg(concat_ws(' ', q_name, data::text, schedule_at - enqueued_at, expected_at, priority, serial_key,
            annotations), E'\\n' ORDER BY id)
    FROM pq.queue";

#[test]
fn a_row_is_what_the_call_would_put() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    // A delay begins with its statement, and not with the transaction.
    conn.begin_test_transaction()?;
    let trace = || [("traceparent".to_owned(), "00-1".to_owned())].into();
    let pq = Pq::builder().trace(trace).build()?;
    let task: Task<Value> =
        pq.queue("ä \"queue\"")?.task("f").max_retries(2).serialize_by(|data: &Value| data.to_string());
    let calls = [
        (json!({ "b": 1, "a": "ж" }), CallOptions::new()),
        (json!([1]), CallOptions::new().schedule_at("90s").priority(-2).max_retries(7)),
        (
            json!(2),
            CallOptions::new().schedule_at("1d").expected_at("2001-01-01T00:00:00.5Z").serialization_key("s"),
        ),
    ];
    let mut stored = Vec::new();
    for by_row in [false, true] {
        for (data, options) in &calls {
            match by_row {
                false => drop(task.on(&mut conn).call_with(data, options)?),
                true => {
                    let row = task.row_with(data, options)?;
                    assert_eq!(diesel::insert_into(queue::table).values(&row).execute(&mut conn)?, 1);
                }
            }
        }
        stored.push(diesel::dsl::sql::<Text>(STORED).get_result::<String>(&mut conn)?);
        diesel::delete(queue::table).execute(&mut conn)?;
    }
    assert_eq!(stored[0].lines().count(), 3);
    assert_eq!(stored[0], stored[1]);
    Ok(())
}

#[test]
fn a_worker_runs_rows_that_one_statement_has_inserted() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let pq = Pq::connect(database.url())?;
    let mail: Task<String> = pq.queue("mail")?.task("send");
    let bill: Task<i64> = pq.queue("bills")?.task("bill");
    let insert = |conn: &mut PgConnection, number: i64| -> Result<Vec<i64>, pq_diesel::Error> {
        let past = CallOptions::new().schedule_at("2001-01-01T00:00:00Z");
        let rows = vec![
            mail.row(&format!("{number}@example.com"))?,
            bill.row(&number)?,
            bill.row_with(&-number, &past)?,
        ];
        Ok(diesel::insert_into(queue::table).values(rows).returning(queue::id).get_results(conn)?)
    };
    let rolled_back = conn.transaction(|conn| {
        assert_eq!(insert(conn, 1)?.len(), 3);
        Err::<(), pq_diesel::Error>(diesel::result::Error::RollbackTransaction.into())
    });
    assert!(rolled_back.is_err());
    assert_eq!(insert(&mut conn, 2)?.len(), 3);
    let (ran, seen) = std::sync::mpsc::channel();
    let other = ran.clone();
    let report = Worker::new(&pq)
        .serve(mail.leased(move |_context, job| ran.send(job.data.clone())))
        .serve(bill.leased(move |_context, job| other.send(job.data.to_string())))
        .run_until_empty()?;
    assert_eq!(report.done, 3);
    let mut seen: Vec<String> = seen.iter().collect();
    seen.sort();
    assert_eq!(seen, ["-2", "2", "2@example.com"]);
    Ok(())
}

#[test]
fn a_row_that_would_lose_something_is_refused() -> Outcome {
    let error = |row: Result<pq_diesel::schema::NewRow, pq_diesel::Error>| match row {
        Ok(row) => format!("accepted: {row:?}"),
        Err(error) => error.to_string(),
    };
    let task: Task<u8> = Pq::detached().queue("shop")?.task("f");
    let unique = error(task.row_with(&1, &CallOptions::new().unique("one")));
    assert!(
        unique.starts_with("cannot create a row with a unique key") && unique.contains("call_with"),
        "{unique}"
    );
    let other: Task<u8> = Pq::builder().schema("app").table("work").build()?.queue("shop")?.task("f");
    let other = error(other.row(&1));
    assert!(other.contains("app.work") && other.contains("pq.queue"), "{other}");
    assert!(error(task.row_with(&1, &CallOptions::new().schedule_at("soon"))).contains("invalid time"));
    assert!(error(task.row_with(&1, &CallOptions::new().serialization_key(""))).contains("invalid key"));
    Ok(())
}
