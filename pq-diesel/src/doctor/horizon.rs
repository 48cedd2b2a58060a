//! Who holds the vacuum horizon: dead jobs that somebody might still see are not removed, and each take reads
//! past them.

use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Double, Nullable, Text};

use super::{Exam, Finding, Level, span};
use crate::Error;

pub(super) const CHECK: &str = "vacuum horizon";

/// Held for this long it is a failure, however patient the caller is: at a thousand jobs a second that is millions
/// of dead rows.
const FAILURE_AFTER: Duration = Duration::from_secs(3600);

/// Where the time is not known, so many transactions are as bad as a minute, or as an hour.
const WARNING_XIDS: i64 = 1_000_000;
const FAILURE_XIDS: i64 = 50_000_000;

/// More holders than this are counted and not named.
const NAMED: usize = 10;

/// Vacuums hold no horizon, although they have a snapshot. A standby's sender is listed as such. A slot's
/// catalog_xmin holds dead rows of the system's catalogs alone. A role without pg_read_all_stats does not see the
/// times of other roles' sessions.
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
    Ok(judge_all(&holders, exam.how.horizon))
}

fn judge_all(holders: &[Holder], longest: Duration) -> Vec<Finding> {
    let bad: Vec<Finding> = holders
        .iter()
        .filter_map(|holder| {
            let level = judge(holder.seconds, holder.xids, longest);
            (level > Level::Ok).then(|| Finding::new(CHECK, level, holder.describe()).advise(holder.advice()))
        })
        .collect();
    let limit = span(longest.as_secs_f64());
    if bad.is_empty() {
        let count = match holders.len() {
            0 => "nothing holds it".to_owned(),
            1 => format!("it is held by one, for less than {limit}"),
            more => format!("it is held by {more}, each for less than {limit}"),
        };
        return vec![Finding::ok(CHECK, count)];
    }
    let worst = bad.iter().map(|finding| finding.level).max().unwrap_or(Level::Warning);
    let left = bad.len().saturating_sub(NAMED);
    let mut findings: Vec<Finding> = bad.into_iter().take(NAMED).collect();
    if left > 0 {
        findings.push(Finding::new(CHECK, worst, format!("{left} more hold it for longer than {limit}")));
    }
    findings
}

fn judge(seconds: Option<f64>, xids: i64, longest: Duration) -> Level {
    let longer = |limit: Duration| seconds.is_some_and(|seconds| seconds > limit.as_secs_f64());
    if longer(FAILURE_AFTER.max(longest)) || xids > FAILURE_XIDS {
        Level::Failure
    } else if longer(longest) || xids > WARNING_XIDS {
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
        let long =
            self.seconds.map_or("for a time that is not told".to_owned(), |s| format!("for {}", span(s)));
        format!("{} {}{about} holds it {long}, over {} transactions", self.kind, self.name, self.xids)
    }

    fn advice(&self) -> String {
        match self.kind.as_str() {
            "session"
                if self.state.as_deref().is_some_and(|state| state.starts_with("idle in transaction")) =>
            {
                format!(
                    "if it has forgotten its transaction: SELECT pg_terminate_backend({}); \
                     idle_in_transaction_session_timeout ends such sessions in time, and handlers that take long \
                     are better leased",
                    self.name
                )
            }
            "session" => format!(
                "let it end, or: SELECT pg_cancel_backend({}); long reports belong on a standby without \
                 hot_standby_feedback, and handlers that take long are better leased",
                self.name
            ),
            "prepared transaction" => {
                format!(
                    "connected to this database: COMMIT PREPARED {0}, or ROLLBACK PREPARED {0}",
                    self.name
                )
            }
            "standby" => "end the long statement there, or set hot_standby_feedback = off on it".to_owned(),
            _ => format!(
                "let its consumer catch up, or, if nobody reads it any more: SELECT \
                 pg_drop_replication_slot({})",
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
        assert_eq!(judge(Some(60.0), 0, MINUTE), Level::Ok);
        assert_eq!(judge(Some(60.1), 0, MINUTE), Level::Warning);
        assert_eq!(judge(Some(3600.1), 0, MINUTE), Level::Failure);
        assert_eq!(judge(None, WARNING_XIDS, MINUTE), Level::Ok);
        assert_eq!(judge(None, WARNING_XIDS + 1, MINUTE), Level::Warning);
        assert_eq!(judge(Some(1.0), FAILURE_XIDS + 1, MINUTE), Level::Failure);
        assert_eq!(
            judge(Some(7000.0), 0, 2 * FAILURE_AFTER),
            Level::Ok,
            "who allows two hours is not failed at one"
        );
    }

    #[test]
    fn who_holds_it_is_named_and_what_to_do() {
        let findings = judge_all(&[session(Some(125.0), 7), session(Some(1.0), 1)], MINUTE);
        assert_eq!(findings.len(), 1);
        assert_eq!(
            findings[0].what,
            "session 4711 (shop, psql, idle in transaction) holds it for 2m 5s, over 7 transactions"
        );
        assert!(
            findings[0].advice.as_ref().is_some_and(|advice| advice.contains("pg_terminate_backend(4711)"))
        );
    }

    #[test]
    fn a_crowd_is_counted() {
        let many: Vec<Holder> = (0..25).map(|_| session(Some(125.0), 7)).collect();
        let findings = judge_all(&many, MINUTE);
        assert_eq!(findings.len(), NAMED + 1);
        assert!(findings[NAMED].what.starts_with("15 more"));
        assert_eq!(judge_all(&[], MINUTE)[0].level, Level::Ok);
    }
}
