//! The server itself: is it one that the queue can work on, and has it room?

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Integer, Text};

use super::{Exam, Finding, Level, percent};
use crate::Error;

pub(super) const VERSION: &str = "server";
pub(super) const CONNECTIONS: &str = "connections";

/// The oldest that has what the statements and migrations use.
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
    let seen = format!("PostgreSQL {}", server.version);
    let mut findings = vec![if server.number / 10_000 < OLDEST {
        Finding::new(VERSION, Level::Failure, format!("{seen} is too old"))
            .advise(format!("upgrade to PostgreSQL {OLDEST} or newer"))
    } else {
        Finding::ok(VERSION, seen)
    }];
    if server.standby {
        findings.push(
            Finding::new(VERSION, Level::Failure, "it is a standby: jobs can be neither put nor taken here")
                .advise("connect to the primary, for instance with target_session_attrs=read-write"),
        );
    }
    if server.encoding != "UTF8" {
        let what = format!("the database's encoding is {}, and jobs are UTF-8", server.encoding);
        findings.push(
            Finding::new(VERSION, Level::Warning, what)
                .advise("payloads with characters that it has not are refused; move to a database in UTF8"),
        );
    }
    Ok(findings)
}

#[derive(QueryableByName)]
struct Room {
    #[diesel(sql_type = BigInt)]
    used: i64,
    #[diesel(sql_type = BigInt)]
    there: i64,
}

pub(super) fn connections(_: &Exam<'_>, conn: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let room: Room = diesel::sql_query(
        "SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS used,
            current_setting('max_connections')::bigint
                - current_setting('superuser_reserved_connections')::bigint AS there",
    )
    .get_result(conn)?;
    let part = room.used as f64 / room.there.max(1) as f64;
    let what = format!("{} of {} are in use ({})", room.used, room.there, percent(part));
    let advice = "a handle has up to pool_size connections, and one to listen: lower that, put a pooler before the \
        server, or raise max_connections";
    Ok(vec![Finding::new(CONNECTIONS, crowded(part), what).advise_if_bad(advice)])
}

fn crowded(part: f64) -> Level {
    match part {
        part if part >= 0.95 => Level::Failure,
        part if part >= 0.8 => Level::Warning,
        _ => Level::Ok,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_connections_are_a_failure() {
        assert_eq!(
            [0.1, 0.79, 0.8, 0.94, 0.95, 1.1].map(crowded),
            [Level::Ok, Level::Ok, Level::Warning, Level::Warning, Level::Failure, Level::Failure]
        );
    }
}
