//! The schema that the migrations create, and that a revert leaves nothing.

mod catalog;

use std::error::Error;
use std::process::{Command, Stdio};

use catalog::catalog;
use diesel::connection::SimpleConnection;
use diesel::migration::MigrationVersion;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use diesel_migrations::{FileBasedMigrations, MigrationHarness};
use pq_diesel::Pq;
use pq_diesel::admin::MIGRATIONS;
use pq_testing::{Database, Server};
use serde_json::{Value, json};

type Outcome = Result<(), Box<dyn Error>>;

/// The versions of all migrations, the newest first.
const VERSIONS: [&str; 1] = ["0001"];

/// Names that are safe only inside their quotes. Three of them have the maximum length.
const HOSTILE: [(&str, &str); 4] = [
    ("The \"own\" schema's", "Tab$names$le; --"),
    ("$names0$", "$function$ 🍎 %s"),
    ("x", "жжжжжжжжжжжжжжжжжжжжжжжжжжжжжжжy"),
    (
        "🍎🍎🍎🍎🍎🍎🍎🍎🍎🍎🍎🍎🍎🍎🍎\" '",
        "\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\" of as many bytes as a name has",
    ),
];

fn database() -> Result<Database, pq_testing::Error> {
    Server::shared()?.database()
}

fn named(database: &Database, schema: &str, table: &str) -> Result<Pq, pq_diesel::Error> {
    Pq::builder().url(database.url()).schema(schema).table(table).build()
}

#[test]
fn up_creates_exactly_the_committed_schema() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    named(&database, "pq", "queue")?.migrate_on(&mut conn)?;
    let made = catalog(&mut conn)?;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/schema.txt");
    if std::env::var_os("PQ_UPDATE_SCHEMA").is_some() {
        std::fs::write(path, &made)?;
    }
    let committed = std::fs::read_to_string(path)?;
    assert_eq!(
        made, committed,
        "docs/schema.txt differs from the schema that the migrations create; PQ_UPDATE_SCHEMA=1 updates it"
    );
    Ok(())
}

#[test]
fn up_and_down_leave_no_trace_for_any_names() -> Outcome {
    for (schema, table) in [("pq", "queue")].into_iter().chain(HOSTILE) {
        let database = database()?;
        let mut conn = database.connect()?;
        let pq = named(&database, schema, table)?;
        let before = catalog(&mut conn)?;
        pq.migrate_on(&mut conn)?;
        let made = catalog(&mut conn)?;
        assert_ne!(before, made);
        pq.revert_migrations_on(&mut conn)?;
        assert_eq!(catalog(&mut conn)?, before, "a revert left objects of {schema}.{table}");
        pq.migrate_on(&mut conn)?;
        assert_eq!(catalog(&mut conn)?, made);
        let queue = pq.queue::<Value>("apples")?;
        queue.on(&mut conn).put(&json!(1))?;
        assert!(queue.on(&mut conn).get()?.is_some());
    }
    Ok(())
}

#[test]
fn a_dry_run_shows_the_sql_and_changes_nothing() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let pq = named(&database, "pq", "queue")?;
    let before = catalog(&mut conn)?;
    let pending = pq.pending_migrations_on(&mut conn)?;
    assert_eq!(pending.iter().map(|one| one.version.as_str()).collect::<Vec<_>>(), VERSIONS);
    assert!(pending[0].sql.contains("CREATE TABLE \"pq\".\"queue\""));
    assert_eq!(catalog(&mut conn)?, before);
    pq.migrate_on(&mut conn)?;
    assert!(pq.pending_migrations_on(&mut conn)?.is_empty());
    Ok(())
}

#[test]
fn migrating_down_to_zero_leaves_no_trace_and_needs_a_known_version() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let pq = named(&database, "pq", "queue")?;
    let before = catalog(&mut conn)?;
    pq.migrate_on(&mut conn)?;
    let error = pq.migrate_down_to_on(&mut conn, "20260101").err().map(|error| error.to_string());
    assert!(error.is_some_and(|error| error.contains("\"20260101\"") && error.contains(VERSIONS[0])));
    assert_eq!(pq.migrations_after_on(&mut conn, "0")?, VERSIONS);
    assert_eq!(pq.migrate_down_to_on(&mut conn, "0")?, VERSIONS);
    assert_eq!(catalog(&mut conn)?, before);
    Ok(())
}

#[test]
fn a_table_that_lacks_a_part_is_reported_as_not_migrated() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let pq = named(&database, "pq", "queue")?;
    pq.migrate_on(&mut conn)?;
    conn.batch_execute("DROP TABLE pq.queue_controls")?;
    let error = pq.queue::<u8>("apples")?.on(&mut conn).get().err().map(|error| error.to_string());
    assert!(error.is_some_and(|error| error.contains("is out of date") && error.contains("pq migrate")));
    Ok(())
}

#[test]
fn the_printed_sql_creates_what_migrate_creates() -> Outcome {
    for (schema, table) in [("pq", "queue")].into_iter().chain(HOSTILE) {
        let (one, two) = (database()?, database()?);
        let (mut by_sql, mut by_library) = (one.connect()?, two.connect()?);
        let pq = named(&one, schema, table)?;
        by_sql.batch_execute(&pq.schema_sql())?;
        pq.migrate_on(&mut by_library)?;
        assert_eq!(catalog(&mut by_sql)?, catalog(&mut by_library)?);
        // The library finds nothing to do.
        pq.migrate_on(&mut by_sql)?;
    }
    Ok(())
}

#[test]
fn an_existing_schema_stays_with_everything_in_it() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    conn.batch_execute("CREATE SCHEMA app; CREATE SCHEMA bare; CREATE TABLE app.mine (id int)")?;
    let before = catalog(&mut conn)?;
    for schema in ["app", "bare", "public"] {
        let pq = named(&database, schema, "queue")?;
        pq.migrate_on(&mut conn)?;
        pq.revert_migrations_on(&mut conn)?;
        assert_eq!(catalog(&mut conn)?, before);
    }
    Ok(())
}

#[test]
fn reverting_one_table_leaves_another_of_the_same_schema() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let (one, two) = (named(&database, "pq", "one")?, named(&database, "pq", "two")?);
    one.migrate_on(&mut conn)?;
    let alone = catalog(&mut conn)?;
    two.migrate_on(&mut conn)?;
    two.queue::<u8>("apples")?.on(&mut conn).put(&2)?;
    assert!(one.queue::<u8>("apples")?.on(&mut conn).get()?.is_none(), "one table took the other's job");
    two.revert_migrations_on(&mut conn)?;
    assert_eq!(catalog(&mut conn)?, alone);
    one.queue::<u8>("apples")?.on(&mut conn).put(&1)?;
    Ok(())
}

/// Not a test: the entry point of the processes below.
#[test]
fn migrating_process() -> Outcome {
    if let Ok(url) = std::env::var("PQ_TEST_MIGRATE_ONE") {
        let mut ready = String::new();
        std::io::stdin().read_line(&mut ready)?;
        Pq::builder().url(&url).build()?.migrate()?;
    }
    Ok(())
}

#[test]
fn thirty_two_processes_can_migrate_at_once() -> Outcome {
    let database = database()?;
    let children: Vec<_> = (0..32)
        .map(|_| {
            Command::new(std::env::current_exe()?)
                .args(["--exact", "migrating_process"])
                .env("PQ_TEST_MIGRATE_ONE", database.url())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
        })
        .collect::<Result<_, _>>()?;
    // Each process waits for the end of its input, so that all begin together.
    let mut children = children;
    children.iter_mut().for_each(|child| drop(child.stdin.take()));
    for child in children {
        let ended = child.wait_with_output()?;
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
    }
    let mut conn = database.connect()?;
    let versions: Vec<String> =
        diesel::dsl::sql::<Text>("SELECT version FROM pq.queue_migrations").load(&mut conn)?;
    assert_eq!(versions, VERSIONS);
    Ok(())
}

#[test]
fn a_table_that_pq_did_not_create_is_refused_and_unchanged() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    // The table as Python's pq creates it.
    conn.batch_execute(
        "CREATE SCHEMA pq;
         CREATE TABLE pq.queue (
             id bigserial PRIMARY KEY, enqueued_at timestamptz NOT NULL DEFAULT current_timestamp,
             dequeued_at timestamptz, expected_at timestamptz, schedule_at timestamptz,
             q_name text NOT NULL CHECK (length(q_name) > 0), data json NOT NULL);
         INSERT INTO pq.queue (q_name, data) VALUES ('apples', '1')",
    )?;
    let before = catalog(&mut conn)?;
    let refused = named(&database, "pq", "queue")?.migrate_on(&mut conn).map_err(|error| error.to_string());
    assert!(
        refused.is_err_and(|reason| reason.contains("pq.queue") && reason.contains("was not created by pq"))
    );
    assert!(named(&database, "pq", "queue")?.revert_migrations_on(&mut conn).is_err());
    assert_eq!(catalog(&mut conn)?, before);
    let jobs: i64 = diesel::dsl::sql::<BigInt>("SELECT count(*) FROM pq.queue").get_result(&mut conn)?;
    assert_eq!(jobs, 1);
    Ok(())
}

/// The steps of `diesel migration run`, `redo` and `revert`: the diesel CLI calls the same functions of
/// diesel_migrations.
#[test]
fn the_diesel_cli_runs_redoes_and_reverts_the_files() -> Outcome {
    const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations");
    let database = database()?;
    let mut conn = database.connect()?;
    let files = FileBasedMigrations::from_path(PATH)?;
    let versions = |run: Vec<MigrationVersion<'_>>| run.iter().map(ToString::to_string).collect::<Vec<_>>();
    let run = |conn: &mut PgConnection| conn.run_pending_migrations(files.clone()).map(versions);
    let revert = |conn: &mut PgConnection| conn.revert_all_migrations(files.clone()).map(versions);
    let failed = |error: Box<dyn Error + Send + Sync>| error.to_string();
    // The harness creates the table in which it records versions, and keeps it.
    conn.applied_migrations().map_err(failed)?;
    let before = catalog(&mut conn)?;
    assert_eq!(run(&mut conn).map_err(failed)?, VERSIONS);
    let made = catalog(&mut conn)?;
    assert_eq!(revert(&mut conn).map_err(failed)?, VERSIONS);
    assert_eq!(catalog(&mut conn)?, before, "a revert left objects");
    assert_eq!(run(&mut conn).map_err(failed)?, VERSIONS);
    assert_eq!(catalog(&mut conn)?, made);
    // The library creates the same, and a table of versions.
    let by_library = self::database()?;
    let mut conn = by_library.connect()?;
    named(&by_library, "pq", "queue")?.migrate_on(&mut conn)?;
    conn.batch_execute("DROP TABLE pq.queue_migrations")?;
    conn.applied_migrations().map_err(failed)?;
    assert_eq!(catalog(&mut conn)?, made);
    Ok(())
}

#[test]
fn a_table_created_by_diesels_harness_is_adopted() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    conn.run_pending_migrations(MIGRATIONS).map_err(|error| error.to_string())?;
    let pq = named(&database, "pq", "queue")?;
    pq.migrate_on(&mut conn)?;
    pq.queue::<u8>("apples")?.on(&mut conn).put(&1)?;
    pq.revert_migrations_on(&mut conn)?;
    Ok(())
}

#[test]
fn migrating_leaves_the_session_unchanged() -> Outcome {
    // The settings of a session, its advisory locks, its role and its search path.
    const SESSION: &str = "
        SELECT concat_ws('; ', current_schemas(true), current_user,
            (SELECT string_agg(name || '=' || setting, ', ' ORDER BY name)
                FROM pg_settings WHERE source = 'session'),
            (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()))";
    let database = database()?;
    let mut conn = database.connect()?;
    let pq = named(&database, "The \"own\" schema's", "Work")?;
    conn.batch_execute("CREATE SCHEMA mine; SET search_path = mine, public; SET timezone = 'Asia/Tokyo'")?;
    let session = |conn: &mut PgConnection| diesel::dsl::sql::<Text>(SESSION).get_result::<String>(conn);
    let before = session(&mut conn)?;
    for _ in 0..2 {
        pq.migrate_on(&mut conn)?;
        assert_eq!(session(&mut conn)?, before);
    }
    conn.transaction(|conn| {
        let inside = diesel::dsl::sql::<Text>("SELECT current_setting('search_path')");
        let before: String = inside.clone().get_result(conn)?;
        pq.revert_migrations_on(conn)?;
        assert_eq!(inside.get_result::<String>(conn)?, before);
        pq.migrate_on(conn)?;
        pq.revert_migrations_on(conn)
    })?;
    assert_eq!(session(&mut conn)?, before);
    Ok(())
}

#[test]
fn a_revert_that_would_break_a_view_changes_nothing() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let pq = named(&database, "pq", "queue")?;
    pq.migrate_on(&mut conn)?;
    conn.batch_execute("CREATE VIEW mine AS SELECT id FROM pq.queue")?;
    let before = catalog(&mut conn)?;
    assert!(pq.revert_migrations_on(&mut conn).is_err(), "the revert dropped a view");
    assert_eq!(catalog(&mut conn)?, before);
    pq.queue::<u8>("apples")?.on(&mut conn).put(&1)?;
    Ok(())
}

#[test]
fn migrating_inside_the_callers_transaction_rolls_back_with_it() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let before = catalog(&mut conn)?;
    let rolled_back = conn.transaction(|conn| {
        named(&database, "pq", "queue")?.migrate_on(conn)?;
        Err::<(), pq_diesel::Error>(diesel::result::Error::RollbackTransaction.into())
    });
    assert!(rolled_back.is_err());
    assert_eq!(catalog(&mut conn)?, before);
    Ok(())
}

#[test]
fn the_trigger_calls_no_function_of_another_schema() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    let pq = named(&database, "pq", "queue")?;
    pq.migrate_on(&mut conn)?;
    conn.batch_execute(
        "CREATE SCHEMA evil;
         CREATE TABLE evil.called (what text);
         CREATE FUNCTION evil.pg_notify(text, text) RETURNS void LANGUAGE sql
             AS $$ INSERT INTO evil.called VALUES ('pg_notify') $$;
         CREATE FUNCTION evil.md5(text) RETURNS text LANGUAGE sql
             AS $$ INSERT INTO evil.called VALUES ('md5') RETURNING what $$;
         CREATE FUNCTION pg_temp.octet_length(text) RETURNS int LANGUAGE sql
             AS $$ INSERT INTO evil.called VALUES ('octet_length') RETURNING 1 $$;
         CREATE FUNCTION evil.later(int, int) RETURNS boolean LANGUAGE sql
             AS $$ INSERT INTO evil.called VALUES ('>') RETURNING true $$;
         CREATE OPERATOR evil.> (LEFTARG = int, RIGHTARG = int, FUNCTION = evil.later);
         CREATE TEMP TABLE put (q_name text);
         SET search_path = evil, pg_catalog, pg_temp",
    )?;
    pq.queue::<u8>(&"x".repeat(70))?.on(&mut conn).put(&1)?;
    let called: i64 = diesel::dsl::sql::<BigInt>("SELECT count(*) FROM evil.called").get_result(&mut conn)?;
    assert_eq!(called, 0);
    Ok(())
}

#[test]
fn a_renamed_schema_is_reported_as_not_migrated() -> Outcome {
    let database = database()?;
    let pq = Pq::connect(database.url())?;
    pq.migrate()?;
    let queue = pq.queue::<serde_json::Value>("apples")?;
    // The second round uses statements that were prepared before the schema was renamed.
    for used in [false, true] {
        if used {
            database.connect()?.batch_execute("ALTER SCHEMA renamed RENAME TO pq")?;
            queue.put(&serde_json::json!(1))?;
            queue.get(pq_diesel::Wait::No)?;
            queue.counts()?;
        }
        database.connect()?.batch_execute("ALTER SCHEMA pq RENAME TO renamed")?;
        let pq = if used { pq.clone() } else { Pq::connect(database.url())? };
        let queue = pq.queue::<serde_json::Value>("apples")?;
        for refused in [
            queue.put(&serde_json::json!(1)).map(drop),
            queue.get(pq_diesel::Wait::No).map(drop),
            queue.lease(1, std::time::Duration::from_secs(9), pq_diesel::Wait::No).map(drop),
            queue.counts().map(drop),
            pq.maintain(&pq_diesel::Retention::default()).map(drop),
        ] {
            let named = refused.as_ref().is_err_and(|error| error.to_string().contains("pq migrate"));
            assert!(named && refused.as_ref().is_err_and(pq_diesel::Error::is_not_migrated), "{refused:?}");
        }
    }
    Ok(())
}
