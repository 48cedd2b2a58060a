//! Errors: lost connections, unreachable servers, missing tables and refused names.

#![allow(clippy::print_stdout, reason = "the reader must know that nothing was tested")]

mod common;

use std::time::{Duration, Instant};

use common::{LISTENING, Outcome, PATIENCE, close_gate, database, queue, until};
use diesel::RunQueryDsl;
use diesel::connection::SimpleConnection;
use pq_diesel::{Error, Job, JobId, JobState, Outcome as Ending, Pq, Queue, Wait};
use pq_testing::{Kind, Options, Server, Stop};
use serde_json::{Value, json};

#[test]
fn a_transaction_aborted_by_the_server_is_an_error() -> Outcome {
    let database = database()?;
    let queue = queue(&database)?;
    queue.put(&json!("a"))?;
    let done = queue.get_with(Wait::No, |conn, _| {
        // The handler ignores that its statement failed. The server then turns COMMIT into a rollback.
        let _ = conn.batch_execute("SELECT 1 / 0");
        Ok::<_, Error>(())
    });
    assert!(done.is_err(), "the job was reported as completed");
    assert_eq!(queue.get(Wait::No)?.map(|job| job.data), Some(json!("a")));
    Ok(())
}

/// The trigger raises the SQLSTATE that is the payload. diesel does not expose it, so this also tests that it is read
/// from where diesel keeps it.
#[test]
fn the_sqlstate_decides_whether_an_error_is_passing() -> Outcome {
    let database = database()?;
    let queue = queue(&database)?;
    database.connect()?.batch_execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE 'no' USING ERRCODE = (SELECT data #>> '{}' FROM added LIMIT 1); END $$;
        CREATE TRIGGER refuse AFTER INSERT ON pq.queue REFERENCING NEW TABLE AS added
            FOR EACH STATEMENT EXECUTE FUNCTION refuse()",
    )?;
    let passing = ["40001", "40P01", "55P03", "57014", "53100", "53200", "57P01", "57P03"];
    let permanent = ["22021", "23514", "42501", "54000", "XX000"];
    for sqlstate in passing.into_iter().chain(permanent) {
        let refused = queue.put(&json!(sqlstate)).err().ok_or(sqlstate)?;
        assert_eq!(refused.sqlstate(), Some(sqlstate), "{refused}");
        assert_eq!(refused.is_passing(), passing.contains(&sqlstate), "{sqlstate}");
        assert_eq!(refused.is_conflict(), sqlstate.starts_with("40"), "{sqlstate}");
    }
    // An error of diesel without a result of the server has no SQLSTATE.
    let none = Error::from(diesel::result::Error::NotFound);
    assert_eq!((none.sqlstate(), none.is_passing()), (None, false));
    Ok(())
}

#[test]
fn a_lost_connection_fails_one_call_and_is_replaced() -> Outcome {
    let database = database()?;
    let queue = queue(&database)?;
    queue.put(&json!("before"))?;
    database.connect()?.batch_execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )?;
    // The library never repeats a put, because it may have committed.
    let lost = queue.put(&json!("lost"));
    assert!(matches!(lost, Ok(_) | Err(Error::Unavailable(_) | Error::OutcomeUnknown(_))), "{lost:?}");
    queue.put(&json!("after"))?;
    let wanted = if lost.is_ok() { vec!["before", "lost", "after"] } else { vec!["before", "after"] };
    let got = queue.get_many(9, Wait::No)?.into_iter().map(|job| job.data).collect::<Vec<_>>();
    assert_eq!(json!(got), json!(wanted));
    Ok(())
}

#[test]
fn a_connection_found_lost_is_not_used_again() -> Outcome {
    type Call = fn(&Queue<Value>) -> Result<(), Error>;
    let calls: [(&str, Call); 8] = [
        ("put", |queue| queue.put(&json!("a")).map(drop)),
        ("put_many", |queue| queue.put_many(vec![json!("a"); 3_000]).map(drop)),
        ("put_all", |queue| queue.put_all([json!("a")]).map(drop)),
        ("get", |queue| queue.get(Wait::No).map(drop)),
        ("get_many", |queue| queue.get_many(10, Wait::No).map(drop)),
        ("counts", |queue| queue.counts().map(drop)),
        ("archived", |queue| queue.archived(JobState::Dead, None, 10).map(drop)),
        ("clear", |queue| queue.clear().map(drop)),
    ];
    let database = database()?;
    let mut conn = database.connect()?;
    for (name, call) in calls {
        // Once with statements that are new to the connection, and once with prepared ones.
        for warm in [false, true] {
            let queue = queue(&database)?;
            if warm {
                call(&queue)?;
            } else {
                queue.find(JobId(1))?;
            }
            conn.batch_execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
                 WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )?;
            let (first, second) = (call(&queue), call(&queue));
            assert!(second.is_ok(), "{name}, warm: {warm}: {first:?}, then {second:?}");
        }
    }
    Ok(())
}

/// The server commits the change, or ends the session instead. The call cannot know which.
#[test]
fn a_change_whose_connection_breaks_has_an_unknown_outcome() -> Outcome {
    type Call = fn(&Queue<Value>, &Job<Value>) -> Result<(), Error>;
    let calls: [(&str, Call); 7] = [
        ("settle", |queue, job| queue.settle(job, Ending::Complete)),
        ("settle and keep", |queue, job| queue.settle(job, Ending::Keep { result: None })),
        ("extend", |queue, job| queue.extend(job, PATIENCE).map(drop)),
        ("cancel", |queue, job| queue.cancel(job.id).map(drop)),
        ("clear", |queue, _| queue.clear().map(drop)),
        ("retry", |queue, _| queue.retry_all_dead().map(drop)),
        ("prune", |queue, _| queue.prune(JobState::Dead, Duration::ZERO).map(drop)),
    ];
    for (name, call) in calls {
        let database = database()?;
        let queue = queue(&database)?;
        let (mut gate, mut conn) = (database.connect()?, database.connect()?);
        queue.put_many([json!(1), json!(2), json!(3)])?;
        queue.settle(&queue.lease(1, PATIENCE, Wait::No)?[0], Ending::Dead { error: String::new() })?;
        let job = queue.lease(1, PATIENCE, Wait::No)?.remove(0);
        close_gate(
            &mut gate,
            &[
                "CREATE TRIGGER wait AFTER DELETE OR UPDATE ON pq.queue_leases FOR EACH STATEMENT",
                "CREATE TRIGGER wait AFTER DELETE ON pq.queue FOR EACH STATEMENT",
                "CREATE TRIGGER wait AFTER DELETE ON pq.queue_archive FOR EACH STATEMENT",
            ],
        )?;
        let lost = std::thread::scope(|threads| {
            let calls = threads.spawn(|| call(&queue, &job));
            until(
                &mut conn,
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                 WHERE datname = current_database() AND wait_event = 'advisory'",
            )?;
            Ok::<_, Box<dyn std::error::Error>>(calls.join().map_err(|_| "the call panicked")?)
        })?;
        // A retry is a transaction of several statements, and its commit had not begun.
        let is_as_documented = match name {
            "retry" => matches!(lost, Err(Error::Unavailable(_))),
            _ => matches!(lost, Err(Error::OutcomeUnknown(_))),
        };
        assert!(is_as_documented, "{name}: {lost:?}");
    }
    Ok(())
}

#[test]
fn a_bulk_put_that_loses_its_connection_puts_nothing() -> Outcome {
    let database = database()?;
    let queue = queue(&database)?;
    let mut conn = database.connect()?;
    let mut cut = 0;
    // There is enough data for many parts, some of which the server has received by then.
    let jobs = (0..200_000).inspect(|n| {
        if *n == 100_000 {
            let ended = diesel::sql_query(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
                 WHERE datname = current_database() AND query LIKE 'COPY%'",
            );
            cut = ended.execute(&mut conn).unwrap_or(0);
        }
    });
    let put = queue.put_all(jobs.map(|n| json!(n)));
    assert_eq!(cut, 1, "sessions were ended");
    assert!(matches!(put, Err(Error::Unavailable(_) | Error::OutcomeUnknown(_))), "{put:?}");
    assert_eq!(queue.on(&mut conn).counts()?.ready, 0);
    // The handle has discarded that connection.
    assert_eq!(queue.put_all([json!("after")])?, 1);
    assert_eq!(queue.get(Wait::No)?.map(|job| job.data), Some(json!("after")));
    Ok(())
}

#[test]
fn a_wait_survives_the_loss_of_every_connection() -> Outcome {
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
fn a_wait_survives_a_restart_of_the_server() -> Outcome {
    // A server of its own, because the one that the tests share must not be stopped.
    let server = match Server::start(&Options::throwaway().kind(Kind::Binaries)) {
        Ok(server) => server,
        Err(error) => {
            println!("skipped, because no server can be restarted here: {error}");
            return Ok(());
        }
    };
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
fn a_missing_table_is_reported_with_the_command_that_creates_it() -> Outcome {
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
fn an_unreachable_server_is_reported_at_once_without_the_password() {
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
fn a_refused_login_is_reported_without_the_password() -> Outcome {
    let database = database()?;
    let (scheme, rest) = database.url().split_once("://").ok_or("a URL")?;
    let server = rest.split_once('@').map_or(rest, |(_, server)| server);
    let url = format!("{scheme}://nobody_of_this_name:s3cret@{server}");
    let error = Pq::connect(&url).err().map(|error| format!("{error} {error:?}")).unwrap_or_default();
    assert!(error.contains("cannot connect") && !error.contains("s3cret"), "{error}");
    Ok(())
}

#[test]
fn a_detached_handle_reports_that_it_has_no_connection() -> Outcome {
    let queue = Pq::detached().queue::<Value>("apples")?;
    let error = queue.put(&json!(1)).err().ok_or("it succeeded")?;
    assert!(matches!(error, Error::Refused(pq_core::Error::NoConnection)), "{error}");
    Ok(())
}

#[test]
fn names_that_postgres_would_truncate_are_refused() {
    let refused = |schema: &str, table: &str| Pq::builder().schema(schema).table(table).build().err();
    for (schema, table) in [("", "queue"), ("pq", &*"x".repeat(64)), ("p\0q", "queue")] {
        assert!(matches!(refused(schema, table), Some(Error::InvalidIdentifier { .. })));
    }
}
