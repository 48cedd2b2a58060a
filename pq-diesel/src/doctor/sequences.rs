//! Checks how much of the sequences of job and lease ids is used up, and whether they give ids that exist.
//!
//! A sequence gives ids again after `TRUNCATE … RESTART IDENTITY`, after a restore, or if rows were replicated or inserted
//! with their ids.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Double, Nullable, Text};

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

/// The next value of a sequence and the greatest ids that exist.
#[derive(QueryableByName)]
struct Ids {
    #[diesel(sql_type = BigInt)]
    next: i64,
    /// Of jobs that wait or run, or of leases and workers.
    #[diesel(sql_type = Nullable<BigInt>)]
    live: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    archived: Option<i64>,
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
    for sequence in sequences.iter().filter(|sequence| sequence.used.is_some()) {
        let is_of_leases = sequence.name == table.named("lease_tokens").as_str();
        let live = if is_of_leases {
            format!(
                "SELECT greatest((SELECT max(id) FROM {}), (SELECT max(id) FROM {}))",
                table.derived("leases"),
                table.derived("workers")
            )
        } else {
            format!(
                "SELECT greatest((SELECT max(id) FROM {}), (SELECT max(job) FROM {}, unnest(jobs) AS job))",
                table.jobs(),
                table.derived("leases")
            )
        };
        let archived =
            if is_of_leases { "NULL".to_owned() } else { format!("SELECT max(id) FROM {}", table.archive()) };
        let ids: Ids = diesel::sql_query(format!(
            "SELECT CASE WHEN is_called THEN last_value + 1 ELSE last_value END AS next, ({live}) AS live,
                ({archived})::bigint AS archived
            FROM {}",
            sequence.quoted
        ))
        .get_result(conn)?;
        findings.extend(assess_ids(sequence, &ids));
    }
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

/// Returns a finding if the sequence will give an id that exists.
fn assess_ids(sequence: &Sequence, ids: &Ids) -> Option<Finding> {
    let greatest = ids.live.max(ids.archived).filter(|greatest| *greatest >= ids.next)?;
    let (level, consequence) = if ids.live.is_some_and(|live| live >= ids.next) {
        (Level::Failure, "puts and takes fail when it gives an id that is in use")
    } else {
        (Level::Warning, "it will give the ids of archived jobs again, so an id will name several jobs")
    };
    let name = &sequence.name;
    let message = format!("{name} will give {} next, and {greatest} exists: {consequence}", ids.next);
    let advice =
        format!("advance it: ALTER SEQUENCE {} RESTART WITH {}", sequence.quoted, greatest.saturating_add(1));
    Some(Finding::new(CHECK, level, message).advise(advice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_exist_are_a_failure_if_live_and_a_warning_if_archived() {
        let sequence = Sequence { name: "s".to_owned(), quoted: "pq.s".to_owned(), used: Some(0.0) };
        let level = |next, live, archived| {
            assess_ids(&sequence, &Ids { next, live, archived }).map(|finding| finding.level)
        };
        assert_eq!(level(1, None, None), None);
        assert_eq!(level(8, Some(7), Some(7)), None);
        assert_eq!(level(7, None, Some(7)), Some(Level::Warning));
        assert_eq!(level(7, Some(6), Some(7)), Some(Level::Warning));
        assert_eq!(level(7, Some(7), Some(9)), Some(Level::Failure));
        let advice = assess_ids(&sequence, &Ids { next: 1, live: Some(4), archived: Some(9) });
        assert!(
            advice
                .and_then(|finding| finding.advice)
                .is_some_and(|advice| advice.ends_with("RESTART WITH 10"))
        );
    }

    #[test]
    fn half_used_is_a_warning_and_nine_tenths_a_failure() {
        let level = |used| assess(&Sequence { name: "s".to_owned(), quoted: "pq.s".to_owned(), used }).level;
        assert_eq!(
            [Some(0.0), Some(0.5), Some(0.51), Some(0.9), Some(0.91), None].map(level),
            [Level::Ok, Level::Ok, Level::Warning, Level::Warning, Level::Failure, Level::Skipped]
        );
    }
}
