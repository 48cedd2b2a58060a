//! The grants of docs/roles.md: each role can do what it needs, and nothing else.

mod common;

use std::error::Error;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use pq_core::Heartbeat;
use pq_core::store::{Admin, Archive, Connect, Jobs, NewStep, Schedules, Steps, Workers};
use pq_diesel::Filter;
use pq_diesel::admin::Role;
use pq_diesel::doctor::Examination;
use pq_diesel::{
    JobId, JobState, OnConflict, Outcome, Pq, PutOptions, Queue, Retention, Status, StepKind, StopMode, Wait,
};
use pq_testing::{Database, Server};
use serde_json::{Value, json};

const ROLES: [&str; 3] = ["pq_producer", "pq_consumer", "pq_reader"];

/// An operation, and whether producer, consumer and reader may do it.
type Operation =
    (&'static str, fn(&Queue<Value>, &mut PgConnection) -> Result<(), pq_diesel::Error>, [bool; 3]);

const OPERATIONS: [Operation; 22] = [
    ("put", |queue, conn| queue.on(conn).put(&json!(1)).map(drop), [true, true, false]),
    ("put_many", |queue, conn| queue.on(conn).put_many(&[json!(1), json!(2)]).map(drop), [true, true, false]),
    ("get", |queue, conn| queue.on(conn).get().map(drop), [false, true, false]),
    ("get_many", |queue, conn| queue.on(conn).get_many(2).map(drop), [false, true, false]),
    ("update and give back", update_and_give_back, [false, true, false]),
    ("move an undecodable job", move_undecodable, [false, true, false]),
    ("counts", |queue, conn| queue.on(conn).counts().map(drop), [false, true, true]),
    ("clear", |queue, conn| queue.on(conn).clear().map(drop), [false, true, false]),
    ("put with a unique key", put_unique, [true, true, false]),
    ("replace by unique key", replace_unique, [false, true, false]),
    ("lease, settle and maintain", work, [false, true, false]),
    ("keep steps, signal and wait", signal_and_wait, [false, true, false]),
    ("take one of a serialization key", take_keyed, [false, true, false]),
    ("cancel, retry and prune", cancel_and_retry, [false, true, false]),
    (
        "find",
        |queue, conn| Pq::detached().store().find(conn, queue.name(), JobId(1)).map(drop),
        [false, true, true],
    ),
    ("pause and resume", pause, [false, true, false]),
    ("move", move_jobs, [false, true, false]),
    ("list queues, jobs, workers and periodic jobs", list, [false, true, true]),
    ("register and stop a worker", register, [false, true, false]),
    ("set and fire periodic jobs", fire, [false, true, false]),
    ("migrate, when all is done", |_, conn| Pq::detached().migrate_on(conn).map(drop), [true, true, true]),
    ("revert", |_, conn| Pq::detached().revert_migrations_on(conn), [false, false, false]),
];

/// Plain statements, and whether producer, consumer and reader may execute them.
const STATEMENTS: [(&str, [bool; 3]); 13] = [
    ("LISTEN apples", [true, true, true]),
    ("SELECT pg_notify('apples', '')", [true, true, true]),
    ("SELECT pq.queue_put('apples', '1')", [true, true, false]),
    ("SELECT pq.queue_call('apples', 'shop.mail', unique_key => 'one')", [true, true, false]),
    ("SELECT id FROM pq.queue", [true, true, true]),
    ("SELECT data FROM pq.queue", [false, true, true]),
    ("SELECT data FROM pq.queue_archive", [false, true, true]),
    ("UPDATE pq.queue SET data = '2'", [false, false, false]),
    ("UPDATE pq.queue SET dequeued_at = now()", [false, false, false]),
    ("DELETE FROM pq.queue_archive", [false, true, false]),
    ("DELETE FROM pq.queue_migrations", [false, false, false]),
    ("TRUNCATE pq.queue", [false, false, false]),
    ("CREATE TABLE pq.mine ()", [false, false, false]),
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

fn put_unique(queue: &Queue<Value>, conn: &mut PgConnection) -> Result<(), pq_diesel::Error> {
    let options = PutOptions::new().unique("one");
    queue.on(conn).put_with(&json!(1), &options)?;
    queue.on(conn).put_with(&json!(2), &options).map(drop)
}

fn replace_unique(queue: &Queue<Value>, conn: &mut PgConnection) -> Result<(), pq_diesel::Error> {
    let options = PutOptions::new().unique_or("one", OnConflict::Replace);
    queue.on(conn).put_with(&json!(1), &options)?;
    queue.on(conn).put_with(&json!(2), &options).map(drop)
}

fn work(queue: &Queue<Value>, conn: &mut PgConnection) -> Result<(), pq_diesel::Error> {
    let settle = |conn: &mut PgConnection, outcome: Outcome| {
        let jobs = queue.on(conn).lease(1, common::PATIENCE)?;
        jobs.iter().try_for_each(|job| queue.on(conn).settle(job, outcome.clone()))
    };
    let store = Pq::detached();
    settle(conn, Outcome::GiveBack)?;
    for job in queue.on(conn).lease(1, common::PATIENCE)? {
        let lease: Vec<i64> = job.lease().into_iter().collect();
        store.store().extend(conn, &lease, Duration::ZERO)?;
    }
    store.store().maintain(conn, &Retention::default())?;
    settle(conn, Outcome::Dead { error: "on purpose".to_owned() })
}

fn signal_and_wait(queue: &Queue<Value>, conn: &mut PgConnection) -> Result<(), pq_diesel::Error> {
    let (pq, id) = (Pq::detached(), queue.on(conn).put(&json!(1))?.id);
    let step = |kind, position| NewStep {
        position,
        kind,
        name: "approved",
        result: None,
        after: Some(Duration::ZERO),
    };
    for job in queue.on(conn).lease(10, common::PATIENCE)? {
        if job.id == id {
            pq.signal_on(conn, id, "approved", &1)?;
            let job = &job;
            pq.store().keep_step(conn, job, &step(StepKind::Step, 0))?;
            pq.store().transaction(conn, |conn| {
                pq.store().await_signal(conn, job, &step(StepKind::Waiting, 1)).map(drop)
            })?;
            pq.store().forget_steps(conn, job, 0)?;
        }
        queue.on(conn).settle(&job, Outcome::GiveBack)?;
    }
    Ok(())
}

fn take_keyed(queue: &Queue<Value>, conn: &mut PgConnection) -> Result<(), pq_diesel::Error> {
    queue.on(conn).put_with(&json!(1), &PutOptions::new().serialization_key("key"))?;
    queue.on(conn).get_many(2).map(drop)
}

fn cancel_and_retry(queue: &Queue<Value>, conn: &mut PgConnection) -> Result<(), pq_diesel::Error> {
    let (pq, name) = (Pq::detached(), queue.name());
    let id = queue.on(conn).put(&json!(1))?.id;
    pq.store().cancel(conn, name, id)?;
    pq.store().requeue(conn, name, Some(&[id]))?;
    pq.store().prune(conn, name, JobState::Cancelled, Duration::ZERO).map(drop)
}

fn pause(queue: &Queue<Value>, conn: &mut PgConnection) -> Result<(), pq_diesel::Error> {
    let pq = Pq::detached();
    pq.store().pause(conn, queue.name(), true, None)?;
    pq.store().pause(conn, queue.name(), false, None).map(drop)
}

fn move_jobs(queue: &Queue<Value>, conn: &mut PgConnection) -> Result<(), pq_diesel::Error> {
    let pq = Pq::detached();
    queue.on(conn).put_with(&json!(1), &PutOptions::new().unique("moved"))?;
    pq.store().move_jobs(conn, queue.name(), pq.queue::<()>("pears")?.name(), None).map(drop)
}

fn list(queue: &Queue<Value>, conn: &mut PgConnection) -> Result<(), pq_diesel::Error> {
    let pq = Pq::detached();
    pq.store().overview(conn)?;
    pq.store().list(conn, &Filter::queue(queue.name()), 10)?;
    pq.store().workers(conn)?;
    pq.store().crons(conn).map(drop)
}

fn register(queue: &Queue<Value>, conn: &mut PgConnection) -> Result<(), pq_diesel::Error> {
    let pq = Pq::detached();
    let mut beat = Heartbeat {
        worker: None,
        host: "here".to_owned(),
        pid: 1,
        supervisor: 1,
        queues: vec![queue.name().clone()],
        threads: 1,
        status: Status::default(),
    };
    let worker = pq.store().heartbeat(conn, &beat)?.worker;
    beat.worker = Some(worker);
    pq.store().heartbeat(conn, &beat)?;
    pq.store().stop_worker(conn, worker, StopMode::Drain)?;
    pq.store().deregister(conn, worker)
}

fn fire(queue: &Queue<Value>, conn: &mut PgConnection) -> Result<(), pq_diesel::Error> {
    let pq = Pq::detached();
    let cron = queue.cron("bills", "@daily", &json!(1))?;
    let now = pq.store().now(conn)?;
    pq.store().set_cron(conn, &cron, Some(now))?;
    pq.store().transaction(conn, |conn| {
        assert!(pq.store().due_cron(conn, None)?.is_some());
        pq.store().advance_cron(conn, "bills", Some(now), None)
    })?;
    pq.store().pause_cron(conn, "bills", true, None, None)?;
    pq.store().remove_cron(conn, "bills").map(drop)
}

fn move_undecodable(queue: &Queue<Value>, conn: &mut PgConnection) -> Result<(), pq_diesel::Error> {
    let numbers = Pq::detached().queue::<u8>(queue.name())?;
    numbers.on(conn).get().map(drop)
}

/// A database with the roles of the document. Roles belong to the server, so their names contain the database's.
struct Roles {
    database: Database,
}

impl Roles {
    fn new() -> Result<Self, Box<dyn Error>> {
        let roles = Self { database: Server::shared()?.database()? };
        let mut conn = roles.database.connect()?;
        Pq::detached().migrate_on(&mut conn)?;
        for block in include_str!("../../docs/roles.md").split("```sql\n").skip(1) {
            conn.batch_execute(&roles.named(block.split("```").next().unwrap_or_default()))?;
        }
        // By default every role may execute every function, which would hide a grant that is missing.
        conn.batch_execute("REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA pq FROM PUBLIC")?;
        Ok(roles)
    }

    fn named(&self, sql: &str) -> String {
        ROLES
            .iter()
            .fold(sql.to_owned(), |sql, role| sql.replace(role, &format!("{role}_{}", self.database.name())))
    }

    fn connect_as(&self, role: &str) -> Result<PgConnection, Box<dyn Error>> {
        let mut conn = self.database.connect()?;
        conn.batch_execute(&self.named(&format!("SET ROLE {role}")))?;
        Ok(conn)
    }

    /// Returns a handle whose connections have this role, including the listener's.
    fn handle_of(&self, role: &str) -> Result<Pq, pq_diesel::Error> {
        let url = self.database.url();
        let mark = if url.contains('?') { '&' } else { '?' };
        let url = self.named(&format!("{url}{mark}options=-c%20role%3D{role}"));
        // A wait that is not woken polls too late.
        Pq::builder().url(&url).poll_interval(10 * common::PATIENCE).build()
    }
}

impl Drop for Roles {
    fn drop(&mut self) {
        let drop = self.named(&format!("DROP OWNED BY {0}; DROP ROLE {0}", ROLES.join(", ")));
        if let Ok(mut conn) = self.database.connect() {
            let _ = conn.batch_execute(&drop);
        }
    }
}

#[test]
fn the_document_lists_the_grants_of_the_library() -> Result<(), Box<dyn Error>> {
    let database = Server::shared()?.database()?;
    let mut conn = database.connect()?;
    let pq = Pq::detached();
    assert!(matches!(
        pq.grant_sql_on(&mut conn, Role::Reader, "x"),
        Err(pq_diesel::Error::NotMigrated { .. })
    ));
    pq.migrate_on(&mut conn)?;
    let document = include_str!("../../docs/roles.md");
    for (role, name) in Role::ALL.into_iter().zip(ROLES) {
        let granted = pq.grant_sql_on(&mut conn, role, name)?.join("\n");
        assert!(document.contains(&granted), "docs/roles.md should have, for a {role}:\n{granted}");
    }
    Ok(())
}

#[test]
fn a_table_with_hostile_names_can_be_granted() -> Result<(), Box<dyn Error>> {
    let roles = Roles::new()?;
    let mut owner = roles.database.connect()?;
    let pq = Pq::builder().schema("The \"own\"").table("жжжжжжжжжжжжжжжжжжжжжжжжжжжжжжж").build()?;
    pq.migrate_on(&mut owner)?;
    pq.grant_on(&mut owner, Role::Producer, &roles.named("pq_producer"))?;
    let mut conn = roles.connect_as("pq_producer")?;
    let queue = pq.queue::<u8>("apples")?;
    queue.on(&mut conn).put_many([1, 2])?;
    assert!(queue.on(&mut conn).get().is_err());
    let nobody = pq.grant_on(&mut owner, Role::Reader, "nobody at \"all\"");
    assert!(nobody.is_err_and(|error| error.to_string().contains("nobody at")));
    Ok(())
}

fn check(role: &str, what: &str, allowed: bool, outcome: Result<(), String>) {
    match outcome {
        Ok(()) => assert!(allowed, "{role} may {what}"),
        Err(error) => {
            assert!(!allowed, "{role} may not {what}: {error}");
            assert!(error.contains("permission denied"), "{role}, {what}: {error}");
        }
    }
}

#[test]
fn every_role_may_do_what_it_needs_and_nothing_else() -> Result<(), Box<dyn Error>> {
    let roles = Roles::new()?;
    let mut owner = roles.database.connect()?;
    let queue = Pq::detached().queue::<Value>("apples")?;
    for (position, role) in ROLES.into_iter().enumerate() {
        for (what, operation, allowed) in OPERATIONS {
            owner.batch_execute("TRUNCATE pq.queue, pq.queue_unique")?;
            queue.on(&mut owner).put(&json!("there is one"))?;
            let mut conn = roles.connect_as(role)?;
            let outcome = operation(&queue, &mut conn).map_err(|error| error.to_string());
            check(role, what, allowed[position], outcome);
        }
        let has_undecodable = queue.on(&mut owner).counts()?.dead > 0;
        assert_eq!(has_undecodable, role == "pq_consumer", "only a consumer moves undecodable jobs");
        for (sql, allowed) in STATEMENTS {
            let outcome = roles.connect_as(role)?.batch_execute(sql).map_err(|error| error.to_string());
            check(role, sql, allowed[position], outcome);
        }
    }
    Ok(())
}

#[test]
fn a_producer_role_wakes_a_consumer_role() -> Result<(), Box<dyn Error>> {
    let roles = Roles::new()?;
    let consumer = roles.handle_of("pq_consumer")?.queue::<u8>("apples")?;
    let producer = roles.handle_of("pq_producer")?.queue::<u8>("apples")?;
    let waiter = std::thread::spawn(move || consumer.get(Wait::For(2 * common::PATIENCE)));
    common::until(&mut roles.database.connect()?, common::LISTENING)?;
    let put = Instant::now();
    producer.put(&7)?;
    let got = waiter.join().map_err(|_| "the waiter panicked")??;
    assert_eq!(got.map(|job| job.data), Some(7));
    assert!(put.elapsed() < common::PATIENCE, "the wait was not woken and polled at its end");
    Ok(())
}

#[test]
fn the_doctor_reports_the_rights_of_each_role() -> Result<(), Box<dyn Error>> {
    let roles = Roles::new()?;
    let rights = |role: &str| -> Result<String, Box<dyn Error>> {
        let findings = Pq::detached().examine_on(&mut roles.connect_as(role)?, &Examination::new())?;
        let found = findings.into_iter().find(|finding| finding.check == "privileges");
        Ok(found.ok_or("no finding about privileges")?.message)
    };
    let kinds = ["producer (", "producer, consumer, reader", "reader ("];
    for (role, kinds) in ROLES.into_iter().zip(kinds) {
        let role_can = format!("{} can be {kinds}", roles.named(role));
        let what = rights(role)?;
        assert!(what.starts_with(&role_can), "{what}");
    }
    // A revoked privilege is reported.
    let mut owner = roles.database.connect()?;
    for (taken, missed) in [
        ("SELECT (dequeued_at) ON pq.queue FROM pq_producer", "producer lacks SELECT (dequeued_at) on queue"),
        (
            "USAGE ON SEQUENCE pq.queue_lease_tokens FROM pq_consumer",
            "consumer lacks USAGE on queue_lease_tokens",
        ),
        ("SELECT ON pq.queue_settled FROM pq_reader", "reader lacks SELECT on queue_settled"),
        (
            "EXECUTE ON FUNCTION pq.queue_call FROM pq_producer",
            "producer lacks SELECT (dequeued_at) on queue and 1 more",
        ),
        ("EXECUTE ON FUNCTION pq.queue_lock_keyed_job FROM pq_consumer", "consumer lacks"),
    ] {
        owner.batch_execute(&roles.named(&format!("REVOKE {taken}")))?;
        let role = ROLES.into_iter().find(|role| taken.ends_with(role)).unwrap_or("pq_consumer");
        let what = rights(role)?;
        assert!(what.contains(missed), "{what}");
    }
    Ok(())
}

#[test]
fn bulk_puts_work_under_row_level_security() -> Result<(), Box<dyn Error>> {
    const MANY: i32 = 5_000;
    let roles = Roles::new()?;
    let mut owner = roles.database.connect()?;
    owner.batch_execute(&roles.named(
        "ALTER TABLE pq.queue ENABLE ROW LEVEL SECURITY;
         CREATE POLICY apples ON pq.queue TO pq_producer USING (q_name = 'apples')",
    ))?;
    let mut conn = roles.connect_as("pq_producer")?;
    let (apples, pears) = (Pq::detached().queue::<i32>("apples")?, Pq::detached().queue::<i32>("pears")?);
    let ids = apples.on(&mut conn).put_many((0..MANY).collect::<Vec<_>>())?;
    assert!(ids.len() == MANY as usize && ids.is_sorted_by_key(|put| put.id));
    assert_eq!(apples.on(&mut conn).put_all(MANY..2 * MANY)?, MANY as u64);
    let own = roles.handle_of("pq_producer")?.queue::<i32>("apples")?;
    assert_eq!(own.put_all(2 * MANY..3 * MANY)?, MANY as u64);
    for refused in [
        pears.on(&mut conn).put_many(vec![0; MANY as usize]).map(drop),
        pears.on(&mut conn).put_all(0..MANY).map(drop),
    ] {
        assert!(refused.is_err_and(|error| error.to_string().contains("row-level security policy")));
    }
    let got = apples.on(&mut owner).get_many(usize::MAX)?;
    assert!(got.into_iter().map(|job| job.data).eq(0..3 * MANY));
    assert_eq!(pears.on(&mut owner).counts()?.live(), 0);
    Ok(())
}
