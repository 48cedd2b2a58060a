//! Which of the roles of docs/roles.md the connection's role can play.

use diesel::prelude::*;
use diesel::sql_types::{Array, Nullable, Text};

use super::{Exam, Finding, Level};
use crate::Error;
use crate::table::Table;

pub(super) const CHECK: &str = "rights";

/// What a right is on. A suffix names what is named after the table, and nothing the table itself.
#[derive(Clone, Copy)]
enum On {
    Schema,
    Table(&'static str),
    Columns(&'static str, &'static [&'static str]),
    Sequence(&'static str),
    Function(&'static str),
}

type Right = (&'static str, On);

struct Part {
    name: &'static str,
    needs: &'static [Right],
}

/// The same as docs/roles.md, and a test holds them together. Functions may be called by everybody, unless that
/// was taken away.
const PARTS: [Part; 3] = [
    Part {
        name: "producer",
        needs: &[
            ("USAGE", On::Schema),
            ("INSERT", On::Table("")),
            ("SELECT", On::Columns("", &["id", "dequeued_at"])),
            ("USAGE", On::Sequence("id_seq")),
            ("SELECT", On::Table("unique")),
            ("INSERT", On::Table("unique")),
            ("UPDATE", On::Table("unique")),
            ("DELETE", On::Table("unique")),
            ("SELECT", On::Columns("leases", &["id"])),
            ("SELECT", On::Table("migrations")),
            ("EXECUTE", On::Function("is_live")),
            ("EXECUTE", On::Function("put_unique")),
        ],
    },
    Part {
        name: "consumer",
        needs: &[
            ("USAGE", On::Schema),
            ("SELECT", On::Table("")),
            ("INSERT", On::Table("")),
            ("DELETE", On::Table("")),
            ("UPDATE", On::Columns("", &["attempt"])),
            ("SELECT", On::Table("archive")),
            ("INSERT", On::Table("archive")),
            ("DELETE", On::Table("archive")),
            ("UPDATE", On::Columns("archive", &["attempt"])),
            ("SELECT", On::Table("leases")),
            ("INSERT", On::Table("leases")),
            ("UPDATE", On::Table("leases")),
            ("DELETE", On::Table("leases")),
            ("SELECT", On::Table("unique")),
            ("INSERT", On::Table("unique")),
            ("UPDATE", On::Table("unique")),
            ("DELETE", On::Table("unique")),
            ("SELECT", On::Table("settled")),
            ("INSERT", On::Table("settled")),
            ("DELETE", On::Table("settled")),
            ("SELECT", On::Table("keys")),
            ("INSERT", On::Table("keys")),
            ("DELETE", On::Table("keys")),
            ("USAGE", On::Sequence("id_seq")),
            ("USAGE", On::Sequence("lease_tokens")),
            ("SELECT", On::Table("migrations")),
            ("EXECUTE", On::Function("is_live")),
            ("EXECUTE", On::Function("pick")),
        ],
    },
    Part {
        name: "reader",
        needs: &[
            ("USAGE", On::Schema),
            ("SELECT", On::Table("")),
            ("SELECT", On::Table("archive")),
            ("SELECT", On::Table("leases")),
            ("SELECT", On::Table("settled")),
            ("SELECT", On::Table("migrations")),
        ],
    },
];

/// Whether the role has each right, in their order; an object that is not there is left to the other checks.
/// $1 schema, $2 the table; arrays of a value a right: $3 kinds, $4 names, $5 columns or null, $6 privileges.
const HAS: &str = "
    SELECT current_user::text AS role, array_agg(CASE right_on.kind
            WHEN 'schema' THEN has_schema_privilege(space.oid, privilege)
            WHEN 'table' THEN has_table_privilege(relation.oid, privilege)
            WHEN 'column' THEN has_column_privilege(relation.oid, col, privilege)
            WHEN 'sequence' THEN has_sequence_privilege(relation.oid, privilege)
            WHEN 'function' THEN (SELECT bool_and(has_function_privilege(oid, privilege)) FROM pg_proc
                WHERE pronamespace = space.oid AND proname = right_on.name)
        END ORDER BY position) AS has
    FROM unnest($3, $4, $5, $6) WITH ORDINALITY AS right_on (kind, name, col, privilege, position)
        JOIN pg_namespace AS space ON nspname = $1
        LEFT JOIN pg_class AS relation ON relnamespace = space.oid AND relation.oid = CASE
            WHEN right_on.kind = 'sequence' AND right_on.name = ''
            THEN (SELECT seqrelid FROM pg_sequence JOIN pg_depend ON objid = seqrelid
                    JOIN pg_class AS jobs ON jobs.oid = refobjid
                WHERE jobs.relnamespace = space.oid AND jobs.relname = $2 AND classid = 'pg_class'::regclass
                    AND refclassid = 'pg_class'::regclass AND deptype = 'i')
            ELSE (SELECT oid FROM pg_class AS one WHERE one.relnamespace = space.oid AND one.relname = right_on.name)
        END";

#[derive(QueryableByName)]
struct Has {
    #[diesel(sql_type = Text)]
    role: String,
    #[diesel(sql_type = Array<Nullable<diesel::sql_types::Bool>>)]
    has: Vec<Option<bool>>,
}

pub(super) fn examine(exam: &Exam<'_>, conn: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let table = &exam.store.table;
    let mut role = String::new();
    let mut missing = Vec::new();
    for part in &PARTS {
        let rights: Vec<Asked> = part.needs.iter().flat_map(|right| asked(table, *right)).collect();
        let has: Has = diesel::sql_query(HAS)
            .bind::<Text, _>(table.schema.as_str())
            .bind::<Text, _>(table.name.as_str())
            .bind::<Array<Text>, _>(rights.iter().map(|right| right.kind).collect::<Vec<_>>())
            .bind::<Array<Text>, _>(rights.iter().map(|right| right.name.as_str()).collect::<Vec<_>>())
            .bind::<Array<Nullable<Text>>, _>(rights.iter().map(|right| right.column).collect::<Vec<_>>())
            .bind::<Array<Text>, _>(rights.iter().map(|right| right.privilege).collect::<Vec<_>>())
            .get_result(conn)?;
        let lacks = rights.iter().zip(&has.has).filter(|(_, has)| **has == Some(false));
        missing.push((part.name, lacks.map(|(right, _)| right.to_string()).collect::<Vec<_>>()));
        role = has.role;
    }
    Ok(vec![judge(&role, &missing)])
}

/// A right as the server is asked for it.
struct Asked {
    kind: &'static str,
    name: String,
    shown: String,
    column: Option<&'static str>,
    privilege: &'static str,
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.column {
            Some(column) => write!(f, "{} ({column}) on {}", self.privilege, self.shown),
            None => write!(f, "{} on {}", self.privilege, self.shown),
        }
    }
}

fn asked(table: &Table, (privilege, on): Right) -> Vec<Asked> {
    let named = |suffix: &str| match suffix {
        "" => table.name.clone(),
        suffix => table.named(suffix),
    };
    let one = |kind, suffix: &str, column| Asked {
        kind,
        name: named(suffix).as_str().to_owned(),
        shown: named(suffix).as_str().to_owned(),
        column,
        privilege,
    };
    match on {
        On::Schema => {
            vec![Asked { shown: format!("schema {}", table.schema.as_str()), ..one("schema", "", None) }]
        }
        On::Table(suffix) => vec![one("table", suffix, None)],
        On::Columns(suffix, columns) => {
            columns.iter().map(|column| one("column", suffix, Some(*column))).collect()
        }
        // The identity's sequence is found by its table.
        On::Sequence("id_seq") => vec![Asked { name: String::new(), ..one("sequence", "id_seq", None) }],
        On::Sequence(suffix) => vec![one("sequence", suffix, None)],
        On::Function(suffix) => vec![one("function", suffix, None)],
    }
}

fn judge(role: &str, missing: &[(&str, Vec<String>)]) -> Finding {
    let plays: Vec<&str> =
        missing.iter().filter(|(_, lacks)| lacks.is_empty()).map(|(name, _)| *name).collect();
    let lacks: Vec<String> = missing
        .iter()
        .filter(|(_, lacks)| !lacks.is_empty())
        .map(|(name, lacks)| {
            let more = if lacks.len() > 1 { format!(" and {} more", lacks.len() - 1) } else { String::new() };
            format!("{name} lacks {}{more}", lacks[0])
        })
        .collect();
    if plays.is_empty() {
        let what = format!("{role} can neither put, take nor read: {}", lacks.join("; "));
        return Finding::new(CHECK, Level::Failure, what)
            .advise("grant it one of the roles of docs/roles.md, or connect as another role");
    }
    let but = if lacks.is_empty() { String::new() } else { format!(" ({})", lacks.join("; ")) };
    Finding::ok(CHECK, format!("{role} can be {}{but}", plays.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_part_is_enough() {
        let lacks = |count: usize| vec!["INSERT on queue".to_owned(); count];
        let none = judge("bob", &[("producer", lacks(3)), ("reader", lacks(1))]);
        assert_eq!(none.level, Level::Failure);
        assert!(
            none.what.contains("producer lacks INSERT on queue and 2 more; reader lacks INSERT on queue")
        );
        let reads = judge("bob", &[("producer", lacks(1)), ("reader", lacks(0))]);
        assert_eq!(
            (reads.level, reads.what.as_str()),
            (Level::Ok, "bob can be reader (producer lacks INSERT on queue)")
        );
    }
}
