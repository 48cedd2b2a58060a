//! Estimates how much of the tables and indexes is free space that dead tuples have left.

use diesel::prelude::*;
use diesel::sql_types::{Array, Bool, Double, Nullable, Text};

use super::{Exam, Finding, Level, mebibytes};
use crate::Error;

pub(super) const CHECK: &str = "bloat";

#[derive(QueryableByName)]
struct Size {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    quoted: String,
    #[diesel(sql_type = Bool)]
    index: bool,
    #[diesel(sql_type = Double)]
    bytes: f64,
    #[diesel(sql_type = Nullable<Double>)]
    needed: Option<f64>,
}

/// Estimates the needed size of each table and index from the statistics, without an extension.
///
/// A row has 28 bytes of overhead, an index entry 12, and index pages are 90 % full. A column without statistics counts
/// 32 bytes in an index. A table without statistics is skipped. Dead tuples count as needed, because vacuum reuses
/// their space. $1 schema, $2 names of tables.
const SIZES: &str = "
    WITH ours AS (
        SELECT pg_class.oid, relname, nspname, reltuples,
            coalesce(pg_stat_get_live_tuples(pg_class.oid) + pg_stat_get_dead_tuples(pg_class.oid), 0) AS counted
        FROM pg_class JOIN pg_namespace ON relnamespace = pg_namespace.oid
        WHERE nspname = $1 AND relname = ANY ($2) AND relkind = 'r'
    )
    SELECT relname::text AS name, format('%I.%I', nspname, relname) AS quoted, false AS index,
        coalesce(pg_relation_size(oid), 0)::float8 AS bytes,
        greatest(reltuples, counted)::float8 * (28 + (
            SELECT sum(avg_width) FROM pg_stats WHERE schemaname = ours.nspname AND tablename = ours.relname
        )) AS needed
    FROM ours
    UNION ALL
    SELECT index.relname, format('%I.%I', nspname, index.relname), true,
        coalesce(pg_relation_size(index.oid), 0),
        greatest(index.reltuples, counted) * (12 + (
            SELECT sum(coalesce(avg_width, CASE WHEN attlen > 0 THEN attlen ELSE 32 END))
            FROM pg_attribute LEFT JOIN pg_stats
                ON schemaname = ours.nspname AND tablename = ours.relname AND pg_stats.attname = pg_attribute.attname
            WHERE attrelid = index.oid AND attnum > 0
        )) / 0.9
    FROM ours JOIN pg_index ON indrelid = ours.oid JOIN pg_class AS index ON index.oid = indexrelid
    ORDER BY bytes DESC, name";

pub(super) fn examine(exam: &Exam<'_>, conn: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let table = &exam.store.table;
    let sizes: Vec<Size> = diesel::sql_query(SIZES)
        .bind::<Text, _>(table.schema.as_str())
        .bind::<Array<Text>, _>(table.names())
        .load(conn)?;
    let mut findings: Vec<Finding> = sizes.iter().filter_map(assess).collect();
    if findings.is_empty() {
        let total: f64 = sizes.iter().map(|size| size.bytes).sum();
        findings.push(Finding::ok(CHECK, format!("tables and indexes have {} in total", mebibytes(total))));
    }
    Ok(findings)
}

fn assess(size: &Size) -> Option<Finding> {
    let needed = size.needed?;
    if !bloated(size.index, size.bytes, needed) {
        return None;
    }
    let message = format!(
        "{} has {} and needs about {}",
        size.name,
        mebibytes(size.bytes),
        mebibytes(needed.max(1_048_576.0))
    );
    let advice = if size.index {
        format!("REINDEX INDEX CONCURRENTLY {}", size.quoted)
    } else {
        format!(
            "new jobs reuse the space; to return it to the system while the queue is idle, because it locks the table: \
             VACUUM (FULL) {}",
            size.quoted
        )
    };
    Some(Finding::new(CHECK, Level::Warning, message).advise(advice))
}

/// Returns whether a table or index is worth a rebuild. A small one never is, and the estimate is rough.
fn bloated(index: bool, bytes: f64, needed: f64) -> bool {
    const MIB: f64 = 1_048_576.0;
    let (least, times) = (32.0 * MIB, if index { 4.0 } else { 10.0 });
    bytes > least && bytes > times * needed
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: f64 = 1_048_576.0;

    #[test]
    fn small_indexes_are_never_bloated() {
        assert!(!bloated(true, 32.0 * MIB, 0.0));
        assert!(bloated(true, 33.0 * MIB, 0.0));
        assert!(!bloated(true, 65.0 * MIB, 17.0 * MIB));
        assert!(!bloated(false, 30.0 * MIB, 0.0));
        assert!(bloated(false, 74.0 * MIB, 1.0 * MIB));
        assert!(!bloated(false, 300.0 * MIB, 40.0 * MIB));
    }

    #[test]
    fn a_table_without_statistics_is_skipped() {
        let size = |needed| Size {
            name: "queue".to_owned(),
            quoted: "pq.queue".to_owned(),
            index: false,
            bytes: 1000.0 * MIB,
            needed,
        };
        assert_eq!(assess(&size(None)), None);
        let found = assess(&size(Some(0.0)));
        assert!(found.is_some_and(|found| found.message == "queue has 1000 MiB and needs about 1 MiB"));
    }
}
