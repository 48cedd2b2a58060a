//! Checks how much of the sequences of job and lease ids is used up, and whether they give ids that exist.
//!
//! A sequence gives ids again after `TRUNCATE … RESTART IDENTITY`, after a restore, or if rows were replicated or
//! inserted with their ids.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Nullable, Text};

use super::{Exam, Finding, Level, percent};
use crate::Error;

pub(super) const CHECK: &str = "sequences";

#[derive(QueryableByName)]
struct Sequence {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    quoted: String,
    #[diesel(sql_type = BigInt)]
    max: i64,
    #[diesel(sql_type = Bool)]
    readable: bool,
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

/// Lists the sequences, and whether the role may read them. PostgreSQL chooses the name of an identity's sequence, so
/// its table finds it. $1 schema, $2 table, $3 the sequence of lease ids.
const SEQUENCES: &str = "
    SELECT sequencename::text AS name, format('%I.%I', schemaname, sequencename) AS quoted,
        max_value AS max, has_sequence_privilege(pg_class.oid, 'SELECT') AS readable
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
    let (mut findings, mut most_used) = (Vec::new(), 0.0_f64);
    for sequence in &sequences {
        if !sequence.readable {
            let message = format!("cannot read {}: permission denied", sequence.name);
            findings.push(Finding::new(CHECK, Level::Skipped, message));
            continue;
        }
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
        let used = ids.next as f64 / sequence.max as f64;
        most_used = most_used.max(used);
        findings.extend(Some(assess(sequence, used)).filter(|finding| finding.level > Level::Ok));
        findings.extend(assess_ids(sequence, &ids));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("{} of the ids are used up", percent(most_used))));
    }
    Ok(findings)
}

/// Returns the finding for a sequence whose next value is this part of its largest.
fn assess(sequence: &Sequence, used: f64) -> Finding {
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

    fn sequence() -> Sequence {
        Sequence { name: "s".to_owned(), quoted: "pq.s".to_owned(), max: i64::MAX, readable: true }
    }

    #[test]
    fn ids_that_exist_are_a_failure_if_live_and_a_warning_if_archived() {
        let sequence = sequence();
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
        let level = |used| assess(&sequence(), used).level;
        assert_eq!(
            [0.0, 0.5, 0.51, 0.9, 0.91].map(level),
            [Level::Ok, Level::Ok, Level::Warning, Level::Warning, Level::Failure]
        );
    }
}
