//! The least that each kind of process needs.

use std::fmt;
use std::str::FromStr;

use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Nullable, Text};

use crate::Error;
use crate::table::{Ident, Table};

/// What a process does with a queue, and so what it must be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Puts jobs. It can read no payload, not even its own.
    Producer,
    /// Takes jobs and looks after them: every worker is one, and every operator.
    Consumer,
    /// Counts and looks.
    Reader,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Producer, Self::Consumer, Self::Reader];

    /// The role as a word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Producer => "producer",
            Self::Consumer => "consumer",
            Self::Reader => "reader",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| {
            let wrong = format!("{text:?} is no role; there are producer, consumer and reader");
            pq_core::Error::InvalidSetting(wrong).into()
        })
    }
}

/// The statements that grant a role of the database what a process of this kind needs.
///
/// `UPDATE` on one column is what PostgreSQL asks for a row lock; nothing is updated by it.
pub(crate) fn statements(
    conn: &mut PgConnection,
    table: &Table,
    role: Role,
    to: &str,
) -> Result<Vec<String>, Error> {
    let to = Ident::new("role", to)?;
    let serial = diesel::dsl::sql::<Nullable<Text>>("SELECT pg_get_serial_sequence(")
        .bind::<Text, _>(table.jobs())
        // That the table is there is seen before its sequence is looked for.
        .sql(&format!(", 'id') FROM (SELECT count(*) FROM {} WHERE false) AS one", table.jobs()));
    let ids: Option<String> = serial.get_result(conn).map_err(|error| Error::of(table, error))?;
    let ids = ids.unwrap_or_default();
    let (jobs, beside) = (table.jobs(), |names: &[&str]| {
        names.iter().map(|name| table.beside(name)).collect::<Vec<_>>().join(", ")
    });
    let rights = match role {
        Role::Producer => vec![
            format!("INSERT, SELECT (id, dequeued_at) ON {jobs}"),
            format!("USAGE ON SEQUENCE {ids}"),
            format!("SELECT, INSERT, UPDATE, DELETE ON {}", beside(&["unique"])),
            format!("SELECT (id) ON {}", beside(&["leases"])),
            format!("SELECT ON {}", table.ledger()),
        ],
        Role::Consumer => vec![
            format!("SELECT, INSERT, DELETE, UPDATE (attempt) ON {jobs}"),
            format!("SELECT, INSERT, DELETE, UPDATE (attempt) ON {}", table.archive()),
            format!("SELECT, INSERT, UPDATE, DELETE ON {}", beside(&["leases", "unique", "workers", "cron"])),
            format!("SELECT, INSERT, DELETE ON {}", beside(&["settled", "keys", "paused"])),
            format!("USAGE ON SEQUENCE {ids}, {}", beside(&["lease_tokens"])),
            format!("SELECT ON {}", table.ledger()),
        ],
        Role::Reader => vec![
            format!("SELECT ON {jobs}, {}, {}", table.archive(), beside(&["leases", "settled", "keys"])),
            format!("SELECT ON {}, {}", beside(&["paused", "workers", "cron"]), table.ledger()),
        ],
    };
    let usage = format!("USAGE ON SCHEMA {}", table.schema);
    Ok([usage].into_iter().chain(rights).map(|right| format!("GRANT {right} TO {to};")).collect())
}
