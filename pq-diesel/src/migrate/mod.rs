//! The schema's migrations: the files of `migrations/`, for any schema and table.

mod names;
mod runner;
#[cfg(test)]
mod tests;

use diesel::pg::PgConnection;
use diesel_migrations::{EmbeddedMigrations, embed_migrations};

use self::runner::Runner;
use crate::Error;
use crate::table::Table;

/// The migrations for the default schema and table, for diesel's own tools.
///
/// Run them by an application's `MigrationHarness` or by `diesel migration run`. diesel records them in its own table
/// with the application's migrations. Their versions are four digits, so an application that numbers its migrations
/// in the same way must use [`crate::Pq::migrate`].
///
/// [`crate::Pq::migrate`] takes any schema and table, and records the versions in a table of their own.
pub const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// A migration that would be run or reverted.
#[derive(Clone, Debug)]
pub struct Pending {
    /// Its version.
    pub version: String,
    /// The SQL that would be run.
    pub sql: String,
}

/// A migration: its version and its two files.
struct Migration {
    version: &'static str,
    up: &'static str,
    down: &'static str,
}

/// Reads a migration from its folder `{version}_{name}`.
macro_rules! migration {
    ($version:literal, $name:literal) => {
        Migration {
            version: $version,
            up: include_str!(concat!("../../migrations/", $version, "_", $name, "/up.sql")),
            down: include_str!(concat!("../../migrations/", $version, "_", $name, "/down.sql")),
        }
    };
}

/// All migrations, the oldest first. Their versions are in the order of their texts.
const ALL: &[Migration] = &[migration!("0001", "queue")];

/// Creates the table or brings it up to date, in one transaction.
///
/// Returns the versions that it ran: none if all have run. Any number of processes may call it at the same time.
///
/// # Errors
///
/// [`Error::Migration`] if a table of this name exists that pq did not create; the database's own.
pub(crate) fn migrate(conn: &mut PgConnection, table: &Table) -> Result<Vec<String>, Error> {
    Runner::new(conn, table, ALL).migrate()
}

/// Reverts all migrations in one transaction, which deletes every job.
pub(crate) fn revert(conn: &mut PgConnection, table: &Table) -> Result<(), Error> {
    Runner::new(conn, table, ALL).revert_after("0").map(drop)
}

/// Returns the migrations that [`migrate`] would run, in order.
pub(crate) fn pending(conn: &mut PgConnection, table: &Table) -> Result<Vec<Pending>, Error> {
    Runner::new(conn, table, ALL).pending()
}

/// Returns the versions that have run after this one, the newest first.
pub(crate) fn applied_after(
    conn: &mut PgConnection,
    table: &Table,
    version: &str,
) -> Result<Vec<String>, Error> {
    Runner::new(conn, table, ALL).applied_after(version)
}

/// Reverts the migrations after this version in one transaction, the newest first, and returns their versions.
pub(crate) fn revert_after(
    conn: &mut PgConnection,
    table: &Table,
    version: &str,
) -> Result<Vec<String>, Error> {
    Runner::new(conn, table, ALL).revert_after(version)
}

/// Returns the versions that are pending, and those that this library does not know.
pub(crate) fn status(conn: &mut PgConnection, table: &Table) -> Result<Status, Error> {
    Runner::new(conn, table, ALL).status()
}

/// Returns whether the table of jobs exists, whatever created it.
pub(crate) fn table_exists(conn: &mut PgConnection, table: &Table) -> Result<bool, Error> {
    Runner::new(conn, table, ALL).table_exists()
}

/// Returns whether the table that records the migrations exists. Diesel's own tools do not create it.
pub(crate) fn has_record(conn: &mut PgConnection, table: &Table) -> Result<bool, Error> {
    Runner::new(conn, table, ALL).has_record()
}

/// Returns the SQL that [`revert_after`] would run.
pub(crate) fn revert_script(
    conn: &mut PgConnection,
    table: &Table,
    version: &str,
) -> Result<Vec<Pending>, Error> {
    Runner::new(conn, table, ALL).revert_script(version)
}

/// Creates everything that the migrations create, without a record of their versions.
///
/// For a transaction that is rolled back: the result is compared with what another table has.
pub(crate) fn create_unrecorded(conn: &mut PgConnection, table: &Table) -> Result<(), Error> {
    Runner::new(conn, table, ALL).run_all_unrecorded()
}

/// Returns the SQL that [`migrate`] runs on an empty database.
pub(crate) fn script(table: &Table) -> String {
    runner::script(table, ALL)
}

/// The state of a table's migrations.
pub(crate) struct Status {
    /// Versions that have not run.
    pub(crate) pending: Vec<String>,
    /// Versions that have run and that this library does not know.
    pub(crate) unknown: Vec<String>,
}
