//! Runs and reverts migrations, and records their versions in a table of their own.

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Text};

use super::names::substitute;
use super::{Migration, Pending, Status};
use crate::Error;
use crate::isolation;
use crate::table::Table;

/// The advisory lock that migrations take. It is one for the database, because the migrations of two tables may
/// create the same schema.
const LOCK: i64 = 0x7071_6d69_6772_6174;

/// How long a migration tries to lock the tables, and its pauses between the tries.
///
/// Statements of other sessions queue behind a lock that waits, so each try waits for [`LOCK_TABLES`]'s timeout only.
const LOCK_WITHIN: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// Puts the existing tables, the table of jobs last, into a setting. $1 schema, $2 tables, $3 table of jobs.
const NAME_TABLES: &str = "
    SELECT set_config('pq.lock_tables', coalesce(
        string_agg(format('%I.%I', nspname, relname), ', ' ORDER BY relname = $3, relname), ''), true)
    FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON relnamespace = pg_namespace.oid
    WHERE nspname = $1 AND relname = ANY ($2) AND relkind = 'r'";

/// Locks the tables that the setting names, and empties it. It keeps its value if a lock is not granted in time.
const LOCK_TABLES: &str = "
    DO $$
    DECLARE
        tables text := current_setting('pq.lock_tables');
        timeout_before text := current_setting('lock_timeout');
    BEGIN
        IF tables <> '' THEN
            PERFORM set_config('lock_timeout', '200ms', true);
            EXECUTE 'LOCK TABLE ' || tables || ' IN ACCESS EXCLUSIVE MODE';
            PERFORM set_config('lock_timeout', timeout_before, true), set_config('pq.lock_tables', '', true);
        END IF;
    EXCEPTION
        WHEN lock_not_available OR deadlock_detected THEN NULL;
    END
    $$";

/// The table in which diesel's own harness records versions.
const RECORDED_BY_DIESEL: &str = "public.__diesel_schema_migrations";

/// A list of migrations, applied to one table.
pub(super) struct Runner<'a> {
    conn: &'a mut PgConnection,
    table: &'a Table,
    migrations: &'a [Migration],
    pub(super) lock_within: Duration,
}

impl<'a> Runner<'a> {
    /// Creates a runner of these migrations, which are in the order of their versions.
    pub(super) fn new(conn: &'a mut PgConnection, table: &'a Table, migrations: &'a [Migration]) -> Self {
        Self { conn, table, migrations, lock_within: LOCK_WITHIN }
    }

    /// Runs all pending migrations in one transaction, and returns their versions.
    pub(super) fn migrate(&mut self) -> Result<Vec<String>, Error> {
        // Without the lock, so that a call with nothing to do never waits.
        if self.exists(&self.table.migrations())? && self.status()?.pending.is_empty() {
            return Ok(Vec::new());
        }
        self.check_encoding()?;
        self.changing_tables(|runner| {
            let (applied, mut ran) = (runner.recorded()?, Vec::new());
            for migration in runner.migrations.iter().filter(|one| !has(&applied, one.version)) {
                runner.conn.batch_execute(&substitute(migration.up, runner.table))?;
                runner.conn.batch_execute(&create_migrations_table(runner.table))?;
                runner.record(migration.version)?;
                ran.push(migration.version.to_owned());
            }
            Ok(ran)
        })
    }

    /// Refuses a database in which a text can be any bytes, so that reading a row may fail.
    fn check_encoding(&mut self) -> Result<(), Error> {
        let encoding = diesel::dsl::sql::<Text>("SELECT current_setting('server_encoding')");
        if encoding.get_result::<String>(self.conn)? == "SQL_ASCII" {
            return Err(Error::Migration(
                "the database's encoding is SQL_ASCII, which stores any bytes as text; create a database with \
                 ENCODING 'UTF8' TEMPLATE template0"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    /// Returns the migrations that [`Runner::migrate`] would run, in order.
    pub(super) fn pending(&mut self) -> Result<Vec<Pending>, Error> {
        let applied = self.applied()?;
        let pending = self.migrations.iter().filter(|migration| !has(&applied, migration.version));
        let pending = pending.map(|migration| Pending {
            version: migration.version.to_owned(),
            sql: substitute(migration.up, self.table),
        });
        Ok(pending.collect())
    }

    /// Returns the versions that have run after this one, the newest first.
    pub(super) fn applied_after(&mut self, version: &str) -> Result<Vec<String>, Error> {
        self.check_version(version)?;
        let mut applied = self.applied()?;
        applied.retain(|one| one.as_str() > version);
        applied.reverse();
        Ok(applied)
    }

    /// Returns the SQL by which [`Runner::revert_after`] would revert migrations, the newest first.
    pub(super) fn revert_script(&mut self, version: &str) -> Result<Vec<Pending>, Error> {
        let mut left = self.applied()?.len();
        let reverted = self.applied_after(version)?.into_iter().map(|version| {
            left -= 1;
            let record = self.table.migrations();
            let forget = match left {
                0 => format!("DROP TABLE {record};"),
                _ => format!("DELETE FROM {record} WHERE version = '{version}';"),
            };
            let down = substitute(self.find(&version)?.down, self.table);
            Ok(Pending { sql: format!("{forget}\n{down}"), version })
        });
        reverted.collect()
    }

    /// Reverts the migrations after this version in one transaction, the newest first, and returns their versions.
    pub(super) fn revert_after(&mut self, version: &str) -> Result<Vec<String>, Error> {
        self.check_version(version)?;
        self.changing_tables(|runner| {
            let mut reverted = runner.recorded()?;
            reverted.retain(|one| one.as_str() > version);
            reverted.reverse();
            reverted.iter().try_for_each(|version| runner.revert(version))?;
            Ok(reverted)
        })
    }

    /// Returns the versions that are pending, and those that are recorded and not in the list.
    pub(super) fn status(&mut self) -> Result<Status, Error> {
        let recorded = self.recorded_by_either()?;
        let known = |version: &String| self.migrations.iter().any(|migration| migration.version == version);
        Ok(Status {
            pending: self.versions().filter(|version| !has(&recorded, version)).map(str::to_owned).collect(),
            unknown: recorded.iter().filter(|version| !known(version)).cloned().collect(),
        })
    }

    /// Returns whether the table that records the migrations exists.
    pub(super) fn has_record(&mut self) -> Result<bool, Error> {
        self.exists(&self.table.migrations())
    }

    /// Returns whether the table of jobs exists, whatever created it.
    pub(super) fn table_exists(&mut self) -> Result<bool, Error> {
        self.exists(&self.table.jobs())
    }

    /// Runs all migrations without a transaction or a record of their versions.
    pub(super) fn run_all_unrecorded(&mut self) -> Result<(), Error> {
        self.migrations
            .iter()
            .try_for_each(|migration| Ok(self.conn.batch_execute(&substitute(migration.up, self.table))?))
    }

    fn versions(&self) -> impl Iterator<Item = &'static str> {
        self.migrations.iter().map(|migration| migration.version)
    }

    fn check_version(&self, version: &str) -> Result<(), Error> {
        if version == "0" || self.versions().any(|known| known == version) {
            return Ok(());
        }
        let known: Vec<&str> = self.versions().collect();
        Err(Error::UnknownMigration { version: version.to_owned(), known: known.join(", ") })
    }

    /// Runs `work` in a transaction while no other process migrates.
    fn locked<T>(&mut self, work: impl FnOnce(&mut Runner<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let (table, migrations) = (self.table, self.migrations);
        isolation::transaction(self.conn, |conn| {
            diesel::sql_query("SELECT pg_advisory_xact_lock($1)").bind::<BigInt, _>(LOCK).execute(conn)?;
            work(&mut Runner::new(conn, table, migrations))
        })
    }

    /// Runs `work`, which changes the tables, when it has locked all of them.
    ///
    /// A lock that waits for another session's transaction would stop all other sessions at the table. So a try ends
    /// soon, rolls back and is repeated after a pause, in which they go on.
    fn changing_tables<T>(&mut self, work: impl Fn(&mut Runner<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let (started, mut pause) = (Instant::now(), FIRST_PAUSE);
        loop {
            let done = self.locked(|runner| {
                runner.adopt()?;
                if !runner.lock_tables()? {
                    return Err(diesel::result::Error::RollbackTransaction.into());
                }
                work(runner)
            });
            if !matches!(
                done,
                Err(Error::Database { source: diesel::result::Error::RollbackTransaction, .. })
            ) {
                return done;
            }
            if started.elapsed() >= self.lock_within {
                return Err(Error::Migration(format!(
                    "other sessions have used the tables of {} for {:?} without a break; end their transactions, which \
                     pg_stat_activity lists, and run it again",
                    self.table, self.lock_within
                )));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Locks the tables that exist against all other sessions. Returns `false` if others use them.
    fn lock_tables(&mut self) -> Result<bool, Error> {
        diesel::sql_query(NAME_TABLES)
            .bind::<Text, _>(self.table.schema.as_str())
            .bind::<Array<Text>, _>(self.table.names())
            .bind::<Text, _>(self.table.name.as_str())
            .execute(self.conn)?;
        self.conn.batch_execute(LOCK_TABLES)?;
        Ok(diesel::dsl::sql::<Bool>("SELECT current_setting('pq.lock_tables') = ''").get_result(self.conn)?)
    }

    /// Returns the versions that have run, the oldest first, as if the table had been adopted.
    fn applied(&mut self) -> Result<Vec<String>, Error> {
        let mut applied = Vec::new();
        let result = self.locked(|runner| {
            runner.adopt()?;
            applied = runner.recorded()?;
            // The caller only asks, so an adoption must not last.
            Err::<(), _>(diesel::result::Error::RollbackTransaction.into())
        });
        match result {
            Err(Error::Database { source: diesel::result::Error::RollbackTransaction, .. }) => Ok(applied),
            other => other.map(|()| applied),
        }
    }

    fn find(&self, version: &str) -> Result<&'a Migration, Error> {
        self.migrations.iter().find(|migration| migration.version == version).ok_or_else(|| {
            Error::Migration(format!(
                "a newer version of pq ran migration {version}; use that version to revert it"
            ))
        })
    }

    fn revert(&mut self, version: &str) -> Result<(), Error> {
        let migration = self.find(version)?;
        let migrations = self.table.migrations();
        diesel::sql_query(format!("DELETE FROM {migrations} WHERE version = $1"))
            .bind::<Text, _>(version)
            .execute(self.conn)?;
        if self.recorded()?.is_empty() {
            // Before the migration, which drops the schema only if the schema is empty.
            self.conn.batch_execute(&format!("DROP TABLE {migrations}"))?;
        }
        Ok(self.conn.batch_execute(&substitute(migration.down, self.table))?)
    }

    /// Takes over a table that diesel's own tools created, and refuses one that pq did not create.
    fn adopt(&mut self) -> Result<(), Error> {
        if self.exists(&self.table.migrations())? || !self.table_exists()? {
            return Ok(());
        }
        let recorded = self.recorded_by_diesel()?;
        if recorded.is_empty() {
            return Err(Error::Migration(format!(
                "table {} exists and was not created by pq; choose another schema or table, or rename the \
                 existing one",
                self.table
            )));
        }
        self.conn.batch_execute(&create_migrations_table(self.table))?;
        recorded.iter().try_for_each(|version| self.record(version))
    }

    /// Returns the recorded versions, or those that diesel recorded if the table was never adopted.
    fn recorded_by_either(&mut self) -> Result<Vec<String>, Error> {
        if self.exists(&self.table.migrations())? { self.recorded() } else { self.recorded_by_diesel() }
    }

    /// Returns the recorded versions, the oldest first; none if there is no table of migrations.
    fn recorded(&mut self) -> Result<Vec<String>, Error> {
        if !self.exists(&self.table.migrations())? {
            return Ok(Vec::new());
        }
        let versions = format!("SELECT version FROM {} ORDER BY version", self.table.migrations());
        Ok(diesel::dsl::sql::<Text>(&versions).load(self.conn)?)
    }

    /// Returns the migrations of the list that diesel's own tools ran. They know only the default table.
    fn recorded_by_diesel(&mut self) -> Result<Vec<String>, Error> {
        if *self.table != Table::default() || !self.exists(RECORDED_BY_DIESEL)? {
            return Ok(Vec::new());
        }
        let versions = format!("SELECT version::text FROM {RECORDED_BY_DIESEL}");
        let recorded: Vec<String> = diesel::dsl::sql::<Text>(&versions).load(self.conn)?;
        Ok(self.versions().filter(|version| has(&recorded, version)).map(str::to_owned).collect())
    }

    fn record(&mut self, version: &str) -> Result<(), Error> {
        let insert = format!("INSERT INTO {} (version) VALUES ($1)", self.table.migrations());
        diesel::sql_query(insert).bind::<Text, _>(version).execute(self.conn)?;
        Ok(())
    }

    /// Returns whether a relation exists.
    ///
    /// `to_regclass` answers from the session's cache, which may not have a table that another session committed just
    /// before it released the lock. Therefore this reads the catalog itself.
    fn exists(&mut self, name: &str) -> Result<bool, Error> {
        let found = diesel::dsl::sql::<Bool>(
            "SELECT EXISTS (
                SELECT FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON relnamespace = pg_namespace.oid
                WHERE ARRAY[nspname, relname]::text[] = pg_catalog.parse_ident(",
        );
        Ok(found.bind::<Text, _>(name).sql("))").get_result(self.conn)?)
    }
}

/// Returns the SQL that runs and records these migrations on an empty database.
pub(super) fn script(table: &Table, migrations: &[Migration]) -> String {
    let mut script = String::from("BEGIN;\n\n");
    for migration in migrations {
        script.push_str(&substitute(migration.up, table));
        script.push('\n');
    }
    script.push_str("-- Records which migrations have run.\n");
    script.push_str(&create_migrations_table(table));
    for migration in migrations {
        let (migrations, version) = (table.migrations(), migration.version);
        script.push_str(&format!("INSERT INTO {migrations} (version) VALUES ('{version}');\n"));
    }
    script.push_str("\nCOMMIT;\n");
    script
}

fn create_migrations_table(table: &Table) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {} (\n    version text CONSTRAINT {} PRIMARY KEY,\n    \
         run_on timestamptz NOT NULL DEFAULT current_timestamp\n);\n",
        table.migrations(),
        table.named("migrations_pkey"),
    )
}

fn has(versions: &[String], version: &str) -> bool {
    versions.iter().any(|one| one == version)
}
