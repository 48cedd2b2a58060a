//! Checks that all migrations have run, and no others.

use diesel::PgConnection;

use super::{Exam, Finding, Level};
use crate::{Error, migrate};

pub(super) const CHECK: &str = "migrations";

pub(super) fn examine(exam: &Exam<'_>, conn: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let status = migrate::status(conn, &exam.store.table)?;
    let mut findings = Vec::new();
    if !status.pending.is_empty() {
        let message = format!("pending: {}", status.pending.join(", "));
        findings.push(
            Finding::new(CHECK, Level::Failure, message).advise("run `pq migrate`, or call `migrate()`"),
        );
    }
    if !status.unknown.is_empty() {
        let message = format!("run by a newer version of pq: {}", status.unknown.join(", "));
        findings.push(
            Finding::new(CHECK, Level::Warning, message)
                .advise("upgrade this pq to the version that migrated the table"),
        );
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "all have run"));
    }
    Ok(findings)
}
