//! Which privileges of a kind of process a role has.

use diesel::prelude::*;
use diesel::sql_types::{Array, Nullable, Text};

use crate::grants::{Grant, On, Role, grants};
use crate::table::Table;

/// Returns for each privilege whether the role has it, or NULL if the object does not exist, which other checks report.
/// $1 schema, $2 table; arrays with an element per privilege: $3 kinds, $4 names, $5 columns or null, $6 privileges;
/// $7 role, or null for the session's.
const HAS: &str = "
    SELECT holder.name::text AS role, array_agg(CASE wanted.kind
            WHEN 'schema' THEN has_schema_privilege(holder.name, space.oid, privilege)
            WHEN 'table' THEN has_table_privilege(holder.name, relation.oid, privilege)
            WHEN 'column' THEN has_column_privilege(holder.name, relation.oid, col, privilege)
            WHEN 'sequence' THEN has_sequence_privilege(holder.name, relation.oid, privilege)
            WHEN 'function' THEN (SELECT bool_and(has_function_privilege(holder.name, oid, privilege)) FROM pg_proc
                WHERE pronamespace = space.oid AND proname = wanted.name)
        END ORDER BY position) AS has
    FROM unnest($3, $4, $5, $6) WITH ORDINALITY AS wanted (kind, name, col, privilege, position)
        CROSS JOIN (SELECT coalesce($7, current_user::text)::name AS name) AS holder
        JOIN pg_namespace AS space ON nspname = $1
        LEFT JOIN pg_class AS relation ON relnamespace = space.oid AND relation.oid = CASE
            WHEN wanted.kind = 'sequence' AND wanted.name = ''
            THEN (SELECT seqrelid FROM pg_sequence JOIN pg_depend ON objid = seqrelid
                    JOIN pg_class AS jobs ON jobs.oid = refobjid
                WHERE jobs.relnamespace = space.oid AND jobs.relname = $2 AND classid = 'pg_class'::regclass
                    AND refclassid = 'pg_class'::regclass AND deptype = 'i')
            ELSE (SELECT oid FROM pg_class AS one WHERE one.relnamespace = space.oid AND one.relname = wanted.name)
        END
    GROUP BY holder.name";

#[derive(QueryableByName)]
struct Has {
    #[diesel(sql_type = Text)]
    role: String,
    #[diesel(sql_type = Array<Nullable<diesel::sql_types::Bool>>)]
    has: Vec<Option<bool>>,
}

/// Returns the name of the role, and the privileges that it lacks for this kind of process. `None` is the session's
/// role.
pub(crate) fn missing(
    conn: &mut PgConnection,
    table: &Table,
    kind: Role,
    role: Option<&str>,
) -> QueryResult<(String, Vec<String>)> {
    let wanted: Vec<Wanted> = grants(kind).iter().flat_map(|grant| wanted(table, grant)).collect();
    let found: Has = diesel::sql_query(HAS)
        .bind::<Text, _>(table.schema.as_str())
        .bind::<Text, _>(table.name.as_str())
        .bind::<Array<Text>, _>(wanted.iter().map(|one| one.kind).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(wanted.iter().map(|one| one.name.as_str()).collect::<Vec<_>>())
        .bind::<Array<Nullable<Text>>, _>(wanted.iter().map(|one| one.column).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(wanted.iter().map(|one| one.privilege).collect::<Vec<_>>())
        .bind::<Nullable<Text>, _>(role)
        .get_result(conn)?;
    let lacks = wanted.iter().zip(&found.has).filter(|(_, has)| **has == Some(false));
    Ok((found.role, lacks.map(|(one, _)| one.to_string()).collect()))
}

/// One privilege on one object.
struct Wanted {
    kind: &'static str,
    name: String,
    shown: String,
    column: Option<&'static str>,
    privilege: &'static str,
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.column {
            Some(column) => write!(f, "{} ({column}) on {}", self.privilege, self.shown),
            None => write!(f, "{} on {}", self.privilege, self.shown),
        }
    }
}

fn wanted(table: &Table, grant: &Grant) -> Vec<Wanted> {
    let named = |suffix: &str| match suffix {
        "" => table.name.clone(),
        suffix => table.named(suffix),
    };
    let one = |kind, suffix: &str, column, privilege| Wanted {
        kind,
        name: named(suffix).as_str().to_owned(),
        shown: named(suffix).as_str().to_owned(),
        column,
        privilege,
    };
    let each = |make: &dyn Fn(&'static str) -> Wanted| {
        grant.privileges.iter().map(|privilege| make(privilege)).collect()
    };
    match grant.on {
        On::Schema => each(&|privilege| Wanted {
            shown: format!("schema {}", table.schema.as_str()),
            ..one("schema", "", None, privilege)
        }),
        On::Table(suffix) => each(&|privilege| one("table", suffix, None, privilege)),
        On::Columns(suffix, columns) => columns
            .iter()
            .flat_map(|column| grant.privileges.iter().map(move |privilege| (column, privilege)))
            .map(|(column, privilege)| one("column", suffix, Some(column), privilege))
            .collect(),
        // The table finds its identity's sequence.
        On::Ids => {
            each(&|privilege| Wanted { name: String::new(), ..one("sequence", "id_seq", None, privilege) })
        }
        On::Sequence(suffix) => each(&|privilege| one("sequence", suffix, None, privilege)),
        On::Function(suffix) => each(&|privilege| one("function", suffix, None, privilege)),
    }
}
