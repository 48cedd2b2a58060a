//! The database of the demo: a private server, or a schema of its own in the database of `--database-url`.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use pq_diesel::Pq;
use pq_testing::{Database, Kind, Options, Server};

use crate::failure::Failure;
use crate::global::Global;
use crate::output;

pub(super) struct Environment {
    url: String,
    schema: String,
    origin: String,
    // `Drop` drops the schema. These two fields then drop the database and the server.
    given: bool,
    _database: Option<Database>,
    _server: Option<Server>,
}

impl Environment {
    /// Connects to the database of `--database-url`, or starts a private server.
    ///
    /// Connection strings in environment variables are ignored, because they may name a production database.
    pub(super) fn prepare(global: &Global) -> Result<Self, Failure> {
        let schema = format!("pq_demo_{}", std::process::id());
        let environment = if let Some(url) = global.database_url.clone() {
            let origin = format!("database of --database-url, schema {schema}");
            Self { url, schema, origin, given: true, _database: None, _server: None }
        } else {
            let server = Server::start(&Options::durable().kind(Kind::Binaries)).map_err(|error| {
                Failure::Demo(format!(
                    "cannot start a private PostgreSQL server: {error}; or name a database with --database-url"
                ))
            })?;
            let database = server.database()?;
            Self {
                url: database.url().to_owned(),
                schema,
                origin: server.origin().to_string(),
                given: false,
                _database: Some(database),
                _server: Some(server),
            }
        };
        let pq = environment.connect()?;
        pq.migrate()?;
        pq.transaction(|conn| {
            environment.set_search_path(conn)?;
            // demo_result has no unique key, so that a job that is done twice has two rows.
            conn.batch_execute(
                "CREATE TABLE demo_file (path text PRIMARY KEY);
                 CREATE TABLE demo_fault (path text, fault text, worker integer, PRIMARY KEY (path, fault));
                 CREATE TABLE demo_result (
                     path text NOT NULL, worker integer NOT NULL,
                     bytes bigint, lines bigint, sha256 text, error text)",
            )?;
            Ok::<_, Failure>(())
        })?;
        Ok(environment)
    }

    /// Returns a handle like that of each worker.
    pub(super) fn connect(&self) -> Result<Pq, Failure> {
        connect(&self.url, &self.schema)
    }

    /// Sets the search path of the transaction to the demo's schema.
    pub(super) fn set_search_path(&self, conn: &mut PgConnection) -> Result<(), Failure> {
        set_search_path(conn, &self.schema)
    }

    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    /// Returns the environment variables of a worker. Other users can read command lines, so the connection string,
    /// which may hold a password, is passed in the environment.
    pub(super) fn variables(&self) -> [(&'static str, String); 2] {
        [
            ("PQ_DEMO_URL", with_application_name(&self.url, &self.schema)),
            ("PQ_DEMO_SCHEMA", self.schema.clone()),
        ]
    }

    /// Returns the application name of this demo's workers. No other session has it.
    pub(super) fn application_name(&self) -> &str {
        &self.schema
    }
}

pub(super) fn connect(url: &str, schema: &str) -> Result<Pq, Failure> {
    Ok(Pq::builder().url(url).schema(schema).pool_size(4).connect()?)
}

/// Sets the search path of the transaction to a schema whose name needs no quotes.
pub(super) fn set_search_path(conn: &mut PgConnection, schema: &str) -> Result<(), Failure> {
    Ok(conn.batch_execute(&format!("SET LOCAL search_path TO {schema}"))?)
}

/// Adds an application name, which needs no quotes, to a connection string. libpq uses the last of several.
fn with_application_name(conninfo: &str, name: &str) -> String {
    let Some((_, rest)) = conninfo.split_once("://") else {
        return format!("{conninfo} application_name={name}");
    };
    // A password may contain a question mark.
    let server = match rest.split_once('@') {
        Some((user, server)) if !user.contains('/') => server,
        _ => rest,
    };
    let joint = match server.split_once('?') {
        None => "?",
        Some((_, words)) if words.is_empty() || words.ends_with('&') => "",
        Some(_) => "&",
    };
    format!("{conninfo}{joint}application_name={name}")
}

impl Drop for Environment {
    fn drop(&mut self) {
        if !self.given {
            return;
        }
        let dropped =
            PgConnection::establish(&self.url).map_err(|error| error.to_string()).and_then(|mut conn| {
                conn.batch_execute(&format!("DROP SCHEMA IF EXISTS {} CASCADE", self.schema))
                    .map_err(|e| e.to_string())
            });
        if dropped.is_err() {
            output::print_error(&format!("cannot drop the schema {}; drop it manually", self.schema));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_named_in_both_kinds_of_connection_string() {
        for (given, named_so) in [
            ("", " application_name=x"),
            ("host=a application_name=b", "host=a application_name=b application_name=x"),
            ("postgres://a/b", "postgres://a/b?application_name=x"),
            ("postgres://u:p?w@a/b", "postgres://u:p?w@a/b?application_name=x"),
            ("postgres://u@/b?host=/tmp", "postgres://u@/b?host=/tmp&application_name=x"),
            ("postgres:///b?host=/a@b", "postgres:///b?host=/a@b&application_name=x"),
            ("postgres://a/b?", "postgres://a/b?application_name=x"),
        ] {
            assert_eq!(with_application_name(given, "x"), named_so);
        }
    }
}
