//! Looks at a database as somebody would who knows queues on PostgreSQL well, and says what to do about what is
//! found.
//!
//! ```no_run
//! use pq_diesel::Pq;
//! use pq_diesel::doctor::{Examination, Level};
//!
//! # fn main() -> Result<(), pq_diesel::Error> {
//! let pq = Pq::connect("postgres://localhost/shop")?;
//! for finding in pq.examine(&Examination::new())? {
//!     if finding.level >= Level::Warning {
//!         println!("{}: {}", finding.check, finding.what);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Nothing is changed: what a check has to make to find out, it makes in a transaction that is rolled back. No
//! text of other sessions' statements is read, and no payload.

mod clock;
mod drift;
mod grants;
mod horizon;
mod migrations;
mod notifications;
mod plans;
mod pooler;
mod sequences;
mod server;
mod settings;
mod tables;

use std::time::{Duration, SystemTime};

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use pq_core::store::Connect;
use serde::Serialize;

use crate::store::PgStore;
use crate::{Error, Pq, migrate};

/// How bad a finding is. They ascend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Level {
    /// As it should be.
    Ok,
    /// It could not be looked at.
    Skipped,
    /// It will hurt under load, after a while or in an accident.
    Warning,
    /// It hurts now, or jobs can be lost.
    Failure,
}

/// What one look found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// What was looked at, such as `vacuum horizon`.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was seen. Names of the database's objects and sessions stand in it as they are, control characters
    /// included.
    pub what: String,
    /// What to do about it.
    pub advice: Option<String>,
}

impl Finding {
    fn new(check: &'static str, level: Level, what: impl Into<String>) -> Self {
        Self { check, level, what: what.into(), advice: None }
    }

    fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self::new(check, Level::Ok, what)
    }

    fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }

    /// Advice that is of use where the finding is bad, and idle where it is not.
    fn advise_if_bad(self, advice: impl Into<String>) -> Self {
        if self.level >= Level::Warning { self.advise(advice) } else { self }
    }
}

/// How a database is looked at.
#[derive(Clone, Debug)]
#[must_use]
pub struct Examination {
    horizon: Duration,
    clock: Option<fn() -> SystemTime>,
}

impl Examination {
    /// Nothing may hold the vacuum horizon for longer than a minute, and no clock is compared.
    pub fn new() -> Self {
        Self { horizon: Duration::from_secs(60), clock: None }
    }

    /// How long something may hold the vacuum horizon before there is a warning.
    pub fn horizon(mut self, longest: Duration) -> Self {
        self.horizon = longest;
        self
    }

    /// Compares this clock, which is the caller's machine's, with the server's. The library itself never reads
    /// it: only the database's clock decides when a job is due.
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
    /// Looks at the database, on connections of the handle's own: at the server and its settings, at what keeps
    /// dead rows from being removed, at the tables, their plans, rights and sequences, and at whether the catalog
    /// is still what the migrations made.
    ///
    /// A check that cannot be made (for want of a right, say) is a finding of [`Level::Skipped`].
    ///
    /// # Errors
    ///
    /// [`Error::NotMigrated`] where there is no table to look at; those of a lost connection.
    pub fn examine(&self, how: &Examination) -> Result<Vec<Finding>, Error> {
        let store = self.store();
        store.with_connection(|conn| {
            let pooler = pooler::examine(store, conn, true);
            Exam { store, how }.all(conn, pooler)
        })
    }

    /// [`Pq::examine`] on the caller's connection. A pooler is found more surely outside of a transaction, and
    /// by [`Pq::examine`], which has a second connection to compare with.
    ///
    /// # Errors
    ///
    /// As [`Pq::examine`].
    pub fn examine_on(&self, conn: &mut PgConnection, how: &Examination) -> Result<Vec<Finding>, Error> {
        let store = self.store();
        let pooler = pooler::examine(store, conn, false);
        Exam { store, how }.all(conn, pooler)
    }
}

/// What the checks are told.
struct Exam<'a> {
    store: &'a PgStore,
    how: &'a Examination,
}

type Check = fn(&Exam<'_>, &mut PgConnection) -> Result<Vec<Finding>, Error>;

/// In the order in which they are told.
const CHECKS: [(&str, Check); 13] = [
    (server::VERSION, server::version),
    (server::CONNECTIONS, server::connections),
    (settings::CHECK, settings::examine),
    (clock::CHECK, clock::examine),
    (horizon::CHECK, horizon::examine),
    (tables::DEAD_ROWS, tables::dead_rows),
    (tables::BLOAT, tables::bloat),
    (notifications::CHECK, notifications::examine),
    (sequences::CHECK, sequences::examine),
    (grants::CHECK, grants::examine),
    (migrations::CHECK, migrations::examine),
    (drift::CHECK, drift::examine),
    (plans::CHECK, plans::examine),
];

/// No check waits long for anybody, and none finds functions of another schema in place of PostgreSQL's.
const GUARD: &str = "SET LOCAL search_path TO pg_catalog, pg_temp; \
    SET LOCAL statement_timeout TO '30s'; \
    SET LOCAL lock_timeout TO '2s'";

impl Exam<'_> {
    fn all(&self, conn: &mut PgConnection, pooler: Vec<Finding>) -> Result<Vec<Finding>, Error> {
        let table = &self.store.table;
        if !migrate::table_exists(conn, table)? {
            return Err(Error::NotMigrated { table: table.to_string() });
        }
        let mut findings = pooler;
        for (name, check) in CHECKS {
            findings.extend(self.look(conn, name, check)?);
        }
        Ok(findings)
    }

    /// One check, in a transaction that is rolled back whatever it did.
    fn look(&self, conn: &mut PgConnection, name: &'static str, check: Check) -> Result<Vec<Finding>, Error> {
        let looked = rolled_back(conn, |conn| {
            conn.batch_execute(GUARD)?;
            check(self, conn)
        });
        match looked {
            Err(Error::Database(error)) => {
                let skipped = Finding::new(name, Level::Skipped, format!("not looked at: {error}"));
                Ok(vec![skipped])
            }
            other => other,
        }
    }
}

fn is_in_transaction(conn: &mut PgConnection) -> bool {
    let status = AnsiTransactionManager::transaction_manager_status_mut(conn);
    // Of a connection that is broken the first check will tell.
    status.transaction_depth().is_ok_and(|depth| depth.is_some())
}

fn rolled_back<R>(
    conn: &mut PgConnection,
    work: impl FnOnce(&mut PgConnection) -> Result<R, Error>,
) -> Result<R, Error> {
    AnsiTransactionManager::begin_transaction(conn)?;
    let done = work(conn);
    // Where the connection is lost the server rolls back, and what was returned says so.
    let _ = AnsiTransactionManager::rollback_transaction(conn);
    done
}

/// A span as it is read, to the second.
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
    fn advice_is_kept_for_what_is_bad() {
        let advised = |level| Finding::new("a check", level, "seen").advise_if_bad("do").advice.is_some();
        assert_eq!(
            [Level::Ok, Level::Skipped, Level::Warning, Level::Failure].map(advised),
            [false, false, true, true]
        );
    }

    #[test]
    fn spans_are_read_to_the_second() {
        assert_eq!(span(65.7), "1m 5s");
        assert_eq!(span(-1.0), "0s");
    }
}
