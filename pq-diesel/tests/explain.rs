//! Explaining why a job does not run: what only PostgreSQL knows.

mod common;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Integer;
use pq_core::store::Explain;
use pq_core::{PutOptions, Reason, Session};
use pq_diesel::Pq;
use pq_diesel::admin::Role;
use serde_json::json;

use self::common::*;

/// Begins a transaction of a session with a name, and returns its server process.
fn begin_as_importer(conn: &mut PgConnection) -> QueryResult<i32> {
    conn.batch_execute("SET application_name = 'importer'; BEGIN")?;
    diesel::dsl::sql::<Integer>("SELECT pg_backend_pid()").get_result(conn)
}

#[test]
fn a_session_that_holds_a_job_is_named() -> Outcome {
    let database = database()?;
    let (queue, mut other) = (queue(&database)?, database.connect()?);
    let keyed = PutOptions::new().serialization_key("k");
    let id = queue.put_with(&json!(1), &keyed)?.id;
    let next = queue.put_with(&json!(2), &keyed)?.id;
    let pid = begin_as_importer(&mut other)?;
    assert!(queue.on(&mut other).get()?.is_some());
    let reasons = queue.pq().explain(id)?;
    let Some(Reason::Held { by: Some(session) }) = reasons.first() else { panic!("{reasons:?}") };
    let Session { pid: found, application, age } = session;
    assert_eq!((*found, application.as_deref()), (Some(pid), Some("importer")));
    assert!(age.is_some_and(|age| age < PATIENCE), "{age:?}");
    let text = reasons[0].to_string();
    assert!(
        text.starts_with(&format!("the open transaction of server process {pid} (importer), open for ")),
        "{text}"
    );
    let reasons = queue.pq().explain(next)?;
    let is_key = |reason: &Reason| matches!(reason, Reason::KeyInUse { session: Some(session), .. } if session.pid == Some(pid));
    assert!(is_key(&reasons[0]), "{reasons:?}");
    other.batch_execute("ROLLBACK")?;
    let reasons = queue.pq().explain(id)?;
    assert_eq!(reasons, [Reason::NoWorker], "the transaction that xmax names has ended");
    Ok(())
}

#[test]
fn a_lock_on_a_job_is_explained_too() -> Outcome {
    let database = database()?;
    let (queue, mut other) = (queue(&database)?, database.connect()?);
    let id = queue.put(&json!(1))?.id;
    let pid = begin_as_importer(&mut other)?;
    // The lock belongs to a nested transaction, which has an id of its own.
    other.batch_execute("SAVEPOINT inner_one; SELECT FROM pq.queue FOR UPDATE")?;
    let reasons = queue.pq().explain(id)?;
    assert!(
        matches!(&reasons[0], Reason::Held { by: Some(session) } if session.pid == Some(pid)),
        "{reasons:?}"
    );
    Ok(())
}

#[test]
fn a_role_learns_what_it_may_see() -> Outcome {
    let database = database()?;
    let (queue, mut owner, mut other) = (queue(&database)?, database.connect()?, database.connect()?);
    let role = format!("explains_{}", database.name());
    owner.batch_execute(&format!("DROP ROLE IF EXISTS {role}; CREATE ROLE {role}"))?;
    let pq = Pq::detached();
    pq.grant_on(&mut owner, Role::Reader, &role)?;
    let id = queue.put(&json!(1))?.id;
    let pid = begin_as_importer(&mut other)?;
    assert!(queue.on(&mut other).get()?.is_some());
    let mut conn = database.connect()?;
    conn.batch_execute(&format!("SET ROLE {role}"))?;
    let found = pq.store().circumstances(&mut conn, id)?;
    assert!(!found.is_hidden);
    let session = found.held_by.ok_or("the session")?;
    assert_eq!((session.pid, session.age), (Some(pid), None));
    assert!(session.to_string().ends_with("whose age this role may not see"), "{session}");
    other.batch_execute("ROLLBACK")?;
    owner.batch_execute("ALTER TABLE pq.queue ENABLE ROW LEVEL SECURITY")?;
    let found = pq.store().circumstances(&mut conn, id)?;
    assert!(found.is_hidden && found.held_by.is_none());
    drop(conn);
    drop(other);
    owner.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))?;
    Ok(())
}

#[test]
fn a_job_that_python_has_taken_is_explained() -> Outcome {
    let database = database()?;
    let queue = queue(&database)?;
    let id = queue.put(&json!(1))?.id;
    database.connect()?.batch_execute("UPDATE pq.queue SET dequeued_at = now()")?;
    assert_eq!(queue.pq().explain(id)?, [Reason::Dequeued]);
    Ok(())
}

#[test]
fn jobs_that_come_first_are_counted_up_to_a_bound() -> Outcome {
    let database = database()?;
    let queue = queue(&database)?;
    queue.put_all((0..10_500).map(|n| json!(n)))?;
    let id = queue.put(&json!("last"))?.id;
    let reasons = queue.pq().explain(id)?;
    assert_eq!(reasons, [Reason::NoWorker, Reason::Behind { jobs: Reason::MAX_COUNTED }]);
    assert_eq!(reasons[1].to_string(), "at least 10000 jobs of its queue come first");
    Ok(())
}
