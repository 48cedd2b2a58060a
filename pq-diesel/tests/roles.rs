//! The grants of docs/roles.md, as they stand there: each role does what it needs, and nothing else.

use std::error::Error;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use pq_diesel::{Pq, Queue};
use pq_testing::{Database, Server};
use serde_json::{Value, json};

/// What is tried, and which of producer, consumer and reader may.
type Operation =
    (&'static str, fn(&Queue<Value>, &mut PgConnection) -> Result<(), pq_diesel::Error>, [bool; 3]);

const OPERATIONS: [Operation; 9] = [
    ("put", |queue, conn| queue.on(conn).put(&json!(1)).map(drop), [true, true, false]),
    ("put_many", |queue, conn| queue.on(conn).put_many(&[json!(1), json!(2)]).map(drop), [true, true, false]),
    ("get", |queue, conn| queue.on(conn).get().map(drop), [false, true, false]),
    ("get_many", |queue, conn| queue.on(conn).get_many(2).map(drop), [false, true, false]),
    ("update and give back", update_and_give_back, [false, true, false]),
    ("bury", bury, [false, true, false]),
    ("counts", |queue, conn| queue.on(conn).counts().map(drop), [false, true, true]),
    ("clear", |queue, conn| queue.on(conn).clear().map(drop), [false, true, false]),
    ("migrate, when all is done", |_, conn| Pq::detached().migrate_on(conn), [true, true, true]),
];

fn update_and_give_back(queue: &Queue<Value>, conn: &mut PgConnection) -> Result<(), pq_diesel::Error> {
    conn.transaction(|conn| {
        if let Some(mut job) = queue.on(conn).get()? {
            queue.on(conn).update(&mut job, json!("new"))?;
            queue.on(conn).give_back(&job)?;
        }
        Ok(())
    })
}

fn bury(queue: &Queue<Value>, conn: &mut PgConnection) -> Result<(), pq_diesel::Error> {
    let numbers = Pq::detached().queue::<u8>(queue.name())?;
    numbers.on(conn).get().map(drop)
}

/// A database with the roles of the document, which is read and not copied.
fn prepare() -> Result<Database, Box<dyn Error>> {
    let database = Server::shared()?.database()?;
    let mut conn = database.connect()?;
    Pq::detached().migrate_on(&mut conn)?;
    let document = include_str!("../../docs/roles.md");
    for block in document.split("```sql\n").skip(1) {
        let sql = block.split("```").next().unwrap_or_default();
        conn.batch_execute(sql)?;
    }
    Ok(database)
}

#[test]
fn every_role_may_do_what_it_needs_and_nothing_else() -> Result<(), Box<dyn Error>> {
    let database = prepare()?;
    let queue = Pq::detached().queue::<Value>("apples")?;
    for (position, role) in ["pq_producer", "pq_consumer", "pq_reader"].into_iter().enumerate() {
        for (what, operation, allowed) in OPERATIONS {
            let mut conn = database.connect()?;
            queue.on(&mut conn).put(&json!("there is one"))?;
            conn.batch_execute(&format!("SET ROLE {role}"))?;
            let outcome = operation(&queue, &mut conn).map_err(|error| error.to_string());
            match outcome {
                Ok(()) => assert!(allowed[position], "{role} may {what}, and should not"),
                Err(error) => {
                    assert!(!allowed[position], "{role} may not {what}: {error}");
                    assert!(error.contains("permission denied"), "{role}, {what}: {error}");
                }
            }
        }
    }
    let mut conn = database.connect()?;
    conn.batch_execute(
        "DROP OWNED BY pq_producer, pq_consumer, pq_reader; DROP ROLE pq_producer, pq_consumer, pq_reader",
    )?;
    Ok(())
}
