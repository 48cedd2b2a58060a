//! Checks the server's settings that affect a queue.

use diesel::prelude::*;
use diesel::sql_types::{Array, Nullable, Text};

use super::{Exam, Finding, Level};
use crate::Error;

pub(super) const CHECK: &str = "settings";

/// The condition under which a value is bad.
enum Bad {
    /// It is this value.
    Is(&'static str),
    /// It is not this value.
    IsNot(&'static str),
    /// It is positive and below this number, in the setting's unit.
    Below(i64),
    /// It is above this number, in the setting's unit.
    Above(i64),
}

struct Rule {
    setting: &'static str,
    bad: Bad,
    level: Level,
    advice: &'static str,
}

const fn rule(setting: &'static str, bad: Bad, level: Level, advice: &'static str) -> Rule {
    Rule { setting, bad, level, advice }
}

/// The rules, in the units of pg_settings. A setting that the server does not have is skipped.
const RULES: [Rule; 15] = [
    rule(
        "fsync",
        Bad::Is("off"),
        Level::Failure,
        "a crash of the machine can destroy the database; set fsync = on, except on a server for tests",
    ),
    rule(
        "full_page_writes",
        Bad::Is("off"),
        Level::Warning,
        "a crash of the machine can leave half-written pages; set full_page_writes = on, unless the file system \
         writes pages atomically",
    ),
    rule(
        "synchronous_commit",
        Bad::Is("off"),
        Level::Warning,
        "a crash can lose jobs whose put had returned, and bring back completed jobs; set synchronous_commit = on for \
         the roles that put and work",
    ),
    rule(
        "autovacuum",
        Bad::Is("off"),
        Level::Failure,
        "each job leaves a dead tuple, and takes slow down without limit; set autovacuum = on",
    ),
    rule(
        "track_counts",
        Bad::Is("off"),
        Level::Failure,
        "autovacuum cannot see which tables need it; set track_counts = on",
    ),
    rule(
        "autovacuum_naptime",
        Bad::Above(300),
        Level::Warning,
        "dead tuples accumulate between its runs; set it to one minute or less",
    ),
    rule(
        "default_transaction_read_only",
        Bad::Is("on"),
        Level::Failure,
        "jobs cannot be put or taken; set it to off for this role",
    ),
    rule(
        "session_replication_role",
        Bad::Is("replica"),
        Level::Failure,
        "triggers do not run, so puts do not notify and unique keys are not enforced; set it to origin",
    ),
    rule(
        "default_transaction_isolation",
        Bad::IsNot("read committed"),
        Level::Warning,
        "each call of a handle takes two more round trips, to work at read committed; set it to read committed for the \
         queue's roles",
    ),
    rule(
        "statement_timeout",
        Bad::Below(10_000),
        Level::Warning,
        "it cancels long takes, maintenance and migrations; set it to at least 10 seconds for the queue's roles",
    ),
    rule(
        "transaction_timeout",
        Bad::Below(60_000),
        Level::Warning,
        "it ends long transactional handlers; use leased handlers, or raise it",
    ),
    rule(
        "idle_in_transaction_session_timeout",
        Bad::Below(60_000),
        Level::Warning,
        "it ends transactional handlers that compute for that long between two statements; use leased handlers, or \
         raise it",
    ),
    rule(
        "idle_session_timeout",
        Bad::Below(600_000),
        Level::Warning,
        "it closes idle connections of pools and listeners, which must then reconnect; set it to 0 for the queue's \
         roles",
    ),
    rule(
        "lock_timeout",
        Bad::Below(1_000),
        Level::Warning,
        "puts of one unique key wait for each other; set it to at least one second for the queue's roles",
    ),
    rule(
        "max_connections",
        Bad::Below(20),
        Level::Warning,
        "one handle has up to 16 connections and one for LISTEN; raise max_connections, or lower pool_size",
    ),
];

#[derive(QueryableByName)]
struct Setting {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    setting: String,
    #[diesel(sql_type = Nullable<Text>)]
    unit: Option<String>,
}

pub(super) fn examine(_: &Exam<'_>, conn: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let names: Vec<&str> = RULES.iter().map(|rule| rule.setting).collect();
    // The check sets these two for its own transaction, so their session default is read.
    let settings: Vec<Setting> = diesel::sql_query(
        "SELECT name, CASE WHEN name IN ('statement_timeout', 'lock_timeout') THEN reset_val ELSE setting END \
             AS setting, unit
         FROM pg_settings WHERE name = ANY ($1)",
    )
    .bind::<Array<Text>, _>(names)
    .load(conn)?;
    let mut findings: Vec<Finding> = RULES
        .iter()
        .filter_map(|rule| assess(rule, settings.iter().find(|s| s.name == rule.setting)?))
        .collect();
    let others: Vec<OfRole> = diesel::sql_query(OF_ROLES).load(conn)?;
    findings.extend(others.iter().filter_map(assess_of_role));
    if findings.is_empty() {
        let idle =
            settings.iter().any(|s| s.name == "idle_in_transaction_session_timeout" && s.setting == "0");
        let fine = Finding::ok(CHECK, format!("{} settings are fine", settings.len()));
        findings.push(if idle {
            fine.advise(
                "idle_in_transaction_session_timeout is 0, so a session that forgets its transaction keeps dead tuples from \
                 being removed; consider a minute or more",
            )
        } else {
            fine
        });
    }
    Ok(findings)
}

/// A setting that other roles than the session's have by ALTER ROLE.
#[derive(QueryableByName)]
struct OfRole {
    #[diesel(sql_type = Text)]
    role: String,
    #[diesel(sql_type = Text)]
    setting: String,
}

/// Lists the settings of roles, for all databases or for this one, without those of the session's role.
const OF_ROLES: &str = "
    SELECT rolname::text AS role, unnest(setconfig) AS setting
    FROM pg_db_role_setting JOIN pg_roles ON pg_roles.oid = setrole
    WHERE setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
        AND rolname <> current_user AND rolcanlogin
    ORDER BY role, setting";

/// Returns a finding for a setting of a role that is a word. Values with units are compared by the server only, for the
/// session's role.
fn assess_of_role(of: &OfRole) -> Option<Finding> {
    let (name, value) = of.setting.split_once('=')?;
    let rule = RULES.iter().find(|rule| rule.setting == name)?;
    if !matches!(rule.bad, Bad::Is(_) | Bad::IsNot(_)) {
        return None;
    }
    let found = Setting { name: name.to_owned(), setting: value.to_owned(), unit: None };
    assess(rule, &found).map(|finding| Finding {
        message: format!("{} for the role {}", finding.message, of.role),
        ..finding
    })
}

fn assess(rule: &Rule, found: &Setting) -> Option<Finding> {
    let number = found.setting.parse::<i64>();
    let bad = match rule.bad {
        Bad::Is(value) => found.setting == value,
        Bad::IsNot(value) => found.setting != value,
        Bad::Below(least) => number.is_ok_and(|number| number > 0 && number < least),
        Bad::Above(most) => number.is_ok_and(|number| number > most),
    };
    let unit = found.unit.as_ref().map_or(String::new(), |unit| format!(" {unit}"));
    let message = format!("{} is {}{unit}", found.name, found.setting);
    bad.then(|| Finding::new(CHECK, rule.level, message).advise(rule.advice))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(name: &str, setting: &str) -> Option<Level> {
        let found = Setting { name: name.to_owned(), setting: setting.to_owned(), unit: None };
        let rule = RULES.iter().find(|rule| rule.setting == name)?;
        assess(rule, &found).map(|finding| finding.level)
    }

    #[test]
    fn settings_that_must_be_on_are_reported_if_off() {
        for name in ["fsync", "autovacuum", "track_counts"] {
            assert_eq!((level(name, "on"), level(name, "off")), (None, Some(Level::Failure)), "{name}");
        }
        assert_eq!(level("synchronous_commit", "remote_apply"), None);
        assert_eq!(level("synchronous_commit", "off"), Some(Level::Warning));
    }

    #[test]
    fn a_timeout_of_zero_is_no_timeout() {
        assert_eq!(level("statement_timeout", "0"), None);
        assert_eq!(level("statement_timeout", "9999"), Some(Level::Warning));
        assert_eq!(level("statement_timeout", "10000"), None);
        assert_eq!(level("autovacuum_naptime", "300"), None);
        assert_eq!(level("autovacuum_naptime", "301"), Some(Level::Warning));
    }

    #[test]
    fn settings_of_other_roles_are_named_with_the_role() {
        let of = |setting: &str| {
            assess_of_role(&OfRole { role: "bob".to_owned(), setting: setting.to_owned() })
                .map(|finding| finding.message)
        };
        let serializable = of("default_transaction_isolation=serializable");
        assert_eq!(
            serializable.as_deref(),
            Some("default_transaction_isolation is serializable for the role bob")
        );
        assert_eq!(of("default_transaction_isolation=read committed"), None);
        assert_eq!(of("statement_timeout=1s"), None);
    }

    #[test]
    fn other_isolation_levels_are_reported() {
        assert_eq!(level("default_transaction_isolation", "read committed"), None);
        assert_eq!(level("default_transaction_isolation", "serializable"), Some(Level::Warning));
    }
}
