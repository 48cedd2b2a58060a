//! The objects of a database as text, for comparison.

use diesel::prelude::*;
use diesel::sql_types::Text;

/// Lists everything outside of the system's schemas, one line each: schemas, relations, columns, constraints, indexes,
/// triggers, functions and types, with their settings, privileges and comments. PostgreSQL 18 lists NOT NULL as a
/// constraint as well, and the privileges on `public` differ by version, so both are left out.
const CATALOG: &str = "
WITH ours AS (
    SELECT oid, nspname, nspacl FROM pg_namespace
    WHERE nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema'
), lines AS (
    SELECT 'schema ' || nspname || coalesce(' ' || nullif(nspname, 'public') || ' ' || nspacl::text, '') AS line
    FROM ours
    UNION ALL
    SELECT concat_ws(' ', format('relation %s.%s kind %s', nspname, relname, relkind),
        'persistence ' || relpersistence::text, reloptions::text, relacl::text,
        CASE WHEN relrowsecurity THEN 'row security' END, CASE WHEN relhasrules THEN 'rules' END)
    FROM pg_class JOIN ours ON relnamespace = ours.oid WHERE relkind <> 'i'
    UNION ALL
    SELECT concat_ws(' ', format('column %s.%s.%s', nspname, relname, attname),
        format_type(atttypid, atttypmod), CASE WHEN attnotnull THEN 'not null' END,
        'identity ' || nullif(attidentity::text, ''), 'generated ' || nullif(attgenerated::text, ''),
        'default ' || pg_get_expr(adbin, adrelid), attoptions::text, attacl::text)
    FROM pg_attribute JOIN pg_class ON attrelid = pg_class.oid JOIN ours ON relnamespace = ours.oid
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE attnum > 0 AND NOT attisdropped AND relkind = 'r'
    UNION ALL
    SELECT concat_ws(' ', 'sequence', seqrelid::regclass, format_type(seqtypid, NULL), seqstart, seqincrement,
        seqmin, seqmax, 'cache', seqcache, CASE WHEN seqcycle THEN 'cycle' END)
    FROM pg_sequence
    UNION ALL
    SELECT format('constraint %s.%s %s', nspname, conname, pg_get_constraintdef(pg_constraint.oid))
    FROM pg_constraint JOIN ours ON connamespace = ours.oid WHERE contype <> 'n'
    UNION ALL
    SELECT pg_get_indexdef(indexrelid)
    FROM pg_index JOIN pg_class ON indexrelid = pg_class.oid JOIN ours ON relnamespace = ours.oid
    UNION ALL
    SELECT pg_get_triggerdef(pg_trigger.oid) || ' enabled ' || tgenabled::text
    FROM pg_trigger JOIN pg_class ON tgrelid = pg_class.oid JOIN ours ON relnamespace = ours.oid
    WHERE NOT tgisinternal
    UNION ALL
    SELECT concat(pg_get_functiondef(pg_proc.oid), ' ' || proacl::text)
    FROM pg_proc JOIN ours ON pronamespace = ours.oid
    UNION ALL
    SELECT format('type %s.%s', nspname, typname)
    FROM pg_type JOIN ours ON typnamespace = ours.oid WHERE typtype IN ('e', 'd', 'r')
    UNION ALL
    SELECT concat_ws(' ', 'comment on', object.type, object.identity, 'is', description)
    FROM pg_description, LATERAL pg_identify_object(classoid, objoid, objsubid) AS object
    WHERE objoid >= 16384
    UNION ALL
    SELECT format('default rights %s', defaclacl) FROM pg_default_acl
    UNION ALL
    SELECT format('extension %s', extname) FROM pg_extension WHERE extname <> 'plpgsql'
)
SELECT line FROM lines ORDER BY line COLLATE \"C\"";

pub(crate) fn catalog(conn: &mut PgConnection) -> QueryResult<String> {
    let lines: Vec<String> = diesel::dsl::sql::<Text>(CATALOG).load(conn)?;
    Ok(lines.join("\n") + "\n")
}
