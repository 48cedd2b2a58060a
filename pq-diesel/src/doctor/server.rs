//! Checks the server's version, role and encoding, and its free connections.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Integer, Text};

use super::{Exam, Finding, Level, percent};
use crate::Error;

pub(super) const VERSION: &str = "server";
pub(super) const CONNECTIONS: &str = "connections";

/// The oldest version with the features that the statements and migrations use.
const OLDEST: i32 = 13;

#[derive(QueryableByName)]
struct Server {
    #[diesel(sql_type = Text)]
    version: String,
    #[diesel(sql_type = Integer)]
    number: i32,
    #[diesel(sql_type = Bool)]
    standby: bool,
    #[diesel(sql_type = Text)]
    encoding: String,
}

pub(super) fn version(_: &Exam<'_>, conn: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let server: Server = diesel::sql_query(
        "SELECT current_setting('server_version') AS version,
            current_setting('server_version_num')::integer AS number,
            pg_is_in_recovery() AS standby, current_setting('server_encoding') AS encoding",
    )
    .get_result(conn)?;
    let version = format!("PostgreSQL {}", server.version);
    let mut findings = vec![if server.number / 10_000 < OLDEST {
        Finding::new(VERSION, Level::Failure, format!("{version} is too old"))
            .advise(format!("upgrade to PostgreSQL {OLDEST} or newer"))
    } else {
        Finding::ok(VERSION, version)
    }];
    if server.standby {
        findings.push(
            Finding::new(VERSION, Level::Failure, "this is a standby, where jobs cannot be put or taken")
                .advise("connect to the primary, for example with target_session_attrs=read-write"),
        );
    }
    if server.encoding == "SQL_ASCII" {
        let message = "the database's encoding is SQL_ASCII, which stores any bytes as text: a row whose bytes are no \
            UTF-8 cannot be read and stops its queue";
        findings.push(
            Finding::new(VERSION, Level::Failure, message).advise(
                "move the jobs to a database with ENCODING 'UTF8', and delete rows that cannot be read",
            ),
        );
    } else if server.encoding != "UTF8" {
        let message = format!("the database's encoding is {}, and payloads are UTF-8", server.encoding);
        findings.push(
            Finding::new(VERSION, Level::Warning, message)
                .advise(
                    "payloads with other characters are refused, and such characters of an error's text are replaced; \
                     use a database with encoding UTF8",
                ),
        );
    }
    Ok(findings)
}

#[derive(QueryableByName)]
struct Connections {
    #[diesel(sql_type = BigInt)]
    used: i64,
    #[diesel(sql_type = BigInt)]
    available: i64,
}

pub(super) fn connections(_: &Exam<'_>, conn: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let connections: Connections = diesel::sql_query(
        "SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS used,
            current_setting('max_connections')::bigint
                - current_setting('superuser_reserved_connections')::bigint AS available",
    )
    .get_result(conn)?;
    let fraction = connections.used as f64 / connections.available.max(1) as f64;
    let message = format!("{} of {} in use ({})", connections.used, connections.available, percent(fraction));
    let advice = "a handle has up to pool_size connections and one for LISTEN; lower pool_size, use a pooler, or raise \
        max_connections";
    Ok(vec![Finding::new(CONNECTIONS, level(fraction), message).advise_if_bad(advice)])
}

fn level(fraction: f64) -> Level {
    match fraction {
        fraction if fraction >= 0.95 => Level::Failure,
        fraction if fraction >= 0.8 => Level::Warning,
        _ => Level::Ok,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_connections_are_a_failure() {
        assert_eq!(
            [0.1, 0.79, 0.8, 0.94, 0.95, 1.1].map(level),
            [Level::Ok, Level::Ok, Level::Warning, Level::Warning, Level::Failure, Level::Failure]
        );
    }
}
