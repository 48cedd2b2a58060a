//! The runner with synthetic migrations, and the files of the real ones.

use std::error::Error;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{Integer, Text};
use pq_testing::{Database, Server};

use super::names::substitute;
use super::runner::{self, Runner};
use super::{ALL, Migration};
use crate::table::Table;

type Outcome = Result<(), Box<dyn Error>>;

/// Three migrations that build on each other.
const THREE: &[Migration] = &[
    Migration {
        version: "0001",
        up: "CREATE SCHEMA \"pq\"; CREATE TABLE \"pq\".\"queue\" (id bigint CONSTRAINT \"queue_pkey\" PRIMARY KEY);",
        down: "DROP TABLE \"pq\".\"queue\"; DROP SCHEMA \"pq\";",
    },
    Migration {
        version: "0002",
        up: "DO $names$ BEGIN ALTER TABLE \"pq\".\"queue\" ADD COLUMN note text; END $names$;",
        down: "ALTER TABLE \"pq\".\"queue\" DROP COLUMN note;",
    },
    Migration {
        version: "0003",
        up: "CREATE INDEX \"queue_note\" ON \"pq\".\"queue\" (note);",
        down: "DROP INDEX \"pq\".\"queue_note\";",
    },
];

/// Names that are safe only inside their quotes and if they are substituted in a single pass.
const NAMES: [(&str, &str); 4] = [
    ("pq", "queue"),
    ("The \"own\" schema's", "Tab$names$le; --"),
    ("$names0$", "$function$ $3 {count} {leases}"),
    ("queue", "pq"),
];

fn database() -> Result<(Database, PgConnection), pq_testing::Error> {
    let database = Server::shared()?.database()?;
    let conn = database.connect()?;
    Ok((database, conn))
}

fn versions(pending: &[super::Pending]) -> Vec<&str> {
    pending.iter().map(|one| one.version.as_str()).collect()
}

/// Returns the columns and indexes of the schema, in order.
fn objects(conn: &mut PgConnection, table: &Table) -> Result<Vec<String>, diesel::result::Error> {
    diesel::dsl::sql::<Text>(
        "SELECT relname || coalesce('.' || attname, '') FROM pg_class
        JOIN pg_namespace ON relnamespace = pg_namespace.oid
        LEFT JOIN pg_attribute ON attrelid = pg_class.oid AND relkind = 'r' AND attnum > 0 AND NOT attisdropped
        WHERE nspname = ",
    )
    .bind::<Text, _>(table.schema.as_str())
    .sql(" ORDER BY 1")
    .load(conn)
}

#[test]
fn migrations_revert_one_by_one_and_run_again() -> Outcome {
    for (schema, name) in NAMES {
        let (_database, mut conn) = database()?;
        let table = &Table::new(schema, name)?;
        let mut before = vec![objects(&mut conn, table)?];
        for count in 1..=THREE.len() {
            Runner::new(&mut conn, table, &THREE[..count]).migrate()?;
            before.push(objects(&mut conn, table)?);
        }
        for (kept, target) in [(2, "0002"), (1, "0001"), (0, "0")] {
            let mut runner = Runner::new(&mut conn, table, THREE);
            assert_eq!(runner.applied_after(target)?, [THREE[kept].version]);
            assert_eq!(runner.revert_after(target)?, [THREE[kept].version]);
            let pending = runner.pending()?;
            assert_eq!(versions(&pending), THREE[kept..].iter().map(|one| one.version).collect::<Vec<_>>());
            assert_eq!(objects(&mut conn, table)?, before[kept]);
        }
        let mut runner = Runner::new(&mut conn, table, THREE);
        runner.migrate()?;
        assert_eq!(runner.revert_after("0001")?, ["0003", "0002"]);
        runner.migrate()?;
        assert!(runner.pending()?.is_empty());
        assert_eq!(objects(&mut conn, table)?, before[3]);
    }
    Ok(())
}

#[test]
fn pending_migrations_show_their_sql_and_change_nothing() -> Outcome {
    let (_database, mut conn) = database()?;
    let table = &Table::new("a", "b")?;
    Runner::new(&mut conn, table, &THREE[..1]).migrate()?;
    let before = objects(&mut conn, table)?;
    let pending = Runner::new(&mut conn, table, THREE).pending()?;
    assert_eq!(versions(&pending), ["0002", "0003"]);
    assert_eq!(pending[1].sql, "CREATE INDEX \"b_note\" ON \"a\".\"b\" (note);");
    assert_eq!(objects(&mut conn, table)?, before);
    Ok(())
}

#[test]
fn a_migration_that_fails_rolls_all_of_them_back() -> Outcome {
    let (_database, mut conn) = database()?;
    let table = &Table::default();
    let fails = [("0001", THREE[0].up), ("0002", "SELECT 1 / 0;")].map(|(version, up)| Migration {
        version,
        up,
        down: "",
    });
    assert!(Runner::new(&mut conn, table, &fails).migrate().is_err());
    assert!(objects(&mut conn, table)?.is_empty());
    Ok(())
}

#[test]
fn an_unknown_version_is_refused() -> Outcome {
    let (_database, mut conn) = database()?;
    let table = &Table::default();
    let mut runner = Runner::new(&mut conn, table, THREE);
    runner.migrate()?;
    let error = runner.revert_after("0004").err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("\"0004\"") && error.contains("0001, 0002, 0003"), "{error}");
    assert!(runner.applied_after("2").is_err());
    Ok(())
}

#[test]
fn migrations_of_a_newer_version_are_reported_and_not_reverted() -> Outcome {
    let (_database, mut conn) = database()?;
    let table = &Table::default();
    Runner::new(&mut conn, table, THREE).migrate()?;
    let mut older = Runner::new(&mut conn, table, &THREE[..2]);
    older.migrate()?;
    let status = older.status()?;
    assert!(status.pending.is_empty());
    assert_eq!(status.unknown, ["0003"]);
    let error = older.revert_after("0").err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("newer version of pq ran migration 0003"), "{error}");
    assert_eq!(older.applied_after("0")?, ["0003", "0002", "0001"]);
    Ok(())
}

#[test]
fn a_table_that_diesel_migrated_in_part_is_adopted_and_completed() -> Outcome {
    let (_database, mut conn) = database()?;
    let table = &Table::default();
    conn.batch_execute(
        "CREATE TABLE public.__diesel_schema_migrations (version varchar(50) PRIMARY KEY);
         INSERT INTO public.__diesel_schema_migrations VALUES ('20250101000000'), ('0001')",
    )?;
    conn.batch_execute(THREE[0].up)?;
    let mut runner = Runner::new(&mut conn, table, THREE);
    assert_eq!(runner.status()?.pending, ["0002", "0003"]);
    assert_eq!(versions(&runner.pending()?), ["0002", "0003"]);
    runner.migrate()?;
    assert!(runner.status()?.pending.is_empty());
    assert_eq!(runner.revert_after("0")?, ["0003", "0002", "0001"]);
    Ok(())
}

#[test]
fn the_script_runs_and_records_every_migration() -> Outcome {
    for (schema, name) in NAMES {
        let (_database, mut conn) = database()?;
        let table = &Table::new(schema, name)?;
        conn.batch_execute(&runner::script(table, THREE))?;
        assert!(Runner::new(&mut conn, table, THREE).status()?.pending.is_empty());
        assert_eq!(Runner::new(&mut conn, table, THREE).revert_after("0")?, ["0003", "0002", "0001"]);
    }
    Ok(())
}

#[test]
fn every_folder_is_a_migration() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
    let mut folders: Vec<String> = std::fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter_map(|folder| Some(folder.split_once('_')?.0.to_owned()))
        .collect();
    folders.sort();
    let versions: Vec<&str> = ALL.iter().map(|migration| migration.version).collect();
    assert_eq!(versions, folders);
}

#[test]
fn the_files_are_the_sql_of_the_default_names() {
    for migration in ALL {
        for sql in [migration.up, migration.down] {
            assert_eq!(substitute(sql, &Table::default()).replace("$names0$", "$names$"), sql);
        }
    }
}

#[test]
fn hostile_names_stay_inside_their_quotes() -> Outcome {
    let table = Table::new("a\"; DROP $names0$", "b'$function$ %")?;
    let sql = substitute(ALL[0].up, &table);
    assert!(sql.contains("DO $names1$") && sql.contains("CREATE SCHEMA \"a\"\"; DROP $names0$\""));
    Ok(())
}

#[test]
fn a_migration_that_waits_for_a_transaction_stops_no_other_session() -> Outcome {
    let (database, mut conn) = database()?;
    let (table, mut reader) = (&Table::default(), database.connect()?);
    Runner::new(&mut conn, table, &THREE[..1]).migrate()?;
    let mut long = database.connect()?;
    long.batch_execute("BEGIN; SELECT FROM pq.queue")?;
    reader.batch_execute("SET statement_timeout TO '20s'")?;
    std::thread::scope(|threads| -> Outcome {
        let migrates = threads.spawn(|| Runner::new(&mut conn, table, THREE).migrate());
        let waiting = "SELECT (count(*) > 0)::int FROM pg_locks WHERE NOT granted AND locktype = 'relation'";
        for _ in 0..3 {
            while diesel::dsl::sql::<Integer>(waiting).get_result::<i32>(&mut reader)? == 0 {
                assert!(!migrates.is_finished(), "the migration waits for the transaction");
            }
            // The migration's lock waits, so this queues behind it until the migration's try ends.
            reader.batch_execute("INSERT INTO pq.queue SELECT coalesce(max(id), 0) + 1 FROM pq.queue")?;
        }
        long.batch_execute("COMMIT")?;
        migrates.join().map_err(|_| "the migration panicked")??;
        Ok(())
    })?;
    assert!(Runner::new(&mut reader, table, THREE).pending()?.is_empty());
    Ok(())
}

#[test]
fn a_migration_gives_up_when_the_tables_stay_in_use() -> Outcome {
    let (database, mut conn) = database()?;
    let table = &Table::default();
    Runner::new(&mut conn, table, &THREE[..1]).migrate()?;
    let mut long = database.connect()?;
    long.batch_execute("BEGIN; SELECT FROM pq.queue")?;
    let before = objects(&mut conn, table)?;
    let mut runner = Runner::new(&mut conn, table, THREE);
    runner.lock_within = Duration::from_millis(1);
    for done in [runner.migrate().map(drop), runner.revert_after("0").map(drop)] {
        let error = done.map_err(|error| error.to_string());
        assert!(error.clone().is_err_and(|error| error.contains("end their transactions")), "{error:?}");
    }
    assert_eq!(objects(&mut conn, table)?, before);
    // A dry run and a call with nothing to do need no lock.
    assert_eq!(versions(&Runner::new(&mut conn, table, THREE).pending()?), ["0002", "0003"]);
    Runner::new(&mut conn, table, &THREE[..1]).migrate()?;
    Ok(())
}
