//! Checks how much of the sequences of job and lease ids is used up.

use diesel::prelude::*;
use diesel::sql_types::{Double, Nullable, Text};

use super::{Exam, Finding, Level, percent};
use crate::Error;

pub(super) const CHECK: &str = "sequences";

#[derive(QueryableByName)]
struct Sequence {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    quoted: String,
    #[diesel(sql_type = Nullable<Double>)]
    used: Option<f64>,
}

/// Reads the used part of each sequence, or NULL if the role may not see it. A sequence that was never used has no
/// value. PostgreSQL chooses the name of an identity's sequence, so its table finds it.
/// $1 schema, $2 table, $3 the sequence of lease ids.
const SEQUENCES: &str = "
    SELECT sequencename::text AS name, format('%I.%I', schemaname, sequencename) AS quoted,
        CASE
            WHEN NOT has_sequence_privilege(pg_class.oid, 'SELECT, USAGE') THEN NULL
            ELSE coalesce(last_value - min_value, 0)::float8 / greatest(max_value::float8 - min_value, 1)
        END AS used
    FROM pg_sequences
        JOIN pg_namespace ON nspname = schemaname
        JOIN pg_class ON relnamespace = pg_namespace.oid AND relname = sequencename
    WHERE schemaname = $1
        AND (sequencename = $3 OR pg_class.oid IN (
            SELECT objid FROM pg_depend
            WHERE refobjid = (SELECT oid FROM pg_class WHERE relname = $2 AND relnamespace = pg_namespace.oid)
                AND classid = 'pg_class'::regclass AND deptype IN ('i', 'a')))
    ORDER BY name";

pub(super) fn examine(exam: &Exam<'_>, conn: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let table = &exam.store.table;
    let sequences: Vec<Sequence> = diesel::sql_query(SEQUENCES)
        .bind::<Text, _>(table.schema.as_str())
        .bind::<Text, _>(table.name.as_str())
        .bind::<Text, _>(table.named("lease_tokens").as_str())
        .load(conn)?;
    let mut findings: Vec<Finding> =
        sequences.iter().map(assess).filter(|finding| finding.level > Level::Ok).collect();
    if findings.is_empty() {
        let used = sequences.iter().filter_map(|sequence| sequence.used).fold(0.0, f64::max);
        findings.push(Finding::ok(CHECK, format!("{} of the ids are used up", percent(used))));
    }
    Ok(findings)
}

fn assess(sequence: &Sequence) -> Finding {
    let Some(used) = sequence.used else {
        let message = format!("cannot read {}: permission denied", sequence.name);
        return Finding::new(CHECK, Level::Skipped, message);
    };
    let level = match used {
        used if used > 0.9 => Level::Failure,
        used if used > 0.5 => Level::Warning,
        _ => Level::Ok,
    };
    let message = format!("{} has used up {} of its ids", sequence.name, percent(used));
    Finding::new(CHECK, level, message).advise_if_bad(format!(
        "restart it with ids that no job, lease or archived job has: ALTER SEQUENCE {} RESTART WITH …",
        sequence.quoted
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_used_is_a_warning_and_nine_tenths_a_failure() {
        let level = |used| assess(&Sequence { name: "s".to_owned(), quoted: "pq.s".to_owned(), used }).level;
        assert_eq!(
            [Some(0.0), Some(0.5), Some(0.51), Some(0.9), Some(0.91), None].map(level),
            [Level::Ok, Level::Ok, Level::Warning, Level::Warning, Level::Failure, Level::Skipped]
        );
    }
}
