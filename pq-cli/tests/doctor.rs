//! `pq doctor` on a healthy database and with planted faults.

mod common;

use std::error::Error;
use std::process::Output;
use std::sync::OnceLock;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Text};
use pq_testing::{Database, Kind, Options, Server};
use serde_json::Value;

use self::common::{Outcome, handle, migrated, status, stdout};

/// A private server with durable settings and prepared transactions, or `None` if it cannot be started here.
fn durable_server() -> Option<&'static Server> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    let start = || {
        let options = Options::durable().kind(Kind::Binaries).setting("max_prepared_transactions", "10");
        Server::start(&options).ok()
    };
    SERVER.get_or_init(start).as_ref()
}

/// The durable server, or the shared one, whose settings are not durable and must not be tested.
fn server() -> Result<&'static Server, pq_testing::Error> {
    durable_server().map_or_else(Server::shared, Ok)
}

fn pq(url: &str, words: &[&str]) -> Result<Output, std::io::Error> {
    common::pq(words).env("PQ_URL", url).output()
}

/// A database after `pq migrate`, on the durable server if there is one. Starting that takes seconds.
fn migrated_durably() -> Result<Database, Box<dyn Error>> {
    let database = server()?.database()?;
    handle(&database)?.migrate()?;
    Ok(database)
}

fn run(database: &Database, sql: &str) -> Outcome {
    Ok(database.connect()?.batch_execute(sql)?)
}

/// The findings of `pq doctor --json`, and its exit status.
struct Found {
    status: i32,
    findings: Vec<Value>,
}

impl Found {
    fn on(url: &str, words: &[&str]) -> Result<Self, Box<dyn Error>> {
        let output = pq(url, &[&["doctor", "--json"], words].concat())?;
        let Ok(Value::Array(findings)) = serde_json::from_str(&stdout(&output)) else {
            return Err(format!("no array: {}", String::from_utf8_lossy(&output.stderr)).into());
        };
        Ok(Self { status: status(&output), findings })
    }

    /// The findings of a check with this level, with their advice.
    fn of(&self, check: &str, level: &str) -> String {
        let of = |finding: &&Value| finding["check"] == check && finding["level"] == level;
        let text = |finding: &Value| {
            format!(
                "{} → {}",
                finding["message"].as_str().unwrap_or_default(),
                finding["advice"].as_str().unwrap_or_default()
            )
        };
        self.findings.iter().filter(of).map(text).collect::<Vec<_>>().join("\n")
    }

    /// The checks with findings that are not ok.
    fn bad(&self) -> Vec<&str> {
        let names = self.findings.iter().filter(|finding| finding["level"] != "ok");
        let mut names: Vec<&str> = names.filter_map(|finding| finding["check"].as_str()).collect();
        names.dedup();
        names
    }
}

#[track_caller]
fn assert_in(text: &str, part: &str) {
    assert!(text.contains(part), "{part:?} is not in {text:?}");
}

#[test]
fn a_healthy_database_is_ok_with_any_names() -> Outcome {
    let database = server()?.database()?;
    let names = [
        ("pq", "queue"),
        ("The \"own\" schema's", "Tab$names$le; --"),
        ("x", "жжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжy"),
        ("public", "pg_class"),
    ];
    for (schema, table) in names {
        let named = ["--schema", schema, "--table", table];
        assert_eq!(status(&pq(database.url(), &[&["migrate"][..], &named].concat())?), 0);
        let found = Found::on(database.url(), &[&["--strict"][..], &named].concat())?;
        if durable_server().is_some() {
            assert_eq!((found.status, found.bad()), (0, vec![]), "{schema}.{table}: {:?}", found.findings);
        }
        assert_in(&found.of("catalog", "ok"), "it is what the migrations created");
        assert_in(&found.of("privileges", "ok"), "can be producer, consumer, reader");
    }
    let left = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'pq_doctor%'";
    let left: i64 = diesel::dsl::sql::<BigInt>(left).get_result(&mut database.connect()?)?;
    assert_eq!(left, 0);
    Ok(())
}

#[test]
fn findings_are_lines_or_objects() -> Outcome {
    let database = migrated()?;
    let shown = pq(database.url(), &["doctor"])?;
    let text = stdout(&shown);
    for check in ["server", "settings", "clock", "old snapshots", "pooler", "plans"] {
        assert_in(&text, &format!("  {check}"));
    }
    assert_in(&text, " failed, ");
    assert!(!text.contains('\u{1b}'), "colours without a terminal");
    let found = Found::on(database.url(), &[])?;
    assert!(found.findings.len() >= 14);
    for finding in &found.findings {
        assert!(finding["check"].is_string() && finding["message"].is_string(), "{finding}");
        assert!(["ok", "skipped", "warning", "failure"].iter().any(|level| finding["level"] == *level));
        assert!(finding["advice"].is_string() || finding["advice"].is_null());
    }
    Ok(())
}

#[test]
fn help_has_the_exit_status_and_invalid_options_are_rejected() -> Outcome {
    let help = pq("", &["doctor", "--help"])?;
    assert_eq!(status(&help), 0);
    assert_in(&stdout(&help), "7    doctor");
    assert_in(&stdout(&help), "Example");
    for age in ["", "soon", "-1m", "2026-11-21T08:00:00Z"] {
        assert_eq!(status(&pq("", &["doctor", &format!("--max-snapshot-age={age}")])?), 2, "{age}");
    }
    Ok(())
}

#[test]
fn a_server_without_the_tables_is_examined() -> Outcome {
    let database = Server::shared()?.database()?;
    let found = Found::on(database.url(), &[])?;
    assert_eq!(found.status, 7);
    assert_in(&found.of("migrations", "failure"), "table pq.queue does not exist → run `pq migrate`");
    assert_in(&found.of("server", "ok"), "PostgreSQL");
    assert!(found.of("privileges", "ok").is_empty());
    Ok(())
}

#[test]
fn advice_for_a_changed_table_loses_no_job() -> Outcome {
    let database = migrated()?;
    run(
        &database,
        "INSERT INTO pq.queue (q_name, data) VALUES ('mail', '1');
         ALTER TABLE pq.queue SET UNLOGGED, DISABLE TRIGGER queue_notify;
         ALTER TABLE pq.queue_archive ENABLE ROW LEVEL SECURITY",
    )?;
    let failures = Found::on(database.url(), &[])?.of("catalog", "failure");
    for advice in [
        "ALTER TABLE pq.queue SET LOGGED",
        "ALTER TABLE pq.queue ENABLE TRIGGER queue_notify",
        "ALTER TABLE pq.queue_archive DISABLE ROW LEVEL SECURITY",
    ] {
        assert_in(&failures, advice);
        run(&database, advice)?;
    }
    assert_in(&Found::on(database.url(), &[])?.of("catalog", "ok"), "it is what the migrations created");
    assert_eq!(status(&pq(database.url(), &["get", "mail"])?), 0, "the job is still there");
    Ok(())
}

#[test]
fn rows_that_row_level_security_hides_are_a_failure() -> Outcome {
    let database = migrated()?;
    let role = format!("{}_secured", database.name());
    run(
        &database,
        &format!(
            "CREATE ROLE {role};
             GRANT USAGE ON SCHEMA pq TO {role};
             GRANT SELECT ON ALL TABLES IN SCHEMA pq TO {role};
             ALTER TABLE pq.queue ENABLE ROW LEVEL SECURITY"
        ),
    )?;
    let separator = if database.url().contains('?') { '&' } else { '?' };
    let url = format!("{}{separator}options=-crole%3D{role}", database.url());
    let found = Found::on(&url, &[])?;
    assert_in(&found.of("row-level security", "failure"), "it hides all rows, so the role sees no job");
    run(&database, &format!("DROP OWNED BY {role}; DROP ROLE {role}"))
}

#[test]
fn objects_of_another_owner_and_settings_of_another_role_are_reported() -> Outcome {
    let database = migrated()?;
    let role = format!("{}_owner", database.name());
    run(
        &database,
        &format!(
            "CREATE ROLE {role} LOGIN;
             ALTER ROLE {role} SET default_transaction_isolation TO serializable;
             ALTER TABLE pq.queue_archive OWNER TO {role}"
        ),
    )?;
    let found = Found::on(database.url(), &[])?;
    assert_in(&found.of("owners", "warning"), &format!("pq.queue_archive belongs to {role}"));
    assert_in(&found.of("owners", "warning"), "ALTER TABLE pq.queue_archive OWNER TO");
    let settings = found.of("settings", "warning");
    assert_in(&settings, &format!("default_transaction_isolation is serializable for the role {role}"));
    run(&database, &format!("REASSIGN OWNED BY {role} TO CURRENT_USER; DROP ROLE {role}"))
}

#[test]
fn times_in_the_future_show_that_the_clock_was_set_back() -> Outcome {
    let database = migrated()?;
    run(
        &database,
        "INSERT INTO pq.queue (q_name, data, enqueued_at) VALUES ('mail', '1', now() + interval '1 hour')",
    )?;
    let found = Found::on(database.url(), &[])?;
    assert_in(&found.of("server clock", "failure"), "in the future, so it was set back");
    Ok(())
}

#[test]
fn a_table_that_is_large_for_its_rows_is_bloated() -> Outcome {
    let database = migrated()?;
    // Without vacuum the dead tuples of most rows stay, and become free space that nothing returns.
    run(
        &database,
        "ALTER TABLE pq.queue SET (autovacuum_enabled = off);
         INSERT INTO pq.queue (q_name, data) SELECT 'mail', to_json(repeat(md5(n::text), 30))
         FROM generate_series(1, 50000) AS n;
         DELETE FROM pq.queue WHERE id > 200 AND id < 50000",
    )?;
    run(&database, "VACUUM pq.queue")?;
    run(&database, "ANALYZE pq.queue")?;
    let found = Found::on(database.url(), &[])?;
    assert_in(&found.of("bloat", "warning"), "queue has ");
    Ok(())
}

#[test]
fn an_inactive_slot_that_keeps_log_is_reported() -> Outcome {
    let options = Options::durable().kind(Kind::Binaries).setting("wal_level", "replica");
    let server = Server::start(&options.setting("max_replication_slots", "4"))?;
    let database = server.database()?;
    run(&database, "SELECT pg_create_physical_replication_slot('forgotten', true)")?;
    for _ in 0..3 {
        run(&database, "CREATE TABLE IF NOT EXISTS t (x int); INSERT INTO t VALUES (1)")?;
        run(&database, "SELECT pg_switch_wal()")?;
    }
    let found = Found::on(database.url(), &[])?;
    assert_in(&found.of("replication slots", "warning"), "slot \"forgotten\" keeps");
    Ok(())
}

#[test]
fn a_pending_and_an_unknown_migration_are_reported() -> Outcome {
    let database = migrated()?;
    run(&database, "UPDATE pq.queue_migrations SET version = '9999' WHERE version = '0001'")?;
    let found = Found::on(database.url(), &[])?;
    assert_eq!(found.status, 7);
    assert_in(&found.of("migrations", "failure"), "0001 → run `pq migrate`");
    assert_in(&found.of("migrations", "warning"), "9999");
    assert_in(&found.of("catalog", "skipped"), "migrations are pending");
    Ok(())
}

#[test]
fn a_dropped_index_is_reported_by_catalog_and_plans_and_the_advice_restores_it() -> Outcome {
    let database = migrated()?;
    run(
        &database,
        "INSERT INTO pq.queue (q_name, data) SELECT 'apples', '1' FROM generate_series(1, 20000);
         ANALYZE pq.queue",
    )?;
    let found = Found::on(database.url(), &[])?;
    assert_in(&found.of("plans", "ok"), "use the indexes");
    // Either of the indexes on scheduled jobs is enough to find due jobs.
    for indexes in [&["queue_ready"][..], &["queue_scheduled", "queue_scheduled_ordered"]] {
        for index in indexes {
            run(&database, &format!("DROP INDEX pq.{index}"))?;
        }
        let found = Found::on(database.url(), &[])?;
        assert_eq!(found.status, 7);
        let plans = found.of("plans", "failure");
        // The planner chooses between a full scan and a sort.
        assert!(
            ["full table scan: ", "sort of the whole queue: "].iter().any(|label| plans.contains(label)),
            "{plans}"
        );
        assert_in(&plans, "fast take of 1, fast lease of 1");
        let missing = found.of("catalog", "failure");
        for (index, missing) in indexes.iter().zip(missing.lines()) {
            assert_in(missing, &format!("index {index} is missing"));
            let (_, statement) = missing.split_once(" → ").ok_or("no advice")?;
            run(&database, statement)?;
        }
        let found = Found::on(database.url(), &[])?;
        assert_eq!((found.of("catalog", "failure"), found.of("plans", "failure")), Default::default());
    }
    Ok(())
}

#[test]
fn additions_may_be_ok_and_changes_are_failures() -> Outcome {
    let database = migrated()?;
    run(
        &database,
        "ALTER TABLE pq.queue ADD COLUMN mine text, ADD COLUMN ours int NOT NULL DEFAULT 1;
         CREATE INDEX mine ON pq.queue (mine)",
    )?;
    let found = Found::on(database.url(), &[])?;
    let fine = found.of("catalog", "ok");
    assert_in(&fine, "harmless additions: column queue.mine, column queue.ours, index mine");
    assert_eq!(status(&pq(database.url(), &["get", "apples"])?), 1);

    run(
        &database,
        "CREATE OR REPLACE FUNCTION pq.queue_is_live(job_id bigint, lease_id bigint) RETURNS boolean
             LANGUAGE plpgsql AS 'BEGIN RETURN false; END';
         ALTER TABLE pq.queue ALTER attempt DROP DEFAULT, DISABLE TRIGGER queue_notify, SET UNLOGGED;
         ALTER TABLE pq.queue_archive ADD COLUMN needed int NOT NULL, DROP CONSTRAINT queue_archive_outcome_check;
         CREATE UNIQUE INDEX one_each ON pq.queue (q_name)",
    )?;
    let found = Found::on(database.url(), &[])?;
    assert_eq!(found.status, 7);
    let failures = found.of("catalog", "failure");
    for part in [
        "function queue_is_live(job_id bigint, lease_id bigint) was changed",
        "column queue.attempt was changed: it is integer NOT NULL",
        "table queue was changed: it is kind r persistence u",
        "(which is disabled)",
        "column queue_archive.needed was added and requires a value",
        "constraint queue_archive_outcome_check on queue_archive is missing",
    ] {
        assert_in(&failures, part);
    }
    assert!(!failures.contains("RETURN false"), "the text of a function was printed");
    assert_in(&found.of("catalog", "warning"), "index one_each was added");
    Ok(())
}

#[test]
fn a_session_idle_in_transaction_is_named_without_its_query() -> Outcome {
    let database = migrated()?;
    let mut holder = database.connect()?;
    holder.batch_execute(
        "SET application_name TO 'bell \u{7} ringer'; BEGIN; SELECT pg_current_xact_id(), 's3cret'",
    )?;
    let pid: i32 = diesel::dsl::sql::<Integer>("SELECT pg_backend_pid()").get_result(&mut holder)?;
    let patient = Found::on(database.url(), &[])?;
    assert_eq!(patient.of("old snapshots", "warning"), "");
    let found = Found::on(database.url(), &["--max-snapshot-age", "0s"])?;
    let held = found.of("old snapshots", "warning");
    assert_in(&held, &format!("session {pid} ("));
    assert_in(&held, "ringer, idle in transaction) holds a snapshot");
    assert_in(&held, &format!("pg_terminate_backend({pid})"));
    let shown = pq(database.url(), &["doctor", "--max-snapshot-age", "0s"])?;
    assert!(!stdout(&shown).contains("s3cret") && !stdout(&shown).contains('\u{7}'), "{}", stdout(&shown));
    Ok(())
}

#[test]
fn a_prepared_transaction_is_named_with_the_statement_that_ends_it() -> Outcome {
    let database = migrated_durably()?;
    let allowed = "SELECT current_setting('max_prepared_transactions')";
    if diesel::dsl::sql::<Text>(allowed).get_result::<String>(&mut database.connect()?)? == "0" {
        return Ok(());
    }
    run(&database, "BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'it''s mine'")?;
    let found = Found::on(database.url(), &["--max-snapshot-age", "0s"])?;
    let held = found.of("old snapshots", "warning");
    assert_in(&held, "prepared transaction 'it''s mine' (");
    let (_, end) = held.split_once(", or ").ok_or("no advice")?;
    assert_eq!(end, "ROLLBACK PREPARED 'it''s mine'");
    run(&database, end)?;
    assert_eq!(Found::on(database.url(), &["--max-snapshot-age", "0s"])?.of("old snapshots", "warning"), "");
    Ok(())
}

#[test]
fn missing_privileges_of_a_role_are_reported() -> Outcome {
    let database = migrated()?;
    let role = format!("nobody_{}", database.name());
    run(&database, &format!("CREATE ROLE {role}"))?;
    let mark = if database.url().contains('?') { '&' } else { '?' };
    let url = format!("{}{mark}options=-c%20role%3D{role}", database.url());
    let found = Found::on(&url, &[]);
    run(&database, &format!("GRANT USAGE ON SCHEMA pq TO {role}"))?;
    run(&database, &format!("GRANT SELECT ON ALL TABLES IN SCHEMA pq TO {role}"))?;
    run(&database, &format!("GRANT SELECT ON ALL SEQUENCES IN SCHEMA pq TO {role}"))?;
    let reader = Found::on(&url, &[]);
    run(&database, &format!("DROP OWNED BY {role}; DROP ROLE {role}"))?;
    let (found, reader) = (found?, reader?);
    assert_eq!(found.status, 7);
    assert_in(&found.of("privileges", "failure"), &format!("{role} cannot put, take or read"));
    assert_in(&found.of("privileges", "failure"), "producer lacks USAGE on schema pq and");
    assert_in(&found.of("plans", "skipped"), "permission denied");
    assert_in(&found.of("catalog", "skipped"), "not ");
    assert_eq!(reader.of("privileges", "failure"), "");
    assert_in(
        &reader.of("privileges", "ok"),
        &format!("{role} can be reader (producer lacks INSERT on queue and"),
    );
    Ok(())
}

#[test]
fn sequences_are_reported_before_they_run_out() -> Outcome {
    let database = migrated()?;
    run(&database, "SELECT setval('pq.queue_id_seq', 5000000000000000000)")?;
    let found = Found::on(database.url(), &[])?;
    assert_in(&found.of("sequences", "warning"), "queue_id_seq has used up 54 %");
    run(&database, "SELECT setval('pq.queue_lease_tokens', 9000000000000000000)")?;
    let found = Found::on(database.url(), &[])?;
    assert_in(&found.of("sequences", "failure"), "queue_lease_tokens has used up 98 %");
    assert_eq!(found.status, 7);
    // A sequence that was restarted has given no value yet.
    run(&database, "ALTER SEQUENCE pq.queue_id_seq RESTART WITH 9223372036854775800")?;
    let found = Found::on(database.url(), &[])?;
    assert_in(&found.of("sequences", "failure"), "queue_id_seq has used up 100 %");
    Ok(())
}

#[test]
fn settings_of_the_database_and_of_a_table_are_checked() -> Outcome {
    let database = migrated_durably()?;
    run(
        &database,
        &format!(
            "ALTER DATABASE {0} SET synchronous_commit TO off; ALTER DATABASE {0} SET statement_timeout TO '5s'",
            database.name()
        ),
    )?;
    let found = Found::on(database.url(), &[])?;
    assert_in(&found.of("settings", "warning"), "synchronous_commit is off");
    assert_in(&found.of("settings", "warning"), "statement_timeout is 5000 ms");
    if durable_server().is_some() {
        assert_eq!(found.status, 0, "warnings alone do not fail");
        assert_eq!(Found::on(database.url(), &["--strict"])?.status, 7);
    }
    run(&database, "ALTER TABLE pq.queue SET (autovacuum_enabled = off)")?;
    let found = Found::on(database.url(), &[])?;
    assert_in(&found.of("dead tuples", "failure"), "autovacuum is disabled for queue");
    assert_eq!(found.status, 7);
    Ok(())
}
