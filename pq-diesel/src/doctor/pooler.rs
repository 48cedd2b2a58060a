//! Whether there is a pooler in between that gives each transaction another session, found by trying.

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

/// How long the second connection keeps its session from the first.
const HELD: Duration = Duration::from_secs(1);

/// How long a notification to oneself may take.
const ARRIVES: Duration = Duration::from_secs(2);

/// What was tried, and what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tried {
    /// What the session was set to is there in its next transactions, and they are of one server process.
    session: bool,
    /// A statement that was prepared by name can be run in them.
    prepared: bool,
    /// A notification came to the session that sent it. Not tried where the session changes.
    notified: Option<bool>,
}

/// Tries it on this connection. With a second one of the handle's, a pooler that happens to give the same session
/// twice is found too.
pub(super) fn examine(store: &PgStore, conn: &mut PgConnection, second: bool) -> Vec<Finding> {
    if super::is_in_transaction(conn) {
        let what = "not looked for: the connection is in a transaction";
        return vec![Finding::new(CHECK, Level::Skipped, what)];
    }
    let tried = if second { beside_another(store, conn) } else { over_transactions(conn, None) };
    match tried {
        Ok(tried) => judge(tried),
        Err(error) => vec![Finding::new(CHECK, Level::Skipped, format!("not looked for: {error}"))],
    }
}

/// Has another connection begin a transaction between two of this one's: a pooler that gives sessions by the
/// transaction gives it the session that this one has just left.
fn beside_another(store: &PgStore, conn: &mut PgConnection) -> Result<Tried, Error> {
    let (let_in, door) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel::<(i64, bool)>();
    let (done, end) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if door.recv().is_err() {
                return;
            }
            // Where there is no second connection to be had, the channel closes and nobody waits.
            let _ = store.with_connection(|other| {
                other.transaction(|other| {
                    let _ = tell.send((process(other)?, runs_prepared(other)));
                    let _ = end.recv_timeout(HELD);
                    Ok::<_, Error>(())
                })
            });
        });
        let tried = over_transactions(conn, Some((&let_in, &told)));
        drop((let_in, done));
        tried
    })
}

/// Lets the other connection begin, and tells its server process and whether a prepared statement ran in it. On
/// the server two clients that share a process have names of statements in common.
type Second<'a> = (&'a mpsc::Sender<()>, &'a mpsc::Receiver<(i64, bool)>);

fn over_transactions(conn: &mut PgConnection, second: Option<Second<'_>>) -> Result<Tried, Error> {
    let before = process(conn)?;
    let mark = format!("{before}");
    conn.batch_execute(&format!("SET pq.doctor TO '{mark}'"))?;
    let mut tried = Tried { session: true, prepared: runs_prepared(conn), notified: None };
    if let Some((let_in, told)) = second {
        let _ = let_in.send(());
        if let Ok((others, prepared)) = told.recv() {
            tried.session = others != before;
            tried.prepared &= prepared;
        }
    }
    for _ in 0..3 {
        let kept: Option<String> =
            diesel::dsl::sql::<Nullable<Text>>("SELECT current_setting('pq.doctor', true)")
                .get_result(conn)?;
        tried.session &= kept.as_ref() == Some(&mark) && process(conn)? == before;
        tried.prepared &= runs_prepared(conn);
    }
    if tried.session {
        tried.notified = Some(notifies_itself(conn, before)?);
    }
    conn.batch_execute("RESET pq.doctor")?;
    Ok(tried)
}

/// diesel prepares it by name at the first call, and by that name it is run at the others.
fn runs_prepared(conn: &mut PgConnection) -> bool {
    let statement = Statement::new("SELECT $1::bigint + 0");
    let values = [Value::BigInt(1)];
    statement.with::<BigInt>(&values).get_result::<i64>(conn).is_ok()
}

/// A transaction of its own, which a pooler may give to any session.
fn process(conn: &mut PgConnection) -> Result<i64, Error> {
    Ok(diesel::dsl::sql::<BigInt>("SELECT pg_backend_pid()::bigint").get_result(conn)?)
}

fn notifies_itself(conn: &mut PgConnection, process: i64) -> Result<bool, Error> {
    let channel = format!("pq_doctor_{process}");
    conn.batch_execute(&format!("LISTEN {channel}"))?;
    conn.batch_execute(&format!("NOTIFY {channel}"))?;
    let begun = Instant::now();
    let mut came = false;
    while !came && begun.elapsed() < ARRIVES {
        // It comes with an answer.
        conn.batch_execute("SELECT")?;
        came = conn.notifications_iter().any(|heard| heard.is_ok_and(|heard| heard.channel == channel));
    }
    conn.batch_execute(&format!("UNLISTEN {channel}"))?;
    Ok(came)
}

fn judge(tried: Tried) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !tried.session {
        let what = "each transaction may have another session: a pooler in transaction mode is in between";
        findings.push(Finding::new(CHECK, Level::Warning, what).advise(
            "LISTEN does not work through it, so make handles with Builder::listen(false), which poll, or connect \
             workers to the server itself",
        ));
    } else if tried.notified == Some(false) {
        let what = "the session stays, but no notification came on it";
        findings.push(
            Finding::new(CHECK, Level::Warning, what).advise(
                "make handles with Builder::listen(false), which poll, or connect to the server itself",
            ),
        );
    }
    if !tried.prepared {
        let what = "statements that are prepared by name are not there in the next transaction";
        findings.push(Finding::new(CHECK, Level::Warning, what).advise(
            "make handles with Builder::prepare(false), or let the pooler keep prepared statements \
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
    fn what_does_not_work_is_advised_on() {
        let fine = Tried { session: true, prepared: true, notified: Some(true) };
        let advice = |tried: Tried| {
            let found = judge(tried);
            found.iter().filter_map(|finding| finding.advice.clone()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(advice(fine), "");
        assert!(advice(Tried { notified: Some(false), ..fine }).contains("listen(false)"));
        let transaction = advice(Tried { session: false, prepared: false, notified: None });
        assert!(transaction.contains("listen(false)") && transaction.contains("prepare(false)"));
        let rewriting = advice(Tried { session: false, notified: None, ..fine });
        assert!(rewriting.contains("listen(false)") && !rewriting.contains("prepare(false)"));
    }
}
