//! Checks whether row-level security hides rows from the connection's role.

use diesel::prelude::*;
use diesel::sql_types::{Array, Bool, Text};

use super::{Exam, Finding, Level};
use crate::Error;

pub(super) const CHECK: &str = "row-level security";

/// Lists the tables on which policies apply to the role, and whether they show it all rows or none.
/// $1 schema, $2 tables.
const TABLES: &str = "
    SELECT current_user::text AS role, relname::text AS name,
        EXISTS (
            SELECT FROM pg_policy
            WHERE polrelid = pg_class.oid AND polpermissive AND polcmd IN ('*', 'r')
                AND pg_get_expr(polqual, polrelid) = 'true'
                AND (polroles @> '{0}' OR EXISTS (
                    SELECT FROM unnest(polroles) AS granted WHERE pg_has_role(granted, 'USAGE'))))
        AND NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = pg_class.oid AND NOT polpermissive) AS shows_all,
        NOT EXISTS (
            SELECT FROM pg_policy
            WHERE polrelid = pg_class.oid AND polpermissive AND polcmd IN ('*', 'r')
                AND (polroles @> '{0}' OR EXISTS (
                    SELECT FROM unnest(polroles) AS granted WHERE pg_has_role(granted, 'USAGE')))) AS hides_all
    FROM pg_class JOIN pg_namespace ON relnamespace = pg_namespace.oid
    WHERE nspname = $1 AND relname = ANY ($2) AND relrowsecurity AND row_security_active(pg_class.oid)
    ORDER BY relname";

#[derive(QueryableByName)]
struct Restricted {
    #[diesel(sql_type = Text)]
    role: String,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Bool)]
    shows_all: bool,
    #[diesel(sql_type = Bool)]
    hides_all: bool,
}

pub(super) fn examine(exam: &Exam<'_>, conn: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let table = &exam.store.table;
    let restricted: Vec<Restricted> = diesel::sql_query(TABLES)
        .bind::<Text, _>(table.schema.as_str())
        .bind::<Array<Text>, _>(table.names())
        .load(conn)?;
    if restricted.is_empty() {
        return Ok(vec![Finding::ok(CHECK, "no policy applies to this role")]);
    }
    let controls = table.named("controls");
    Ok(restricted.iter().map(|one| assess(one, one.name == controls.as_str())).collect())
}

fn assess(table: &Restricted, has_controls: bool) -> Finding {
    let Restricted { role, name, shows_all, hides_all } = table;
    let (level, consequence) = match (has_controls, shows_all) {
        (true, _) => (Level::Failure, "takes are refused, because a pause or a limit could be hidden"),
        (false, false) if *hides_all => (Level::Failure, "it hides all rows, so the role sees no job"),
        (false, false) => {
            (Level::Warning, "rows that a policy hides are neither taken, counted, requeued nor pruned")
        }
        (false, true) => (Level::Ok, "a policy shows all rows"),
    };
    Finding::new(CHECK, level, format!("row-level security of {name} applies to {role}: {consequence}")).advise_if_bad(
        "exempt the role by ALTER ROLE … BYPASSRLS, or ALTER TABLE … DISABLE ROW LEVEL SECURITY; no job is lost by either",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hidden_pause_is_a_failure_and_a_hidden_row_a_warning() {
        let level_of = |has_controls, shows_all, hides_all| {
            let table = Restricted { role: "bob".to_owned(), name: "queue".to_owned(), shows_all, hides_all };
            assess(&table, has_controls).level
        };
        let level = |has_controls, shows_all| level_of(has_controls, shows_all, false);
        assert_eq!(level_of(false, false, true), Level::Failure);
        assert_eq!([level(true, true), level(true, false)], [Level::Failure; 2]);
        assert_eq!([level(false, true), level(false, false)], [Level::Ok, Level::Warning]);
    }
}
