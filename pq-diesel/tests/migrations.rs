//! What the migrations make, and that nothing else is left of them.

mod catalog;

use std::error::Error;
use std::process::{Command, Stdio};

use catalog::catalog;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_migrations::MigrationHarness;
use pq_diesel::{MIGRATIONS, Pq};
use pq_testing::{Database, Server};
use serde_json::{Value, json};

type Outcome = Result<(), Box<dyn Error>>;

/// Names that must stay inside their quotes, one of them as long as a name can be.
const HOSTILE: [(&str, &str); 3] = [
    ("The \"own\" schema's", "Tab$names$le; --"),
    ("$names0$", "$function$ 🍎 %s"),
    ("x", "жжжжжжжжжжжжжжжжжжжжжжжжжжжжжжж"),
];

fn database() -> Result<Database, pq_testing::Error> {
    Server::shared()?.database()
}

fn named(database: &Database, schema: &str, table: &str) -> Result<Pq, pq_diesel::Error> {
    Pq::builder().url(database.url()).schema(schema).table(table).build()
}

#[test]
fn up_makes_exactly_what_the_committed_dump_says() -> Outcome {
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
        "docs/schema.txt is not what the migrations make; PQ_UPDATE_SCHEMA=1 writes it anew"
    );
    Ok(())
}

#[test]
fn up_down_and_up_again_leaves_no_trace_whatever_the_names() -> Outcome {
    for (schema, table) in [("pq", "queue")].into_iter().chain(HOSTILE) {
        let database = database()?;
        let mut conn = database.connect()?;
        let pq = named(&database, schema, table)?;
        let before = catalog(&mut conn)?;
        pq.migrate_on(&mut conn)?;
        let made = catalog(&mut conn)?;
        assert_ne!(before, made);
        pq.revert_migrations_on(&mut conn)?;
        assert_eq!(catalog(&mut conn)?, before, "down left something of {schema}.{table}");
        pq.migrate_on(&mut conn)?;
        assert_eq!(catalog(&mut conn)?, made);
        let queue = pq.queue::<Value>("apples")?;
        queue.on(&mut conn).put(&json!(1))?;
        assert!(queue.on(&mut conn).get()?.is_some());
    }
    Ok(())
}

#[test]
fn the_printed_sql_makes_what_migrate_makes() -> Outcome {
    for (schema, table) in [("pq", "queue")].into_iter().chain(HOSTILE) {
        let (one, two) = (database()?, database()?);
        let (mut by_sql, mut by_library) = (one.connect()?, two.connect()?);
        let pq = named(&one, schema, table)?;
        by_sql.batch_execute(&pq.schema_sql())?;
        pq.migrate_on(&mut by_library)?;
        assert_eq!(catalog(&mut by_sql)?, catalog(&mut by_library)?);
        // And the library takes it for done.
        pq.migrate_on(&mut by_sql)?;
    }
    Ok(())
}

#[test]
fn a_schema_that_was_there_stays_with_all_that_is_in_it() -> Outcome {
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
fn of_two_tables_in_one_schema_one_goes_and_the_other_works_on() -> Outcome {
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

/// Not a test of its own: what each of the processes below runs.
#[test]
fn one_of_many_processes() -> Outcome {
    if let Ok(url) = std::env::var("PQ_TEST_MIGRATE_ONE") {
        let mut ready = String::new();
        std::io::stdin().read_line(&mut ready)?;
        Pq::builder().url(&url).build()?.migrate()?;
    }
    Ok(())
}

#[test]
fn thirty_two_processes_that_migrate_at_once_all_succeed() -> Outcome {
    let database = database()?;
    let children: Vec<_> = (0..32)
        .map(|_| {
            Command::new(std::env::current_exe()?)
                .args(["--exact", "one_of_many_processes"])
                .env("PQ_TEST_MIGRATE_ONE", database.url())
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
        })
        .collect::<Result<_, _>>()?;
    // Each waits for its input to end, so that they begin together.
    let mut children = children;
    children.iter_mut().for_each(|child| drop(child.stdin.take()));
    for mut child in children {
        assert!(child.wait()?.success());
    }
    let mut conn = database.connect()?;
    let versions: Vec<String> =
        diesel::dsl::sql::<Text>("SELECT version FROM pq.queue_migrations").load(&mut conn)?;
    assert_eq!(versions, ["20261121000000"]);
    Ok(())
}

#[test]
fn a_table_that_pq_did_not_make_is_refused_and_left_as_it_is() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    conn.batch_execute("CREATE SCHEMA pq; CREATE TABLE pq.queue (id bigserial PRIMARY KEY, q_name text)")?;
    let before = catalog(&mut conn)?;
    let refused = named(&database, "pq", "queue")?.migrate_on(&mut conn).map_err(|error| error.to_string());
    assert!(refused.is_err_and(|why| why.contains("pq.queue") && why.contains("did not make")));
    assert_eq!(catalog(&mut conn)?, before);
    Ok(())
}

#[test]
fn what_diesels_own_harness_made_is_adopted() -> Outcome {
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
fn the_trigger_calls_nothing_of_another_schema() -> Outcome {
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
         CREATE TEMP TABLE put (q_name text);
         SET search_path = evil, pg_catalog, pg_temp",
    )?;
    pq.queue::<u8>(&"x".repeat(70))?.on(&mut conn).put(&1)?;
    let called: i64 = diesel::dsl::sql::<diesel::sql_types::BigInt>("SELECT count(*) FROM evil.called")
        .get_result(&mut conn)?;
    assert_eq!(called, 0);
    Ok(())
}
