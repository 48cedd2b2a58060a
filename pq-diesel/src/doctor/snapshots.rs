//! Checks for long-running snapshots.
//!
//! Vacuum cannot remove a dead tuple that is younger than the oldest snapshot. Each take reads past such tuples, so
//! takes slow down. Sessions, prepared transactions, replication slots and standbys can hold a snapshot.

use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Double, Nullable, Text};

use super::{Exam, Finding, Level, span};
use crate::Error;

pub(super) const CHECK: &str = "old snapshots";

/// The age at which a snapshot is a failure. At a thousand jobs per second that is millions of dead tuples.
const FAILURE_AFTER: Duration = Duration::from_secs(3600);

/// The ages in transactions that count like a minute and like an hour. They apply if the time is unknown.
const WARNING_XIDS: i64 = 1_000_000;
const FAILURE_XIDS: i64 = 50_000_000;

/// The number of holders that are reported one by one. The rest is counted.
const NAMED: usize = 10;

/// Lists what holds a snapshot. Vacuum has one and does not count. A standby's sender is listed as the standby. A
/// slot's catalog_xmin affects only the system catalogs. A role without pg_read_all_stats does not see the times of
/// other roles' sessions.
const HOLDERS: &str = "
    SELECT 'session' AS kind, pid::text AS name, coalesce(usename::text, backend_type) AS role,
        nullif(application_name, '') AS application, state,
        extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds,
        greatest(age(backend_xid), age(backend_xmin))::bigint AS xids
    FROM pg_stat_activity
    WHERE (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL) AND pid <> pg_backend_pid()
        AND (datname = current_database() OR datname IS NULL)
        AND backend_type NOT IN ('autovacuum worker', 'walsender')
        AND pid NOT IN (SELECT pid FROM pg_stat_progress_vacuum)
    UNION ALL
    SELECT 'prepared transaction', quote_literal(gid), owner, NULL, NULL,
        extract(epoch FROM clock_timestamp() - prepared)::float8, age(transaction)::bigint
    FROM pg_prepared_xacts WHERE database = current_database()
    UNION ALL
    SELECT CASE WHEN xmin IS NULL THEN 'replication slot (catalog only)' ELSE 'replication slot' END,
        quote_literal(slot_name), NULL, plugin, CASE WHEN active THEN 'active' ELSE 'inactive' END, NULL,
        greatest(age(xmin), age(catalog_xmin))::bigint
    FROM pg_replication_slots WHERE xmin IS NOT NULL OR catalog_xmin IS NOT NULL
    UNION ALL
    SELECT 'standby', coalesce(application_name, ''), usename, host(client_addr), state, NULL,
        age(backend_xmin)::bigint
    FROM pg_stat_replication WHERE backend_xmin IS NOT NULL
    ORDER BY seconds DESC NULLS LAST, xids DESC";

#[derive(QueryableByName)]
struct Holder {
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Nullable<Text>)]
    role: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    application: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    state: Option<String>,
    #[diesel(sql_type = Nullable<Double>)]
    seconds: Option<f64>,
    #[diesel(sql_type = BigInt)]
    xids: i64,
}

pub(super) fn examine(exam: &Exam<'_>, conn: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let holders: Vec<Holder> = diesel::sql_query(HOLDERS).load(conn)?;
    Ok(assess(&holders, exam.how.max_snapshot_age))
}

fn assess(holders: &[Holder], max_age: Duration) -> Vec<Finding> {
    let bad: Vec<Finding> = holders
        .iter()
        .filter_map(|holder| {
            let level = level(holder.seconds, holder.xids, max_age);
            (level > Level::Ok).then(|| Finding::new(CHECK, level, holder.describe()).advise(holder.advice()))
        })
        .collect();
    let limit = span(max_age.as_secs_f64());
    if bad.is_empty() {
        let count = match holders.len() {
            0 => "none".to_owned(),
            count => format!("{count} snapshots, none older than {limit}"),
        };
        return vec![Finding::ok(CHECK, count)];
    }
    let worst = bad.iter().map(|finding| finding.level).max().unwrap_or(Level::Warning);
    let left = bad.len().saturating_sub(NAMED);
    let mut findings: Vec<Finding> = bad.into_iter().take(NAMED).collect();
    if left > 0 {
        findings.push(Finding::new(CHECK, worst, format!("{left} more are older than {limit}")));
    }
    findings
}

fn level(seconds: Option<f64>, xids: i64, max_age: Duration) -> Level {
    let older = |limit: Duration| seconds.is_some_and(|seconds| seconds > limit.as_secs_f64());
    if older(FAILURE_AFTER.max(max_age)) || xids > FAILURE_XIDS {
        Level::Failure
    } else if older(max_age) || xids > WARNING_XIDS {
        Level::Warning
    } else {
        Level::Ok
    }
}

impl Holder {
    fn describe(&self) -> String {
        let about: Vec<&str> =
            [&self.role, &self.application, &self.state].into_iter().flatten().map(String::as_str).collect();
        let about = if about.is_empty() { String::new() } else { format!(" ({})", about.join(", ")) };
        let age = self.seconds.map_or("of unknown age".to_owned(), |s| format!("{} old", span(s)));
        format!("{} {}{about} holds a snapshot {age}, over {} transactions", self.kind, self.name, self.xids)
    }

    fn advice(&self) -> String {
        match self.kind.as_str() {
            "session"
                if self.state.as_deref().is_some_and(|state| state.starts_with("idle in transaction")) =>
            {
                format!(
                    "end the session: SELECT pg_terminate_backend({}); set idle_in_transaction_session_timeout against \
                     forgotten transactions, and use leased handlers for long jobs",
                    self.name
                )
            }
            "session" => format!(
                "wait for it, or: SELECT pg_cancel_backend({}); run long reports on a standby without \
                 hot_standby_feedback, and use leased handlers for long jobs",
                self.name
            ),
            "prepared transaction" => {
                format!("end it in this database: COMMIT PREPARED {0}, or ROLLBACK PREPARED {0}", self.name)
            }
            "standby" => {
                "end the long statement on the standby, or set hot_standby_feedback = off there".to_owned()
            }
            _ => format!(
                "let its consumer catch up, or drop it if it is unused: SELECT pg_drop_replication_slot({})",
                self.name
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn session(seconds: Option<f64>, xids: i64) -> Holder {
        Holder {
            kind: "session".to_owned(),
            name: "4711".to_owned(),
            role: Some("shop".to_owned()),
            application: Some("psql".to_owned()),
            state: Some("idle in transaction".to_owned()),
            seconds,
            xids,
        }
    }

    #[test]
    fn time_and_transactions_both_count() {
        assert_eq!(level(Some(60.0), 0, MINUTE), Level::Ok);
        assert_eq!(level(Some(60.1), 0, MINUTE), Level::Warning);
        assert_eq!(level(Some(3600.1), 0, MINUTE), Level::Failure);
        assert_eq!(level(None, WARNING_XIDS, MINUTE), Level::Ok);
        assert_eq!(level(None, WARNING_XIDS + 1, MINUTE), Level::Warning);
        assert_eq!(level(Some(1.0), FAILURE_XIDS + 1, MINUTE), Level::Failure);
        assert_eq!(
            level(Some(7000.0), 0, 2 * FAILURE_AFTER),
            Level::Ok,
            "a larger limit moves the failure, too"
        );
    }

    #[test]
    fn each_holder_is_named_with_advice() {
        let findings = assess(&[session(Some(125.0), 7), session(Some(1.0), 1)], MINUTE);
        assert_eq!(findings.len(), 1);
        assert_eq!(
            findings[0].message,
            "session 4711 (shop, psql, idle in transaction) holds a snapshot 2m 5s old, over 7 transactions"
        );
        assert!(
            findings[0].advice.as_ref().is_some_and(|advice| advice.contains("pg_terminate_backend(4711)"))
        );
    }

    #[test]
    fn many_holders_are_counted() {
        let many: Vec<Holder> = (0..25).map(|_| session(Some(125.0), 7)).collect();
        let findings = assess(&many, MINUTE);
        assert_eq!(findings.len(), NAMED + 1);
        assert!(findings[NAMED].message.starts_with("15 more"));
        assert_eq!(assess(&[], MINUTE)[0].level, Level::Ok);
    }
}
