//! `pq bench`: it measures and leaves the tables unchanged.

mod common;

use std::error::Error;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use pq_core::Scan;
use pq_core::store::Jobs;
use pq_diesel::{Pq, PutOptions};
use pq_testing::{Database, Server};
use serde_json::Value;

use self::common::*;

/// Returns every row of every table of the schema as text.
fn everything(database: &Database, schema: &str) -> Result<String, Box<dyn Error>> {
    let mut conn = database.connect()?;
    let text = |sql: &str, conn: &mut PgConnection| diesel::dsl::sql::<Text>(sql).load::<String>(conn);
    let tables = text(
        &format!(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = '{schema}' ORDER BY 1"
        ),
        &mut conn,
    )?;
    assert!(!tables.is_empty());
    let mut all = String::new();
    for table in tables {
        let rows = text(&format!("SELECT row::text FROM {table} AS row ORDER BY 1"), &mut conn)?;
        all.push_str(&format!("{table}: {rows:?}\n"));
    }
    Ok(all)
}

/// Returns a database with foreign jobs of every state, some of which maintenance would requeue or delete.
fn in_use() -> Result<Database, Box<dyn Error>> {
    let database = migrated()?;
    let handle = Pq::connect(database.url())?;
    let queue = handle.queue::<i64>("others")?;
    queue.put_many([1, 2, 3])?;
    let store = handle.store();
    handle.transaction(|conn| {
        store.lease(conn, queue.name(), 1, Duration::from_millis(1), Scan::Full).map(drop)
    })?;
    let dead = handle.queue::<String>("others")?.get(pq_diesel::Wait::No)?;
    assert!(dead.is_none(), "numbers do not decode as strings, so they become dead");
    queue.put_many([4, 5])?;
    database.connect()?.batch_execute(
        "UPDATE pq.queue_archive SET ended_at = now() - interval '1 year';
         UPDATE pq.queue SET schedule_at = now() + interval '1 day' WHERE data::text = '5'",
    )?;
    Ok(database)
}

/// Checks that no figure is missing and that all are above zero. Returns the number of phases.
fn figures(shown: &str) -> Result<usize, Box<dyn Error>> {
    let report: Value = serde_json::from_str(shown)?;
    let phases = report["phases"].as_array().ok_or("phases")?;
    for phase in phases {
        let name = phase["phase"].as_str().ok_or("a name")?;
        let mut wanted = vec!["/jobs".to_owned(), "/wal_bytes_per_job".to_owned()];
        if !name.starts_with("pickup") {
            wanted.extend(["/seconds".to_owned(), "/jobs_per_second".to_owned()]);
        }
        if !name.starts_with("worker") && name != "put_many" {
            wanted.extend(["p50", "p90", "p99", "max"].map(|percentile| format!("/latency_ms/{percentile}")));
        }
        for figure in wanted {
            let found = phase.pointer(&figure).and_then(Value::as_f64).unwrap_or_default();
            assert!(found > 0.0, "{figure} of {phase}");
        }
    }
    Ok(phases.len())
}

#[test]
fn no_figure_is_missing_and_the_tables_are_unchanged() -> Outcome {
    let database = in_use()?;
    let before = everything(&database, "pq")?;
    let shown = on(&database, &["bench", "--jobs", "200", "--json"]).output()?;
    assert_eq!(status(&shown), 0, "{}", stderr(&shown));
    assert_eq!(figures(&stdout(&shown))?, 8, "{}", stdout(&shown));
    assert_eq!(stdout(&shown).lines().count(), 1);
    assert_eq!(everything(&database, "pq")?, before);

    let table =
        on(&database, &["bench", "mine", "--jobs", "20", "--threads", "1", "--payload", "16"]).output()?;
    assert_eq!(status(&table), 0, "{}", stderr(&table));
    for words in
        ["put, one by one", "worker, leased", "p99 ms", "other sessions", "queue mine: 20 jobs of 16 bytes"]
    {
        assert!(stdout(&table).contains(words), "{words}: {}", stdout(&table));
    }
    assert_eq!(everything(&database, "pq")?, before);
    Ok(())
}

#[test]
fn a_queue_that_is_not_empty_is_rejected() -> Outcome {
    let database = migrated()?;
    for (queue, put, get, state) in [
        ("ready", &["--priority", "1"][..], false, "1 ready"),
        ("scheduled", &["--schedule-at", "1d"], false, "1 scheduled"),
        ("dead", &[], true, "1 dead"),
    ] {
        feed(on(&database, &[&["put", queue][..], put].concat()), "1")?;
        if get {
            let handle = Pq::connect(database.url())?;
            assert!(handle.queue::<String>(queue)?.get(pq_diesel::Wait::No)?.is_none());
        }
        let before = everything(&database, "pq")?;
        let refused = on(&database, &["bench", queue, "--jobs", "20"]).output()?;
        assert_eq!(status(&refused), 2);
        assert!(stderr(&refused).contains(state), "{}", stderr(&refused));
        assert_eq!(everything(&database, "pq")?, before);
    }
    Ok(())
}

#[test]
fn an_interrupted_bench_leaves_nothing() -> Outcome {
    use rustix::process::Signal;
    let database = migrated()?;
    let empty = everything(&database, "pq")?;
    // The end of each lease takes a while, so that a lease can be seen however fast the bench is.
    database.connect()?.batch_execute(
        "CREATE FUNCTION public.wait() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END';
         CREATE TRIGGER wait BEFORE DELETE ON pq.queue_leases FOR EACH STATEMENT EXECUTE FUNCTION public.wait()",
    )?;
    // While jobs are put, and while a worker holds a lease.
    for (signal_with, jobs, condition) in [
        (Signal::INT, "1000000", "SELECT count(*) FROM pq.queue WHERE q_name LIKE 'pq-bench-%'"),
        (Signal::TERM, "2000", "SELECT count(*) FROM pq.queue_leases WHERE q_name LIKE 'pq-bench-%'"),
    ] {
        let running = on(&database, &["bench", "--jobs", jobs]).spawn()?;
        wait_until(&database, condition)?;
        signal(&running, signal_with)?;
        let ended = running.wait_with_output()?;
        assert_eq!((status(&ended), stdout(&ended)), (130, String::new()), "{}", stderr(&ended));
        assert_eq!(everything(&database, "pq")?, empty);
    }
    Ok(())
}

#[test]
fn a_bench_that_loses_its_connections_leaves_nothing() -> Outcome {
    let database = migrated()?;
    let empty = everything(&database, "pq")?;
    let running = on(&database, &["bench", "--jobs", "1000000"]).spawn()?;
    wait_until(&database, "SELECT count(*) FROM pq.queue")?;
    let all = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()";
    wait_until(&database, all)?;
    let ended = running.wait_with_output()?;
    assert!([3, 5, 9].contains(&status(&ended)), "{}", stderr(&ended));
    assert!(!stderr(&ended).contains("may be left"), "{}", stderr(&ended));
    assert_eq!(everything(&database, "pq")?, empty);
    Ok(())
}

#[test]
fn foreign_jobs_in_its_queue_are_not_lost() -> Outcome {
    let database = migrated()?;
    let handle = Pq::connect(database.url())?;
    let queue = handle.queue::<String>("shared")?;
    let running = on(&database, &["bench", "shared", "--jobs", "2000"]).spawn()?;
    wait_until(&database, "SELECT count(*) FROM pq.queue WHERE q_name = 'shared'")?;
    queue.put_with(&"theirs".to_owned(), &PutOptions::new().priority(1))?;
    queue.put_with(&"later".to_owned(), &PutOptions::new().schedule_at("1d"))?;
    let ended = running.wait_with_output()?;
    assert_eq!(status(&ended), 0, "{}", stderr(&ended));
    assert!(stderr(&ended).contains("1 job requeued"), "{}", stderr(&ended));
    let got = on(&database, &["get", "shared", "--count", "10"]).output()?;
    assert_eq!(stdout(&got), "\"theirs\"\n");
    wait_until(
        &database,
        "SELECT count(*) FROM pq.queue WHERE q_name = 'shared' AND data::text = '\"later\"'",
    )
}

#[test]
fn hostile_names_of_schema_table_and_queue() -> Outcome {
    let database = Server::shared()?.database()?;
    let names = ["--schema", "My \"own\"; --", "--table", "tab'le $names$"];
    assert_eq!(status(&on(&database, &[&["migrate"][..], &names].concat()).output()?), 0);
    let words = ["bench", "que\"ue'; 🍎\u{1b}[2J", "--jobs", "20"];
    let before = everything(&database, "My \"own\"; --")?;
    let shown = on(&database, &[&words[..], &names].concat()).output()?;
    assert_eq!(status(&shown), 0, "{}", stderr(&shown));
    assert!(!stdout(&shown).contains('\u{1b}') && !stderr(&shown).contains('\u{1b}'));
    let json = on(&database, &[&words[..], &["--json"], &names].concat()).output()?;
    assert_eq!(figures(&stdout(&json))?, 8, "{}", stderr(&json));
    assert_eq!(everything(&database, "My \"own\"; --")?, before);
    Ok(())
}

#[test]
fn invalid_calls_have_their_exit_statuses() -> Outcome {
    let database = Server::shared()?.database()?;
    let bare = on(&database, &["bench"]).output()?;
    assert_eq!(status(&bare), 4);
    assert!(stderr(&bare).contains("pq migrate"), "{}", stderr(&bare));
    let nowhere = pq(&["bench"]).env("PQ_URL", "postgres://bob:s3cret@127.0.0.1:1/shop").output()?;
    assert_eq!(status(&nowhere), 3);
    assert!(!stderr(&nowhere).contains("s3cret"));
    let long = "x".repeat(1025);
    for words in
        [&["--jobs", "0"][..], &["--threads", "0"], &["--payload", "15"], &["--payload", "1048577"], &[&long]]
    {
        let refused = on(&database, &[&["bench"][..], words].concat()).output()?;
        assert_eq!(status(&refused), 2, "{words:?}: {}", stderr(&refused));
    }
    Ok(())
}
