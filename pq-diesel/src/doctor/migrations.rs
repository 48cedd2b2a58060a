//! Whether all migrations have run, and no others.

use diesel::PgConnection;

use super::{Exam, Finding, Level};
use crate::{Error, migrate};

pub(super) const CHECK: &str = "migrations";

pub(super) fn examine(exam: &Exam<'_>, conn: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let status = migrate::status(conn, &exam.store.table)?;
    let mut findings = Vec::new();
    if !status.pending.is_empty() {
        let what = format!("not run yet: {}", status.pending.join(", "));
        findings
            .push(Finding::new(CHECK, Level::Failure, what).advise("run `pq migrate`, or call `migrate()`"));
    }
    if !status.unknown.is_empty() {
        let what = format!("run by another version of pq: {}", status.unknown.join(", "));
        findings.push(
            Finding::new(CHECK, Level::Warning, what)
                .advise("this pq is older than the table; use one of the version that migrated it"),
        );
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "all have run"));
    }
    Ok(findings)
}
