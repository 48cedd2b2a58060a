//! Checks a database for problems that affect a queue, and advises how to fix them.
//!
//! ```no_run
//! use pq_diesel::Pq;
//! use pq_diesel::doctor::{Examination, Level};
//!
//! # fn main() -> Result<(), pq_diesel::Error> {
//! let pq = Pq::connect("postgres://localhost/shop")?;
//! for finding in pq.examine(&Examination::new())? {
//!     if finding.level >= Level::Warning {
//!         println!("{}: {}", finding.check, finding.message);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The checks change nothing: objects that a check creates are rolled back. No check reads a payload or the text of
//! other sessions' statements.

mod bloat;
mod clock;
mod dead_tuples;
mod drift;
mod migrations;
mod notifications;
mod owners;
mod plans;
mod pooler;
mod privileges;
mod row_security;
mod sequences;
mod server;
mod settings;
mod slots;
mod snapshots;

use std::time::{Duration, SystemTime};

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use pq_core::store::Connect;
use serde::Serialize;

use crate::store::PgStore;
use crate::{Error, Pq, migrate};

/// The severity of a finding, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Level {
    /// Nothing is wrong.
    Ok,
    /// The check could not be made.
    Skipped,
    /// It will cause harm under load, over time or after a crash.
    Warning,
    /// It causes harm now, or jobs can be lost.
    Failure,
}

/// The result of a check. A check can have several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// The name of the check, such as `old snapshots`.
    pub check: &'static str,
    /// Its severity.
    pub level: Level,
    /// The finding. It can contain names of database objects and sessions, unescaped and with their control
    /// characters.
    pub message: String,
    /// The advice how to fix it.
    pub advice: Option<String>,
}

impl Finding {
    fn new(check: &'static str, level: Level, message: impl Into<String>) -> Self {
        Self { check, level, message: message.into(), advice: None }
    }

    fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self::new(check, Level::Ok, message)
    }

    fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }

    /// Adds advice if the finding is a warning or a failure.
    fn advise_if_bad(self, advice: impl Into<String>) -> Self {
        if self.level >= Level::Warning { self.advise(advice) } else { self }
    }
}

/// Options of [`Pq::examine`].
#[derive(Clone, Debug)]
#[must_use]
pub struct Examination {
    max_snapshot_age: Duration,
    clock: Option<fn() -> SystemTime>,
}

impl Examination {
    /// Creates the default options.
    pub fn new() -> Self {
        Self { max_snapshot_age: Duration::from_secs(60), clock: None }
    }

    /// Sets how long a session or replication slot may keep dead tuples from being removed without a warning.
    ///
    /// Default: 1 minute.
    pub fn max_snapshot_age(mut self, age: Duration) -> Self {
        self.max_snapshot_age = age;
        self
    }

    /// Compares this clock, which must be that of the caller's machine, with the server's.
    ///
    /// Default: no clock is compared. The library itself never reads the machine's clock, because only the database's
    /// clock decides when a job is due.
    pub fn clock(mut self, now: fn() -> SystemTime) -> Self {
        self.clock = Some(now);
        self
    }
}

impl Default for Examination {
    fn default() -> Self {
        Self::new()
    }
}

impl Pq {
    /// Checks the database on the handle's own connections.
    ///
    /// The checks cover the server and its settings, snapshots that keep dead tuples from being removed, the tables,
    /// query plans, privileges and sequences, and whether the catalog still is what the migrations created. A check
    /// that cannot be made, for example for lack of a privilege, yields a finding of [`Level::Skipped`].
    ///
    /// If the table does not exist, that is a finding of [`Level::Failure`], and only the server is checked.
    ///
    /// # Errors
    ///
    /// The errors of a lost connection.
    pub fn examine(&self, how: &Examination) -> Result<Vec<Finding>, Error> {
        let store = self.store();
        store.with_connection(|conn| {
            let pooler = pooler::examine(store, conn, true);
            Exam { store, how }.all(conn, pooler)
        })
    }

    /// Checks the database like [`Pq::examine`], on the caller's connection.
    ///
    /// Inside a transaction a pooler is not detected. Outside it is detected less reliably than by [`Pq::examine`],
    /// which compares two connections.
    ///
    /// # Errors
    ///
    /// The errors of [`Pq::examine`].
    pub fn examine_on(&self, conn: &mut PgConnection, how: &Examination) -> Result<Vec<Finding>, Error> {
        let store = self.store();
        let pooler = pooler::examine(store, conn, false);
        Exam { store, how }.all(conn, pooler)
    }
}

/// The input of the checks.
struct Exam<'a> {
    store: &'a PgStore,
    how: &'a Examination,
}

/// Whether a check reads the tables of the queue.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reads {
    Server,
    Tables,
}

type Check = fn(&Exam<'_>, &mut PgConnection) -> Result<Vec<Finding>, Error>;

/// All checks, in the order of their findings.
const CHECKS: [(&str, Reads, Check); 17] = [
    (server::VERSION, Reads::Server, server::version),
    (server::CONNECTIONS, Reads::Server, server::connections),
    (settings::CHECK, Reads::Server, settings::examine),
    (clock::CHECK, Reads::Server, clock::examine),
    (clock::JUMPS, Reads::Tables, clock::examine_jumps),
    (snapshots::CHECK, Reads::Server, snapshots::examine),
    (slots::CHECK, Reads::Server, slots::examine),
    (dead_tuples::CHECK, Reads::Tables, dead_tuples::examine),
    (bloat::CHECK, Reads::Tables, bloat::examine),
    (notifications::CHECK, Reads::Server, notifications::examine),
    (sequences::CHECK, Reads::Tables, sequences::examine),
    (owners::CHECK, Reads::Tables, owners::examine),
    (privileges::CHECK, Reads::Tables, privileges::examine),
    (row_security::CHECK, Reads::Tables, row_security::examine),
    (migrations::CHECK, Reads::Tables, migrations::examine),
    (drift::CHECK, Reads::Tables, drift::examine),
    (plans::CHECK, Reads::Tables, plans::examine),
];

/// Settings of each check's transaction. The search path excludes functions of other schemas. The timeouts keep a
/// check from waiting long for other sessions.
const GUARD: &str = "SET LOCAL search_path TO pg_catalog, pg_temp; \
    SET LOCAL statement_timeout TO '30s'; \
    SET LOCAL lock_timeout TO '2s'";

impl Exam<'_> {
    fn all(&self, conn: &mut PgConnection, pooler: Vec<Finding>) -> Result<Vec<Finding>, Error> {
        let table = &self.store.table;
        let has_tables = migrate::table_exists(conn, table)?;
        let mut findings = pooler;
        for (name, _, check) in CHECKS.iter().filter(|(_, reads, _)| has_tables || *reads == Reads::Server) {
            findings.extend(self.run(conn, name, *check)?);
        }
        if !has_tables {
            let missing =
                Finding::new(migrations::CHECK, Level::Failure, format!("table {table} does not exist"));
            findings.push(missing.advise(
                "run `pq migrate`, or call `migrate()`; if the jobs are in another schema or table, name it",
            ));
        }
        Ok(findings)
    }

    /// Runs one check in a transaction that is always rolled back.
    fn run(&self, conn: &mut PgConnection, name: &'static str, check: Check) -> Result<Vec<Finding>, Error> {
        let findings = rolled_back(conn, |conn| {
            conn.batch_execute(GUARD)?;
            check(self, conn)
        });
        match findings {
            Err(error @ (Error::Database { .. } | Error::ReadOnly(_))) => {
                let skipped = Finding::new(name, Level::Skipped, format!("cannot check: {error}"));
                Ok(vec![skipped])
            }
            other => other,
        }
    }
}

fn is_in_transaction(conn: &mut PgConnection) -> bool {
    let status = AnsiTransactionManager::transaction_manager_status_mut(conn);
    // If the connection is broken, the first check reports it.
    status.transaction_depth().is_ok_and(|depth| depth.is_some())
}

fn rolled_back<R>(
    conn: &mut PgConnection,
    work: impl FnOnce(&mut PgConnection) -> Result<R, Error>,
) -> Result<R, Error> {
    AnsiTransactionManager::begin_transaction(conn)?;
    let result = work(conn);
    // If the connection is lost, the server rolls back and the result already is an error.
    let _ = AnsiTransactionManager::rollback_transaction(conn);
    result
}

/// Formats a span to the second.
fn span(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX).as_secs();
    humantime::format_duration(Duration::from_secs(whole)).to_string()
}

fn mebibytes(bytes: f64) -> String {
    format!("{:.0} MiB", bytes / 1_048_576.0)
}

fn percent(part: f64) -> String {
    format!("{:.0} %", part * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_ascend() {
        assert!(
            Level::Ok < Level::Skipped && Level::Skipped < Level::Warning && Level::Warning < Level::Failure
        );
    }

    #[test]
    fn advice_if_bad_is_dropped_below_a_warning() {
        let advised = |level| Finding::new("a check", level, "seen").advise_if_bad("do").advice.is_some();
        assert_eq!(
            [Level::Ok, Level::Skipped, Level::Warning, Level::Failure].map(advised),
            [false, false, true, true]
        );
    }

    #[test]
    fn spans_are_formatted_to_the_second() {
        assert_eq!(span(65.7), "1m 5s");
        assert_eq!(span(-1.0), "0s");
    }
}
