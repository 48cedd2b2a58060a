//! Checks that everything of the queue belongs to one role.
//!
//! The owner of the tables runs the migrations and grants privileges. It can do neither for an object of another role.

use diesel::prelude::*;
use diesel::sql_types::{Array, Text};

use super::{Exam, Finding, Level};
use crate::Error;

pub(super) const CHECK: &str = "owners";

/// Lists the owner of the table of jobs, and the objects that belong to another role.
/// $1 schema, $2 table of jobs, $3 all tables, $4 the prefix of derived names.
const STRANGERS: &str = "
    WITH jobs AS (
        SELECT relowner AS owner FROM pg_class JOIN pg_namespace AS space ON relnamespace = space.oid
        WHERE nspname = $1 AND relname = $2
    ), objects AS (
        SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind,
            format('%I.%I', nspname, relname) AS name, relowner AS owner
        FROM pg_class JOIN pg_namespace AS space ON relnamespace = space.oid
        WHERE nspname = $1 AND (relname = ANY ($3) OR relkind = 'S' AND starts_with(relname, $4))
        UNION ALL
        SELECT 'FUNCTION', format('%I.%I(%s)', nspname, proname, pg_get_function_identity_arguments(pg_proc.oid)),
            proowner
        FROM pg_proc JOIN pg_namespace AS space ON pronamespace = space.oid
        WHERE nspname = $1 AND starts_with(proname, $4)
    )
    SELECT kind, name, pg_get_userbyid(objects.owner)::text AS owner, pg_get_userbyid(jobs.owner)::text AS expected
    FROM objects, jobs WHERE objects.owner <> jobs.owner ORDER BY kind, name";

#[derive(QueryableByName)]
struct Stranger {
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    owner: String,
    #[diesel(sql_type = Text)]
    expected: String,
}

pub(super) fn examine(exam: &Exam<'_>, conn: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let table = &exam.store.table;
    let strangers: Vec<Stranger> = diesel::sql_query(STRANGERS)
        .bind::<Text, _>(table.schema.as_str())
        .bind::<Text, _>(table.name.as_str())
        .bind::<Array<Text>, _>(table.names())
        .bind::<Text, _>(format!("{}_", table.name.as_str()))
        .load(conn)?;
    if strangers.is_empty() {
        return Ok(vec![Finding::ok(CHECK, "all objects belong to one role")]);
    }
    Ok(strangers.iter().map(assess).collect())
}

fn assess(stranger: &Stranger) -> Finding {
    let Stranger { kind, name, owner, expected } = stranger;
    let message = format!(
        "{name} belongs to {owner}, and the table of jobs to {expected}: migrations and grants of either fail"
    );
    Finding::new(CHECK, Level::Warning, message)
        .advise(format!("give all of them one owner: ALTER {kind} {name} OWNER TO …"))
}
