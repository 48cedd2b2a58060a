//! The privileges that each kind of process needs, and the statements that grant them.

use std::fmt;
use std::str::FromStr;

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Nullable, Text};

use crate::Error;
use crate::connection::Failed;
use crate::table::{Ident, Table};
use crate::{migrate, privileges};

/// A kind of process, which determines the privileges that it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Puts jobs. It cannot read payloads, not even its own.
    Producer,
    /// Takes and manages jobs. Workers and operators need it.
    Consumer,
    /// Counts, lists and reads jobs.
    Reader,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 3] = [Self::Producer, Self::Consumer, Self::Reader];

    /// Returns the name of the role.
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
            let message = format!("unknown role {text:?}; expected `producer`, `consumer` or `reader`");
            pq_core::Error::InvalidSetting(message).into()
        })
    }
}

/// The object of a grant. A suffix names an object whose name derives from the table, and the empty one the table.
#[derive(Clone, Copy)]
pub(crate) enum On {
    Schema,
    Table(&'static str),
    Columns(&'static str, &'static [&'static str]),
    /// The sequence of the jobs' ids.
    Ids,
    Sequence(&'static str),
    /// A function that the role calls. PostgreSQL lets every role execute functions, unless the database's owner has
    /// changed that.
    Function(&'static str),
}

/// Privileges on one object.
pub(crate) struct Grant {
    pub(crate) privileges: &'static [&'static str],
    pub(crate) on: On,
}

const fn grant(privileges: &'static [&'static str], on: On) -> Grant {
    Grant { privileges, on }
}

const READ: &[&str] = &["SELECT"];
const USE: &[&str] = &["USAGE"];
const CALL: &[&str] = &["EXECUTE"];
/// For rows that are never updated.
const WRITE_ONCE: &[&str] = &["SELECT", "INSERT", "DELETE"];
const CHANGE: &[&str] = &["SELECT", "INSERT", "UPDATE", "DELETE"];
/// The privilege that PostgreSQL requires for a row lock. No row is updated.
const LOCK: &[&str] = &["UPDATE"];

const PRODUCER: &[Grant] = &[
    grant(USE, On::Schema),
    grant(&["INSERT"], On::Table("")),
    grant(READ, On::Columns("", &["id", "dequeued_at"])),
    grant(USE, On::Ids),
    grant(CHANGE, On::Table("unique")),
    grant(&["INSERT"], On::Table("waits")),
    grant(READ, On::Columns("leases", &["id"])),
    grant(READ, On::Table("migrations")),
    grant(&["INSERT"], On::Table("counters")),
    grant(CALL, On::Function("put")),
    grant(CALL, On::Function("call")),
    grant(CALL, On::Function("put_job")),
    grant(CALL, On::Function("call_data")),
    grant(CALL, On::Function("put_workflow")),
    grant(CALL, On::Function("check_members")),
    grant(CALL, On::Function("workflow_data")),
    grant(CALL, On::Function("put_unique")),
    grant(CALL, On::Function("is_live")),
];

const CONSUMER: &[Grant] = &[
    grant(USE, On::Schema),
    grant(WRITE_ONCE, On::Table("")),
    grant(LOCK, On::Columns("", &["attempt"])),
    grant(&["USAGE", "SELECT"], On::Ids),
    grant(WRITE_ONCE, On::Table("archive")),
    grant(LOCK, On::Columns("archive", &["attempt"])),
    grant(CHANGE, On::Table("leases")),
    grant(USE, On::Sequence("lease_tokens")),
    grant(WRITE_ONCE, On::Table("settled")),
    grant(CHANGE, On::Table("steps")),
    grant(CHANGE, On::Table("signals")),
    grant(WRITE_ONCE, On::Table("keys")),
    grant(CHANGE, On::Table("unique")),
    grant(CHANGE, On::Table("controls")),
    grant(CHANGE, On::Table("places")),
    grant(CHANGE, On::Table("buckets")),
    grant(CHANGE, On::Table("workers")),
    grant(WRITE_ONCE, On::Table("counters")),
    grant(CHANGE, On::Table("cron")),
    grant(WRITE_ONCE, On::Table("audit")),
    grant(&["UPDATE"], On::Columns("audit", &["count"])),
    grant(WRITE_ONCE, On::Table("notes")),
    grant(CHANGE, On::Table("waits")),
    grant(READ, On::Table("migrations")),
    grant(CALL, On::Function("put")),
    grant(CALL, On::Function("call")),
    grant(CALL, On::Function("put_job")),
    grant(CALL, On::Function("call_data")),
    grant(CALL, On::Function("put_workflow")),
    grant(CALL, On::Function("check_members")),
    grant(CALL, On::Function("workflow_data")),
    grant(CALL, On::Function("put_unique")),
    grant(CALL, On::Function("is_live")),
    grant(CALL, On::Function("is_partly_settled")),
    grant(CALL, On::Function("cancel_leased")),
    grant(CALL, On::Function("return")),
    grant(CALL, On::Function("hold_lease")),
    grant(CALL, On::Function("send_signal")),
    grant(CALL, On::Function("signal")),
    grant(CALL, On::Function("keeps_unique")),
    grant(CALL, On::Function("lock_keyed_job")),
    grant(CALL, On::Function("try_claim_unique")),
    grant(CALL, On::Function("refuse_hidden_controls")),
    grant(CALL, On::Function("take_limited")),
    grant(CALL, On::Function("pick_limited")),
    grant(CALL, On::Function("pick_in_turn")),
    grant(CALL, On::Function("groups_in_turn")),
    grant(CALL, On::Function("look_behind")),
    grant(CALL, On::Function("look_due")),
    grant(CALL, On::Function("first_of_keys")),
    grant(CALL, On::Function("lock_turns")),
    grant(CALL, On::Function("is_first_of_key")),
    grant(CALL, On::Function("lock_places")),
    grant(CALL, On::Function("lock_places_of_groups")),
    grant(CALL, On::Function("lock_first_jobs")),
    grant(CALL, On::Function("lock_bucket")),
    grant(CALL, On::Function("set_limits")),
    grant(CALL, On::Function("correct_cost")),
    grant(CALL, On::Function("limit")),
];

const READER: &[Grant] = &[
    grant(USE, On::Schema),
    grant(READ, On::Table("")),
    grant(READ, On::Ids),
    grant(READ, On::Table("archive")),
    grant(READ, On::Table("leases")),
    grant(READ, On::Table("settled")),
    grant(READ, On::Table("steps")),
    grant(READ, On::Table("signals")),
    grant(READ, On::Table("keys")),
    grant(READ, On::Table("controls")),
    grant(READ, On::Table("places")),
    grant(READ, On::Table("buckets")),
    grant(READ, On::Table("workers")),
    grant(READ, On::Table("counters")),
    grant(READ, On::Table("cron")),
    grant(READ, On::Table("audit")),
    grant(READ, On::Table("notes")),
    grant(READ, On::Table("waits")),
    grant(READ, On::Table("migrations")),
];

/// Returns all privileges that a role needs.
pub(crate) fn grants(role: Role) -> &'static [Grant] {
    match role {
        Role::Producer => PRODUCER,
        Role::Consumer => CONSUMER,
        Role::Reader => READER,
    }
}

/// Returns the statements that grant a database role what a process of this kind needs.
pub(crate) fn statements(
    conn: &mut PgConnection,
    table: &Table,
    role: Role,
    to: &str,
) -> Result<Vec<String>, Error> {
    let to = Ident::new("role", to)?;
    let serial = diesel::dsl::sql::<Nullable<Text>>("SELECT pg_get_serial_sequence(")
        .bind::<Text, _>(table.jobs())
        // The subquery fails first if the table does not exist.
        .sql(&format!(", 'id') FROM (SELECT count(*) FROM {} WHERE false) AS one", table.jobs()));
    let ids: Option<String> =
        serial.get_result(conn).map_err(|error| Error::of(table, Failed::on_blocking(error)))?;
    let ids = ids.unwrap_or_default();
    // diesel's own tools record the migrations elsewhere.
    let is_recorded = migrate::has_record(conn, table)?;
    let exists = |grant: &&Grant| is_recorded || !matches!(grant.on, On::Table("migrations"));
    Ok(grants(role).iter().filter(exists).map(|grant| statement(table, grant, &ids, &to)).collect())
}

/// Grants a database role what a process of this kind needs, all or none. Returns the number of statements.
pub(crate) fn grant_all(
    conn: &mut PgConnection,
    table: &Table,
    role: Role,
    to: &str,
) -> Result<usize, Error> {
    conn.transaction(|conn| {
        let all = statements(conn, table, role, to)?;
        conn.batch_execute(&all.join("\n"))?;
        // A role that may not grant a privilege gets a warning from the server, and no error.
        let (_, missing) = privileges::missing(conn, table, role, Some(to))?;
        match missing.first() {
            None => Ok(all.len()),
            Some(first) => Err(Error::NotGranted {
                to: to.to_owned(),
                kind: role,
                missing: missing.len(),
                first: first.clone(),
            }),
        }
    })
}

fn statement(table: &Table, Grant { privileges, on }: &Grant, ids: &str, to: &Ident) -> String {
    let named = |suffix: &str| if suffix.is_empty() { table.jobs() } else { table.derived(suffix) };
    let (columns, object) = match on {
        On::Schema => (None, format!("SCHEMA {}", table.schema)),
        On::Table(suffix) => (None, named(suffix)),
        On::Columns(suffix, columns) => (Some(columns.join(", ")), named(suffix)),
        On::Ids => (None, format!("SEQUENCE {ids}")),
        On::Sequence(suffix) => (None, format!("SEQUENCE {}", named(suffix))),
        On::Function(suffix) => (None, format!("FUNCTION {}", named(suffix))),
    };
    let privileges: Vec<String> = privileges
        .iter()
        .map(|privilege| match &columns {
            Some(columns) => format!("{privilege} ({columns})"),
            None => (*privilege).to_owned(),
        })
        .collect();
    format!("GRANT {} ON {object} TO {to};", privileges.join(", "))
}
