//! Errors that pass and errors that do not: how they are classified, and what a worker does at its first poll.

mod common;

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use common::{Outcome, PATIENCE, database};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use pq_diesel::{Error, Pq, StopMode, Worker};
use pq_testing::{Database, Server};

/// Sets a default of the database. Returns `false` if the server does not know the value.
fn set(database: &Database, setting: &str, value: &str) -> Result<bool, Box<dyn std::error::Error>> {
    let set = format!(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET {setting} TO %L', current_database(), '{value}'); END $$"
    );
    Ok(database.connect()?.batch_execute(&set).is_ok())
}

fn run_one_call(pq: &Pq) -> Result<pq_diesel::Report, Error> {
    let task = pq.queue::<()>("apples")?.task::<i64>("note");
    task.call(&1)?;
    Worker::new(pq).serve(task.transactional(|_, _| Ok::<_, Error>(()))).run_until_empty()
}

#[test]
fn a_worker_waits_out_a_lock_timeout_at_its_first_poll() -> Outcome {
    let database = database()?;
    assert!(set(&database, "lock_timeout", "50ms")?);
    let pq = Pq::builder().url(database.url()).build()?;
    let task = pq.queue::<()>("apples")?.task::<i64>("note");
    task.call(&1)?;
    let (mut holder, mut observer) = (database.connect()?, database.connect()?);
    holder.batch_execute("BEGIN; LOCK TABLE pq.queue IN ACCESS EXCLUSIVE MODE")?;
    std::thread::scope(|threads| {
        let worker = Worker::new(&pq).serve(task.transactional(|_, _| Ok::<_, Error>(())));
        let running = threads.spawn(|| worker.run_until_empty());
        // Two transactions that wait for the lock are two polls, so one has failed.
        let (mut polls, begun) = (BTreeSet::new(), Instant::now());
        while polls.len() < 2 && begun.elapsed() < PATIENCE && !running.is_finished() {
            let waiting = "SELECT xact_start::text FROM pg_stat_activity
                WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%queue%'";
            polls.extend(diesel::dsl::sql::<Text>(waiting).load::<String>(&mut observer)?);
        }
        holder.batch_execute("ROLLBACK")?;
        let report = running.join().map_err(|_| "the worker panicked")??;
        assert_eq!((polls.len(), report.done), (2, 1));
        Ok(())
    })
}

/// What the store refuses is in its log, and in its heartbeats for those who look at the worker.
#[test]
fn a_worker_reports_the_last_error_of_its_polls() -> Outcome {
    let database = database()?;
    let pq = Pq::builder().url(database.url()).build()?;
    let handler = pq.queue::<i64>("apples")?.transactional(|_, _| Ok::<_, Error>(()));
    let worker = Worker::new(&pq).heartbeat_every(Some(Duration::from_millis(20))).serve(handler);
    let (control, mut conn) = (worker.control(), database.connect()?);
    let until = |is_refused: bool| -> Outcome {
        let begun = Instant::now();
        loop {
            let refused = pq.workers()?.pop().map(|worker| worker.status.refused);
            match refused {
                Some(Some(error)) if is_refused => assert!(error.contains("pq.queue"), "{error}"),
                Some(None) if !is_refused => {}
                _ => {
                    assert!(begun.elapsed() < PATIENCE, "{refused:?}");
                    std::thread::sleep(Duration::from_millis(10));
                    continue;
                }
            }
            return Ok(());
        }
    };
    std::thread::scope(|threads| {
        let running = threads.spawn(|| worker.run());
        let looked = (|| {
            until(false)?;
            pq.queue::<i64>("apples")?.put(&1)?;
            while pq.queue::<i64>("apples")?.counts()?.live() > 0 {
                std::thread::sleep(Duration::from_millis(10));
            }
            conn.batch_execute("ALTER TABLE pq.queue RENAME TO hidden; NOTIFY apples")?;
            until(true)?;
            conn.batch_execute("ALTER TABLE pq.hidden RENAME TO queue")?;
            until(false)
        })();
        control.stop(StopMode::Finish);
        running.join().map_err(|_| "the worker panicked")??;
        looked
    })
}

#[test]
fn a_worker_ends_if_its_role_may_not_take_jobs() -> Outcome {
    let database = database()?;
    let pq = Pq::builder().url(database.url()).build()?;
    let role = format!("nobody_{}", database.name());
    let mut conn = database.connect()?;
    for privilege in ["", "USAGE ON SCHEMA pq", "SELECT ON ALL TABLES IN SCHEMA pq"] {
        if privilege.is_empty() {
            conn.batch_execute(&format!("CREATE ROLE {role}"))?;
        } else {
            conn.batch_execute(&format!("GRANT {privilege} TO {role}"))?;
        }
        let name = database.name();
        conn.batch_execute(&format!("ALTER DATABASE {name} RESET role"))?;
        pq.queue::<i64>("apples")?.put(&1)?;
        conn.batch_execute(&format!("ALTER DATABASE {name} SET role TO {role}"))?;
        let limited = Pq::builder().url(database.url()).build()?;
        let handler = limited.queue::<i64>("apples")?.transactional(|_, _| Ok::<_, Error>(()));
        let ended = Worker::new(&limited).threads(2).serve(handler).run();
        assert!(matches!(ended, Err(Error::Database { .. })), "with {privilege:?}: {ended:?}");
    }
    conn.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))?;
    Ok(())
}

#[test]
fn a_missing_table_is_recognised_in_german() -> Outcome {
    let database = Server::shared()?.database()?;
    let languages = ["de_DE.UTF-8", "de_DE.utf8", "de_DE", "German_Germany.1252"];
    let mut is_german = false;
    for language in languages {
        is_german = is_german || set(&database, "lc_messages", language)?;
    }
    let pq = Pq::builder().url(database.url()).build()?;
    let report = run_one_call(&pq);
    assert!(matches!(report, Err(Error::NotMigrated { .. })), "German: {is_german}: {report:?}");
    Ok(())
}

#[test]
fn a_deadlock_of_the_callers_statements_is_a_conflict() -> Outcome {
    let database = database()?;
    database.connect()?.batch_execute("CREATE TABLE rows AS SELECT id FROM generate_series(1, 2) AS id")?;
    let (both, database) = (Barrier::new(2), &database);
    let update = |first: i32| -> Result<Option<diesel::result::Error>, String> {
        let mut conn = database.connect().map_err(|error| error.to_string())?;
        let lock = |conn: &mut PgConnection, row: i32| {
            conn.batch_execute(&format!("UPDATE rows SET id = id WHERE id = {row}"))
        };
        Ok(conn
            .transaction(|conn| {
                lock(conn, first)?;
                both.wait();
                lock(conn, 3 - first)
            })
            .err())
    };
    let errors: Result<Vec<_>, _> = std::thread::scope(|threads| {
        let update = &update;
        let all = [1, 2].map(|first| threads.spawn(move || update(first)));
        all.into_iter().map(|one| one.join().unwrap_or(Err("a thread panicked".to_owned()))).collect()
    });
    let deadlocks: Vec<Error> = errors?.into_iter().flatten().map(Error::from).collect();
    assert_eq!(deadlocks.len(), 1);
    assert!(deadlocks[0].is_conflict() && deadlocks[0].is_passing(), "{:?}", deadlocks[0]);
    Ok(())
}
