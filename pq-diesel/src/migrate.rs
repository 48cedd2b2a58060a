//! The schema's migrations: the files of `migrations/`, for any schema and table.

use diesel::connection::SimpleConnection;
use diesel::migration::{Migration, MigrationMetadata, MigrationName, MigrationSource, MigrationVersion};
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Text};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use crate::Error;
use crate::table::{Ident, Table};

/// The migrations as they stand in the files, for the default schema and table, to be run by an
/// application's own `MigrationHarness` or by `diesel migration run`. They are then noted in diesel's
/// ledger, with the application's own.
///
/// [`crate::Pq::migrate`] is the other way: it keeps a ledger beside the table, so that the versions of the two
/// never mix, and takes any name.
pub const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// A migration's files.
struct Step {
    folder: &'static str,
    up: &'static str,
    down: &'static str,
}

macro_rules! step {
    ($folder:literal) => {
        Step {
            folder: $folder,
            up: include_str!(concat!("../migrations/", $folder, "/up.sql")),
            down: include_str!(concat!("../migrations/", $folder, "/down.sql")),
        }
    };
}

const STEPS: &[Step] = &[
    step!("2026-11-21-000000_queue"),
    step!("2026-11-21-120000_work"),
    step!("2026-11-21-180000_operations"),
    step!("2026-11-21-200000_speed"),
    step!("2026-11-22-000000_takes"),
    step!("2026-11-22-180000_due"),
    step!("2026-11-22-230000_coalescing"),
];

/// One number for all of pq's migrations in a database: those of two tables may make one schema.
const LOCK: i64 = 0x7071_6d69_6772_6174;

/// Creates the table, or brings it up to date, in one transaction. Does nothing where that is done,
/// says nothing, and may be called by any number of processes at once.
///
/// # Errors
///
/// [`Error::Migration`] where a table of this name is there that pq did not make; the database's own.
pub(crate) fn migrate(conn: &mut PgConnection, table: &Table) -> Result<(), Error> {
    let mut ledger = Ledger { conn, table };
    if ledger.has_all()? {
        return Ok(());
    }
    ledger.in_turn(|ledger| {
        ledger.adopt()?;
        ledger.run_pending_migrations(Renamed(table)).map(drop).map_err(failed)
    })
}

/// Undoes all migrations, and with them every job, in one transaction. Nothing of pq is left.
pub(crate) fn revert(conn: &mut PgConnection, table: &Table) -> Result<(), Error> {
    let mut ledger = Ledger { conn, table };
    ledger.in_turn(|ledger| {
        ledger.adopt()?;
        ledger.revert_all_migrations(Renamed(table)).map(drop).map_err(failed)
    })
}

/// A migration that has not run.
#[derive(Clone, Debug)]
pub struct Pending {
    /// Its version.
    pub version: String,
    /// What it would run.
    pub sql: String,
}

/// What `migrate` would run, in order. Nothing is changed.
pub(crate) fn pending(conn: &mut PgConnection, table: &Table) -> Result<Vec<Pending>, Error> {
    let done = applied(conn, table)?;
    let left = STEPS.iter().map(|step| (version(step.folder).to_string(), step));
    let left = left.filter(|(version, _)| !done.contains(version));
    Ok(left.map(|(version, step)| Pending { version, sql: rename(step.up, table) }).collect())
}

/// The migrations that have run after this one, the last first. Nothing is changed.
pub(crate) fn after(conn: &mut PgConnection, table: &Table, last: &str) -> Result<Vec<String>, Error> {
    check_version(last)?;
    let mut done = applied(conn, table)?;
    done.retain(|version| version.as_str() > last);
    Ok(done)
}

/// What has run, the last first.
fn applied(conn: &mut PgConnection, table: &Table) -> Result<Vec<String>, Error> {
    let mut done = Vec::new();
    let looked = Ledger { conn, table }.in_turn(|ledger| {
        ledger.adopt()?;
        done = ledger.applied_migrations().map_err(failed)?.iter().map(ToString::to_string).collect();
        // A table that was adopted for the look is not.
        Err(diesel::result::Error::RollbackTransaction.into())
    });
    match looked {
        Err(Error::Database(diesel::result::Error::RollbackTransaction)) => Ok(done),
        other => other.map(|()| done),
    }
}

fn check_version(last: &str) -> Result<(), Error> {
    let known: Vec<String> = STEPS.iter().map(|step| version(step.folder).to_string()).collect();
    if last == "0" || known.iter().any(|version| version == last) {
        return Ok(());
    }
    Err(Error::UnknownMigration { version: last.to_owned(), known: known.join(", ") })
}

/// Undoes the migrations after this one, the last first, in one transaction, and says which.
pub(crate) fn down_to(conn: &mut PgConnection, table: &Table, last: &str) -> Result<Vec<String>, Error> {
    check_version(last)?;
    let mut undone = Vec::new();
    let mut ledger = Ledger { conn, table };
    ledger.in_turn(|ledger| {
        ledger.adopt()?;
        for applied in ledger.applied_migrations().map_err(failed)? {
            if applied.to_string().as_str() <= last {
                break;
            }
            ledger.revert_last_migration(Renamed(table)).map_err(failed)?;
            undone.push(applied.to_string());
        }
        Ok(())
    })?;
    Ok(undone)
}

/// The SQL that `migrate` runs on an empty database.
pub(crate) fn script(table: &Table) -> String {
    let mut script = String::from("BEGIN;\n\n");
    for step in STEPS {
        script.push_str(&rename(step.up, table));
        script.push('\n');
    }
    script.push_str("-- What has been run.\n");
    script.push_str(&create_ledger(table));
    for step in STEPS {
        let version = version(step.folder).to_string();
        script.push_str(&format!("INSERT INTO {} (version) VALUES ('{version}');\n", table.ledger()));
    }
    script.push_str("\nCOMMIT;\n");
    script
}

/// Whether there is a table of jobs, whoever made it.
pub(crate) fn is_there(conn: &mut PgConnection, table: &Table) -> Result<bool, Error> {
    Ledger { conn, table }.exists(&table.jobs())
}

/// How far a table is.
pub(crate) struct Standing {
    /// Versions that have not run.
    pub(crate) pending: Vec<String>,
    /// Versions that have run, and that this library does not know.
    pub(crate) unknown: Vec<String>,
}

pub(crate) fn standing(conn: &mut PgConnection, table: &Table) -> Result<Standing, Error> {
    let noted = Ledger { conn, table }.noted()?;
    let ours: Vec<String> = versions().collect();
    Ok(Standing {
        pending: ours.iter().filter(|version| !noted.contains(version)).cloned().collect(),
        unknown: noted.into_iter().filter(|version| !ours.contains(version)).collect(),
    })
}

/// Makes all that the files of the migrations make, for a transaction that is rolled back. The ledger is not in
/// them, for who runs them may keep another one.
pub(crate) fn make_anew(conn: &mut PgConnection, table: &Table) -> Result<(), Error> {
    STEPS.iter().try_for_each(|step| Ok(conn.batch_execute(&rename(step.up, table))?))
}

fn versions() -> impl Iterator<Item = String> {
    STEPS.iter().map(|step| version(step.folder).to_string())
}

fn create_ledger(table: &Table) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {} (\n    version text CONSTRAINT {} PRIMARY KEY,\n    \
         run_on timestamptz NOT NULL DEFAULT current_timestamp\n);\n",
        table.ledger(),
        table.named("migrations_pkey"),
    )
}

/// diesel's version of a migration: what stands before the underscore, without dashes.
fn version(folder: &str) -> MigrationVersion<'static> {
    let digits = folder.split('_').next().unwrap_or(folder).replace('-', "");
    MigrationVersion::from(digits)
}

fn failed(error: Box<dyn std::error::Error + Send + Sync>) -> Error {
    match error.downcast::<diesel::result::Error>() {
        Ok(error) => Error::from(*error),
        Err(other) => Error::Migration(other.to_string()),
    }
}

/// The ledger of what has been run, in the table's own schema.
struct Ledger<'a> {
    conn: &'a mut PgConnection,
    table: &'a Table,
}

impl Ledger<'_> {
    fn has_all(&mut self) -> Result<bool, Error> {
        if !self.exists(&self.table.ledger())? {
            return Ok(false);
        }
        self.has_pending_migration(Renamed(self.table)).map(|pending| !pending).map_err(failed)
    }

    fn in_turn(&mut self, work: impl FnOnce(&mut Ledger<'_>) -> Result<(), Error>) -> Result<(), Error> {
        let table = self.table;
        self.conn.transaction(|conn| {
            diesel::sql_query("SELECT pg_advisory_xact_lock($1)").bind::<BigInt, _>(LOCK).execute(conn)?;
            work(&mut Ledger { conn, table })
        })
    }

    /// Takes over a table that the diesel CLI made, and refuses one that pq did not.
    fn adopt(&mut self) -> Result<(), Error> {
        if self.exists(&self.table.ledger())? || !self.exists(&self.table.jobs())? {
            return Ok(());
        }
        let made = self.made_by_diesel()?;
        if made.is_empty() {
            return Err(Error::Migration(format!(
                "there is a table {} already that pq did not make; choose another schema or table, or \
                 rename that one",
                self.table
            )));
        }
        self.conn.batch_execute(&create_ledger(self.table))?;
        made.iter().try_for_each(|version| self.note(version))
    }

    /// Our migrations in the ledger of diesel's own harness, which knows the default table alone.
    fn made_by_diesel(&mut self) -> Result<Vec<String>, Error> {
        let diesels = "public.__diesel_schema_migrations";
        if *self.table != Table::default() || !self.exists(diesels)? {
            return Ok(Vec::new());
        }
        let all = diesel::dsl::sql::<Text>(&format!("SELECT version::text FROM {diesels}"));
        let noted: Vec<String> = all.load(self.conn)?;
        Ok(versions().filter(|version| noted.contains(version)).collect())
    }

    fn noted(&mut self) -> Result<Vec<String>, Error> {
        if !self.exists(&self.table.ledger())? {
            return self.made_by_diesel();
        }
        let versions = format!("SELECT version FROM {} ORDER BY version", self.table.ledger());
        Ok(diesel::dsl::sql::<Text>(&versions).load(self.conn)?)
    }

    fn note(&mut self, version: &str) -> Result<(), Error> {
        let insert = format!("INSERT INTO {} (version) VALUES ($1)", self.table.ledger());
        diesel::sql_query(insert).bind::<Text, _>(version).execute(self.conn)?;
        Ok(())
    }

    /// Reads the catalog itself. `to_regclass` answers from the session's cache, which may still hold
    /// that the table is missing when its maker has just let go of the lock.
    fn exists(&mut self, name: &str) -> Result<bool, Error> {
        let found = diesel::dsl::sql::<Bool>(
            "SELECT EXISTS (
                SELECT FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON relnamespace = pg_namespace.oid
                WHERE ARRAY[nspname, relname]::text[] = pg_catalog.parse_ident(",
        );
        Ok(found.bind::<Text, _>(name).sql("))").get_result(self.conn)?)
    }
}

type Outcome<T> = diesel::migration::Result<T>;

impl MigrationHarness<Pg> for Ledger<'_> {
    fn run_migration(&mut self, migration: &dyn Migration<Pg>) -> Outcome<MigrationVersion<'static>> {
        migration.run(self.conn)?;
        self.conn.batch_execute(&create_ledger(self.table))?;
        let version = migration.name().version().as_owned();
        self.note(&version.to_string())?;
        Ok(version)
    }

    fn revert_migration(&mut self, migration: &dyn Migration<Pg>) -> Outcome<MigrationVersion<'static>> {
        let version = migration.name().version().as_owned();
        let ledger = self.table.ledger();
        diesel::sql_query(format!("DELETE FROM {ledger} WHERE version = $1"))
            .bind::<Text, _>(version.to_string())
            .execute(self.conn)?;
        let left: i64 =
            diesel::dsl::sql::<BigInt>(&format!("SELECT count(*) FROM {ledger}")).get_result(self.conn)?;
        if left == 0 {
            // Before the schema goes, which it does only when it is empty.
            self.conn.batch_execute(&format!("DROP TABLE {ledger}"))?;
        }
        migration.revert(self.conn)?;
        Ok(version)
    }

    fn applied_migrations(&mut self) -> Outcome<Vec<MigrationVersion<'static>>> {
        let ledger = self.table.ledger();
        if !self.exists(&ledger)? {
            return Ok(Vec::new());
        }
        let newest_first = format!("SELECT version FROM {ledger} ORDER BY version DESC");
        let versions = diesel::dsl::sql::<Text>(&newest_first).load::<String>(self.conn)?;
        Ok(versions.into_iter().map(MigrationVersion::from).collect())
    }
}

/// The migrations with another schema's and table's names in them.
struct Renamed<'a>(&'a Table);

impl MigrationSource<Pg> for Renamed<'_> {
    fn migrations(&self) -> Outcome<Vec<Box<dyn Migration<Pg>>>> {
        let renamed = |step: &Step| -> Box<dyn Migration<Pg>> {
            Box::new(Script {
                name: Folder(step.folder),
                up: rename(step.up, self.0),
                down: rename(step.down, self.0),
            })
        };
        Ok(STEPS.iter().map(renamed).collect())
    }
}

struct Script {
    name: Folder,
    up: String,
    down: String,
}

impl Migration<Pg> for Script {
    fn run(&self, conn: &mut dyn diesel::connection::BoxableConnection<Pg>) -> Outcome<()> {
        Ok(conn.batch_execute(&self.up)?)
    }

    fn revert(&self, conn: &mut dyn diesel::connection::BoxableConnection<Pg>) -> Outcome<()> {
        Ok(conn.batch_execute(&self.down)?)
    }

    fn metadata(&self) -> &dyn MigrationMetadata {
        self
    }

    fn name(&self) -> &dyn MigrationName {
        &self.name
    }
}

impl MigrationMetadata for Script {}

struct Folder(&'static str);

impl MigrationName for Folder {
    fn version(&self) -> MigrationVersion<'_> {
        version(self.0)
    }
}

impl std::fmt::Display for Folder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

/// Replaces the double-quoted names of a migration: `"pq"` by the schema, `"queue"` by the table,
/// `"queue_…"` by what is named after it. Blocks that hold names are quoted by `$names$`, which is
/// replaced by a tag that none of the names holds.
fn rename(sql: &str, table: &Table) -> String {
    let names = format!("{}{}", table.schema, table.name);
    let tag = (0..).map(|n| format!("$names{n}$")).find(|tag| !names.contains(tag)).unwrap_or_default();
    let mut renamed = String::with_capacity(sql.len());
    for (position, part) in sql.split('"').enumerate() {
        if position % 2 == 0 {
            renamed.push_str(&part.replace("$names$", &tag));
            continue;
        }
        let name: Ident = match part {
            Table::DEFAULT_SCHEMA => table.schema.clone(),
            Table::DEFAULT_NAME => table.name.clone(),
            other => table.named(other.strip_prefix("queue_").unwrap_or(other)),
        };
        renamed.push_str(&name.to_string());
    }
    renamed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_is_a_step() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
        let mut folders: Vec<String> = std::fs::read_dir(root)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        folders.sort();
        let steps: Vec<&str> = STEPS.iter().map(|step| step.folder).collect();
        assert_eq!(steps, folders);
    }

    #[test]
    fn the_files_are_the_default_names_script() {
        for step in STEPS {
            let plain = rename(step.up, &Table::default()).replace("$names0$", "$names$");
            assert_eq!(plain, step.up);
        }
    }

    #[test]
    fn hostile_names_stay_inside_their_quotes() -> Result<(), Error> {
        let table = Table::new("a\"; DROP $names0$", "b'$function$ %")?;
        let sql = rename(STEPS[0].up, &table);
        assert!(sql.contains("DO $names1$") && sql.contains("CREATE SCHEMA \"a\"\"; DROP $names0$\""));
        Ok(())
    }
}
