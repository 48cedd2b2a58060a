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

/// What a right is on. A suffix names what is named after the table, and nothing the table itself.
#[derive(Clone, Copy)]
pub(crate) enum On {
    Schema,
    Table(&'static str),
    Columns(&'static str, &'static [&'static str]),
    /// The sequence of the jobs' numbers.
    Ids,
    Sequence(&'static str),
    /// Anybody may call functions, unless that was taken away; so it is not granted.
    Function(&'static str),
}

pub(crate) struct Right {
    pub(crate) privileges: &'static [&'static str],
    pub(crate) on: On,
}

const fn right(privileges: &'static [&'static str], on: On) -> Right {
    Right { privileges, on }
}

const READ: &[&str] = &["SELECT"];
const USE: &[&str] = &["USAGE"];
const CALL: &[&str] = &["EXECUTE"];
/// What is written once and deleted.
const KEEP: &[&str] = &["SELECT", "INSERT", "DELETE"];
const CHANGE: &[&str] = &["SELECT", "INSERT", "UPDATE", "DELETE"];
/// What PostgreSQL asks for a row lock. Nothing is updated by it.
const LOCK: &[&str] = &["UPDATE"];

const PRODUCER: &[Right] = &[
    right(USE, On::Schema),
    right(&["INSERT"], On::Table("")),
    right(READ, On::Columns("", &["id", "dequeued_at"])),
    right(USE, On::Ids),
    right(CHANGE, On::Table("unique")),
    right(READ, On::Columns("leases", &["id"])),
    right(READ, On::Table("migrations")),
    right(CALL, On::Function("is_live")),
    right(CALL, On::Function("put_unique")),
];

const CONSUMER: &[Right] = &[
    right(USE, On::Schema),
    right(KEEP, On::Table("")),
    right(LOCK, On::Columns("", &["attempt"])),
    right(USE, On::Ids),
    right(KEEP, On::Table("archive")),
    right(LOCK, On::Columns("archive", &["attempt"])),
    right(CHANGE, On::Table("leases")),
    right(USE, On::Sequence("lease_tokens")),
    right(KEEP, On::Table("settled")),
    right(KEEP, On::Table("keys")),
    right(CHANGE, On::Table("unique")),
    right(KEEP, On::Table("paused")),
    right(CHANGE, On::Table("workers")),
    right(CHANGE, On::Table("cron")),
    right(READ, On::Table("migrations")),
    right(CALL, On::Function("is_live")),
    right(CALL, On::Function("lock_keyed_job")),
];

const READER: &[Right] = &[
    right(USE, On::Schema),
    right(READ, On::Table("")),
    right(READ, On::Table("archive")),
    right(READ, On::Table("leases")),
    right(READ, On::Table("settled")),
    right(READ, On::Table("keys")),
    right(READ, On::Table("paused")),
    right(READ, On::Table("workers")),
    right(READ, On::Table("cron")),
    right(READ, On::Table("migrations")),
];

/// All that a role needs.
pub(crate) fn rights(role: Role) -> &'static [Right] {
    match role {
        Role::Producer => PRODUCER,
        Role::Consumer => CONSUMER,
        Role::Reader => READER,
    }
}

/// The statements that grant a role of the database what a process of this kind needs.
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
    Ok(rights(role).iter().filter_map(|right| statement(table, right, &ids, &to)).collect())
}

fn statement(table: &Table, Right { privileges, on }: &Right, ids: &str, to: &Ident) -> Option<String> {
    let named = |suffix: &str| if suffix.is_empty() { table.jobs() } else { table.beside(suffix) };
    let (columns, object) = match on {
        On::Schema => (None, format!("SCHEMA {}", table.schema)),
        On::Table(suffix) => (None, named(suffix)),
        On::Columns(suffix, columns) => (Some(columns.join(", ")), named(suffix)),
        On::Ids => (None, format!("SEQUENCE {ids}")),
        On::Sequence(suffix) => (None, format!("SEQUENCE {}", named(suffix))),
        On::Function(_) => return None,
    };
    let privileges: Vec<String> = privileges
        .iter()
        .map(|privilege| match &columns {
            Some(columns) => format!("{privilege} ({columns})"),
            None => (*privilege).to_owned(),
        })
        .collect();
    Some(format!("GRANT {} ON {object} TO {to};", privileges.join(", ")))
}
