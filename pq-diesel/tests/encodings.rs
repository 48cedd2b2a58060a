//! Databases with another encoding than UTF-8.

mod common;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use pq_diesel::doctor::{Examination, Finding, Level};
use pq_diesel::{JobState, Outcome as Settlement, Payload, Pq, Queue, Wait};
use pq_testing::{Database, Server};
use serde_json::{Value, json};

use self::common::*;

/// Creates a database with an encoding.
fn encoded(encoding: &str) -> Result<Database, Box<dyn std::error::Error>> {
    let server = Server::shared()?;
    let database = server.database()?;
    let mut conn = PgConnection::establish(server.url())?;
    let name = database.name();
    conn.batch_execute(&format!("DROP DATABASE {name}"))?;
    conn.batch_execute(&format!(
        "CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
    ))?;
    Ok(database)
}

#[test]
fn a_database_that_stores_any_bytes_is_refused() -> Outcome {
    let database = encoded("SQL_ASCII")?;
    let pq = Pq::connect(database.url())?;
    let refused = pq.migrate().map_err(|error| error.to_string());
    assert!(refused.clone().is_err_and(|error| error.contains("SQL_ASCII")), "{refused:?}");
    // The files of the migrations refuse it too, for diesel's own tools and for psql.
    let refused = database.connect()?.batch_execute(&pq.schema_sql()).map_err(|error| error.to_string());
    assert!(refused.clone().is_err_and(|error| error.contains("SQL_ASCII")), "{refused:?}");
    // The tables of an older release, or a dump, may be in such a database.
    let findings = pq.examine(&Examination::new())?;
    let is_found =
        |finding: &Finding| finding.level == Level::Failure && finding.message.contains("SQL_ASCII");
    assert!(findings.iter().any(is_found), "{findings:?}");
    Ok(())
}

#[test]
fn an_outcome_is_stored_although_its_text_cannot_be_encoded() -> Outcome {
    const ERROR: &str = "Zähler → 😀";
    for (encoding, stored) in [("UTF8", ERROR), ("LATIN1", "Zähler ? ?"), ("WIN1250", "Z?hler ? ?")] {
        let database = encoded(encoding)?;
        let pq = Pq::connect(database.url())?;
        pq.migrate()?;
        let queue: Queue<Value> = pq.queue("apples")?;
        let result = Payload::from_stored(json!({ "text": ERROR }).to_string());
        let outcomes = [
            Settlement::Dead { error: ERROR.to_owned() },
            Settlement::Cancel { reason: Some(ERROR.to_owned()) },
            Settlement::Keep { result: Some(result) },
        ];
        for outcome in &outcomes {
            queue.put(&json!(1))?;
            let job = queue.lease(1, PATIENCE, Wait::No)?.pop().ok_or("a job")?;
            queue.settle(&job, outcome.clone())?;
            queue.put(&json!(1))?;
            queue.transaction(|conn| {
                let job = queue.on(conn).get()?.ok_or(pq_core::Error::not_yours(job.id))?;
                queue.on(conn).settle(&job, outcome.clone())
            })?;
        }
        for state in [JobState::Dead, JobState::Cancelled] {
            let ended = queue.archived(state, None, 9)?;
            let errors: Vec<_> = ended.iter().map(|job| job.error.as_deref()).collect();
            assert_eq!(errors, [Some(stored); 2], "{state} in {encoding}");
        }
        for job in queue.archived(JobState::Done, None, 9)? {
            let result = job.result.ok_or("a result")?;
            let result: Value = serde_json::from_str(result.as_str())?;
            assert_eq!(result, json!({ "text": ERROR }), "{encoding}");
        }
    }
    Ok(())
}
