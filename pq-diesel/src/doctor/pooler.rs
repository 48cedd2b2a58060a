//! Detects a connection pooler that gives each transaction another session.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};
use pq_core::store::Connect;

use super::{Finding, Level};
use crate::Error;
use crate::prepared::{Statement, Value};
use crate::store::PgStore;

pub(super) const CHECK: &str = "pooler";

/// The time for which the second connection holds its session.
const HOLD: Duration = Duration::from_secs(1);

/// The time that a notification of the session to itself may take.
const NOTIFICATION_TIMEOUT: Duration = Duration::from_secs(2);

/// The features that work on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Features {
    /// The next transactions have the same settings and the same server process.
    session: bool,
    /// A named prepared statement can be executed in them.
    prepared: bool,
    /// A notification reached the session that sent it. Not tested if the session changes.
    notified: Option<bool>,
}

/// Tests the connection. A second one of the handle detects a pooler that happens to give the same session twice.
pub(super) fn examine(store: &PgStore, conn: &mut PgConnection, second: bool) -> Vec<Finding> {
    if super::is_in_transaction(conn) {
        let message = "cannot detect: the connection is in a transaction";
        return vec![Finding::new(CHECK, Level::Skipped, message)];
    }
    let features = if second { test_with_second(store, conn) } else { test(conn, None) };
    match features {
        Ok(features) => assess(features),
        Err(error) => vec![Finding::new(CHECK, Level::Skipped, format!("cannot detect: {error}"))],
    }
}

/// Tests the connection while another one begins a transaction between two of its transactions.
///
/// A pooler in transaction mode gives the other connection the session that this one has just left.
fn test_with_second(store: &PgStore, conn: &mut PgConnection) -> Result<Features, Error> {
    let (start, started) = mpsc::channel::<()>();
    let (report, reported) = mpsc::channel::<(i64, bool)>();
    let (done, is_done) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if started.recv().is_err() {
                return;
            }
            // If no second connection is available, the channel closes and the test continues.
            let _ = store.with_connection(|other| {
                other.transaction(|other| {
                    let _ = report.send((process(other)?, runs_prepared(other)));
                    let _ = is_done.recv_timeout(HOLD);
                    Ok::<_, Error>(())
                })
            });
        });
        let features = test(conn, Some((&start, &reported)));
        drop((start, done));
        features
    })
}

/// Starts the second connection, and receives its server process and whether it could execute a prepared statement. Two
/// clients that share a server process share the names of prepared statements.
type Second<'a> = (&'a mpsc::Sender<()>, &'a mpsc::Receiver<(i64, bool)>);

fn test(conn: &mut PgConnection, second: Option<Second<'_>>) -> Result<Features, Error> {
    let before = process(conn)?;
    let mark = format!("{before}");
    conn.batch_execute(&format!("SET pq.doctor TO '{mark}'"))?;
    let mut features = Features { session: true, prepared: runs_prepared(conn), notified: None };
    if let Some((start, reported)) = second {
        let _ = start.send(());
        if let Ok((process, prepared)) = reported.recv() {
            features.session = process != before;
            features.prepared &= prepared;
        }
    }
    for _ in 0..3 {
        let kept: Option<String> =
            diesel::dsl::sql::<Nullable<Text>>("SELECT current_setting('pq.doctor', true)")
                .get_result(conn)?;
        features.session &= kept.as_ref() == Some(&mark) && process(conn)? == before;
        features.prepared &= runs_prepared(conn);
    }
    if features.session {
        features.notified = Some(notifies_itself(conn, before)?);
    }
    conn.batch_execute("RESET pq.doctor")?;
    Ok(features)
}

/// Executes a statement that diesel prepares by name at the first call and executes by that name later.
fn runs_prepared(conn: &mut PgConnection) -> bool {
    let mut statement = Statement::default();
    statement.push_text("SELECT ");
    statement.push_param(1);
    statement.push_text("::bigint + 0");
    let values = [Value::BigInt(1)];
    statement.with::<BigInt>(&values).get_result::<i64>(conn).is_ok()
}

/// Returns the server process, in a transaction of its own, which a pooler may give to any session.
fn process(conn: &mut PgConnection) -> Result<i64, Error> {
    Ok(diesel::dsl::sql::<BigInt>("SELECT pg_backend_pid()::bigint").get_result(conn)?)
}

fn notifies_itself(conn: &mut PgConnection, process: i64) -> Result<bool, Error> {
    let channel = format!("pq_doctor_{process}");
    conn.batch_execute(&format!("LISTEN {channel}"))?;
    conn.batch_execute(&format!("NOTIFY {channel}"))?;
    let started = Instant::now();
    let mut arrived = false;
    while !arrived && started.elapsed() < NOTIFICATION_TIMEOUT {
        // A notification arrives with the answer to a statement.
        conn.batch_execute("SELECT")?;
        arrived = conn.notifications_iter().any(|one| one.is_ok_and(|one| one.channel == channel));
    }
    conn.batch_execute(&format!("UNLISTEN {channel}"))?;
    Ok(arrived)
}

fn assess(features: Features) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !features.session {
        let message = "a pooler in transaction mode gives each transaction another session";
        findings.push(Finding::new(CHECK, Level::Warning, message).advise(
            "LISTEN does not work through the pooler; run commands with --pooler, build handles with \
             Builder::listen(false), which poll, or connect workers directly to the server",
        ));
    } else if features.notified == Some(false) {
        let message = "notifications do not arrive, although the session stays the same";
        findings.push(Finding::new(CHECK, Level::Warning, message).advise(
            "build handles with Builder::listen(false), which poll, or connect directly to the server",
        ));
    }
    if !features.prepared {
        let message = "named prepared statements are missing in the next transaction";
        findings.push(Finding::new(CHECK, Level::Warning, message).advise(
            "run commands with --pooler, build handles with Builder::prepare(false), or configure the pooler to track prepared statements \
             (max_prepared_statements of PgBouncer)",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "session state, prepared statements and LISTEN work"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_covers_what_does_not_work() {
        let fine = Features { session: true, prepared: true, notified: Some(true) };
        let advice = |features: Features| {
            let found = assess(features);
            found.iter().filter_map(|finding| finding.advice.clone()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(advice(fine), "");
        assert!(advice(Features { notified: Some(false), ..fine }).contains("listen(false)"));
        let transaction = advice(Features { session: false, prepared: false, notified: None });
        assert!(transaction.contains("listen(false)") && transaction.contains("prepare(false)"));
        let rewriting = advice(Features { session: false, notified: None, ..fine });
        assert!(rewriting.contains("listen(false)") && !rewriting.contains("prepare(false)"));
    }
}
