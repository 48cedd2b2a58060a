//! Settings that matter to a queue.

use diesel::prelude::*;
use diesel::sql_types::{Array, Nullable, Text};

use super::{Exam, Finding, Level};
use crate::Error;

pub(super) const CHECK: &str = "settings";

/// When a value is bad.
enum Bad {
    /// Where it is this one.
    Is(&'static str),
    /// Where it is not this one.
    IsNot(&'static str),
    /// Where it is a number of milliseconds (or seconds, as PostgreSQL keeps it), not 0, and below this.
    Below(i64),
    /// Where it is above this.
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

/// As pg_settings has them, in its units. A setting that this server does not know is passed over.
const RULES: [Rule; 15] = [
    rule(
        "fsync",
        Bad::Is("off"),
        Level::Failure,
        "a crash of the machine can destroy the whole database: set fsync = on, except on a server for tests",
    ),
    rule(
        "full_page_writes",
        Bad::Is("off"),
        Level::Warning,
        "a crash of the machine can leave half-written pages: set full_page_writes = on, unless the file system \
         never tears a page",
    ),
    rule(
        "synchronous_commit",
        Bad::Is("off"),
        Level::Warning,
        "after a crash, jobs whose put had returned may be missing, and jobs that were done may be there again: \
         set synchronous_commit = on for the roles that put and work",
    ),
    rule(
        "autovacuum",
        Bad::Is("off"),
        Level::Failure,
        "each job leaves a dead row, and takes become slower and slower: set autovacuum = on",
    ),
    rule(
        "track_counts",
        Bad::Is("off"),
        Level::Failure,
        "autovacuum does not learn which tables need it: set track_counts = on",
    ),
    rule(
        "autovacuum_naptime",
        Bad::Above(300),
        Level::Warning,
        "dead jobs pile up between its visits: a minute or less suits a queue",
    ),
    rule(
        "default_transaction_read_only",
        Bad::Is("on"),
        Level::Failure,
        "nothing can be put or taken: set it to off for this role",
    ),
    rule(
        "session_replication_role",
        Bad::Is("replica"),
        Level::Failure,
        "triggers do not run, so nobody is told of a put and unique keys are not held: set it to origin",
    ),
    rule(
        "default_transaction_isolation",
        Bad::IsNot("read committed"),
        Level::Warning,
        "concurrent takes fail with serialization errors and have to be tried again: use read committed for the \
         roles that work",
    ),
    rule(
        "statement_timeout",
        Bad::Below(10_000),
        Level::Warning,
        "long takes, sweeps and migrations are cancelled by it: give the roles of the queue 10 seconds or more",
    ),
    rule(
        "transaction_timeout",
        Bad::Below(60_000),
        Level::Warning,
        "handlers that work in the transaction that takes their job are ended by it: lease such jobs, or raise it",
    ),
    rule(
        "idle_in_transaction_session_timeout",
        Bad::Below(60_000),
        Level::Warning,
        "handlers that compute for that long in the transaction that takes their job lose it: lease such jobs, or \
         raise it",
    ),
    rule(
        "idle_session_timeout",
        Bad::Below(600_000),
        Level::Warning,
        "idle connections of pools and listeners are ended by it, and made anew each time: set it to 0 for the \
         roles of the queue",
    ),
    rule(
        "lock_timeout",
        Bad::Below(1_000),
        Level::Warning,
        "puts with a unique key may wait for one another that long: give the roles of the queue a second or more",
    ),
    rule(
        "max_connections",
        Bad::Below(20),
        Level::Warning,
        "a handle alone has up to 16 connections, and one to listen: raise it, or lower pool_size",
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
    // What the check itself has set for its transaction is not what the sessions of the queue have.
    let settings: Vec<Setting> = diesel::sql_query(
        "SELECT name, CASE WHEN name IN ('statement_timeout', 'lock_timeout') THEN reset_val ELSE setting END \
             AS setting, unit
         FROM pg_settings WHERE name = ANY ($1)",
    )
    .bind::<Array<Text>, _>(names)
    .load(conn)?;
    let mut findings: Vec<Finding> = RULES
        .iter()
        .filter_map(|rule| judge(rule, settings.iter().find(|s| s.name == rule.setting)?))
        .collect();
    if findings.is_empty() {
        let idle =
            settings.iter().any(|s| s.name == "idle_in_transaction_session_timeout" && s.setting == "0");
        let fine = Finding::ok(CHECK, format!("{} settings are as they should be", settings.len()));
        findings.push(if idle {
            fine.advise(
                "idle_in_transaction_session_timeout is 0: a minute or more would end sessions that forgot their \
                 transaction, which keep dead rows from being removed",
            )
        } else {
            fine
        });
    }
    Ok(findings)
}

fn judge(rule: &Rule, found: &Setting) -> Option<Finding> {
    let number = found.setting.parse::<i64>();
    let bad = match rule.bad {
        Bad::Is(value) => found.setting == value,
        Bad::IsNot(value) => found.setting != value,
        Bad::Below(least) => number.is_ok_and(|number| number > 0 && number < least),
        Bad::Above(most) => number.is_ok_and(|number| number > most),
    };
    let unit = found.unit.as_ref().map_or(String::new(), |unit| format!(" {unit}"));
    let what = format!("{} is {}{unit}", found.name, found.setting);
    bad.then(|| Finding::new(CHECK, rule.level, what).advise(rule.advice))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(name: &str, setting: &str) -> Option<Level> {
        let found = Setting { name: name.to_owned(), setting: setting.to_owned(), unit: None };
        let rule = RULES.iter().find(|rule| rule.setting == name)?;
        judge(rule, &found).map(|finding| finding.level)
    }

    #[test]
    fn what_is_off_and_should_be_on() {
        for name in ["fsync", "autovacuum", "track_counts"] {
            assert_eq!((level(name, "on"), level(name, "off")), (None, Some(Level::Failure)), "{name}");
        }
        assert_eq!(level("synchronous_commit", "remote_apply"), None);
        assert_eq!(level("synchronous_commit", "off"), Some(Level::Warning));
    }

    #[test]
    fn a_timeout_of_nothing_is_none() {
        assert_eq!(level("statement_timeout", "0"), None);
        assert_eq!(level("statement_timeout", "9999"), Some(Level::Warning));
        assert_eq!(level("statement_timeout", "10000"), None);
        assert_eq!(level("autovacuum_naptime", "300"), None);
        assert_eq!(level("autovacuum_naptime", "301"), Some(Level::Warning));
    }

    #[test]
    fn other_isolation_levels_are_told() {
        assert_eq!(level("default_transaction_isolation", "read committed"), None);
        assert_eq!(level("default_transaction_isolation", "serializable"), Some(Level::Warning));
    }
}
