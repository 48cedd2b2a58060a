//! A database for one test.

use std::fmt;
use std::thread;
use std::time::Duration;

use diesel::RunQueryDsl;
use diesel::pg::{Pg, PgConnection};
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::result::{Error as QueryError, QueryResult};

use crate::conninfo::Conninfo;
use crate::error::Error;

/// The longest name that PostgreSQL does not truncate, in bytes.
const LONGEST_NAME: usize = 63;

/// Maximum number of retries of a `CREATE DATABASE` that conflicts with another one.
const TRIES: u32 = 8;

/// Drops its database when dropped, and closes the connections to it.
///
/// It does not keep its [`Server`](crate::Server) running: keep the server as long as its databases.
pub struct Database {
    name: String,
    conninfo: Conninfo,
    maintenance: Conninfo,
}

impl Database {
    pub(crate) fn create(maintenance: &Conninfo, name: String, template: &str) -> Result<Self, Error> {
        check_name(&name)?;
        let mut conn = maintenance.connect("the maintenance database")?;
        create(&mut conn, &name, template)?;
        Ok(Self { conninfo: maintenance.with_database(&name), maintenance: maintenance.clone(), name })
    }

    /// Returns the connection string, with the password.
    ///
    /// It is a URL, unless the server was given in libpq's `key=value` form.
    #[must_use]
    pub fn url(&self) -> &str {
        self.conninfo.as_str()
    }

    /// Returns the name, such as `pq_test_4711_9f86d081884c7d65`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Opens a connection to the database.
    ///
    /// The connection is closed when this guard is dropped, so bind the guard to a name.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`] if the server does not answer or has no free connection.
    pub fn connect(&self) -> Result<PgConnection, Error> {
        self.conninfo.connect(&format!("database {}", self.name))
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let dropped = self.maintenance.connect("the maintenance database").and_then(|mut conn| {
            DropDatabase(&self.name)
                .execute(&mut conn)
                .map_err(|source| Error::Statement { what: format!("drop database {}", self.name), source })
        });
        if let Err(error) = dropped {
            // The server may have been stopped before its databases were dropped.
            tracing::debug!(database = %self.name, %error, "cannot drop the database");
        }
    }
}

/// Returns a name that no other process uses: `prefix` and 64 random bits.
pub(crate) fn random_name(prefix: &str) -> Result<String, Error> {
    let failed =
        |error: getrandom::Error| Error::Io { what: "read random bytes".to_owned(), source: error.into() };
    Ok(format!("{prefix}{:016x}", getrandom::u64().map_err(failed)?))
}

/// Returns a database name that contains the process id.
pub(crate) fn fresh_name() -> Result<String, Error> {
    random_name(&format!("pq_test_{}_", std::process::id()))
}

fn check_name(name: &str) -> Result<(), Error> {
    let reason = if name.is_empty() {
        "it must not be empty"
    } else if name.len() > LONGEST_NAME {
        "it must have at most 63 bytes"
    } else if name.contains('\0') {
        "it must not contain a NUL byte"
    } else {
        return Ok(());
    };
    Err(Error::DatabaseName { name: name.to_owned(), reason })
}

fn create(conn: &mut PgConnection, name: &str, template: &str) -> Result<(), Error> {
    let mut tries = 0;
    loop {
        match (CreateDatabase { name, template }).execute(conn) {
            Ok(_) => return Ok(()),
            Err(error) if tries < TRIES && met_another(&error, template) => {
                tries += 1;
                thread::sleep(Duration::from_millis(20) * 2u32.pow(tries));
            }
            Err(source) => {
                return Err(Error::Statement { what: format!("create database {name}"), source });
            }
        }
    }
}

/// "source database "template0" is being accessed by other users", in whatever language: the name
/// is in it in all of them. (diesel does not pass the SQLSTATE on.)
fn met_another(error: &QueryError, template: &str) -> bool {
    matches!(error, QueryError::DatabaseError(_, info) if info.message().contains(template))
}

/// The template of empty databases, because it accepts no connections and is unmodified: a connection to the template
/// would make `CREATE DATABASE` fail.
pub(crate) const EMPTY: &str = "template0";

#[derive(Debug, Clone, Copy)]
struct CreateDatabase<'a> {
    name: &'a str,
    template: &'a str,
}

impl QueryFragment<Pg> for CreateDatabase<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.unsafe_to_cache_prepared();
        out.push_sql("CREATE DATABASE ");
        out.push_identifier(self.name)?;
        out.push_sql(" TEMPLATE ");
        out.push_identifier(self.template)?;
        out.push_sql(" ENCODING 'UTF8'");
        Ok(())
    }
}

/// Closes open connections, because a failed test may have left threads behind.
#[derive(Debug, Clone, Copy)]
struct DropDatabase<'a>(&'a str);

impl QueryFragment<Pg> for DropDatabase<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.unsafe_to_cache_prepared();
        out.push_sql("DROP DATABASE IF EXISTS ");
        out.push_identifier(self.0)?;
        out.push_sql(" WITH (FORCE)");
        Ok(())
    }
}

/// A statement without a query id is not cached as a prepared statement.
macro_rules! command {
    ($statement:ident) => {
        impl QueryId for $statement<'_> {
            type QueryId = ();
            const HAS_STATIC_QUERY_ID: bool = false;
        }

        impl RunQueryDsl<PgConnection> for $statement<'_> {}
    };
}

command!(CreateDatabase);
command!(DropDatabase);
