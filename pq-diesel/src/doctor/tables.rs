//! Dead rows, and room that dead rows have left behind.

use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Double, Nullable, Text};

use super::{Exam, Finding, Level, mebibytes, span};
use crate::Error;

pub(super) const DEAD_ROWS: &str = "dead rows";
pub(super) const BLOAT: &str = "bloat";

#[derive(QueryableByName)]
struct Rows {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    quoted: String,
    #[diesel(sql_type = BigInt)]
    live: i64,
    #[diesel(sql_type = BigInt)]
    dead: i64,
    #[diesel(sql_type = Nullable<Double>)]
    visited: Option<f64>,
    #[diesel(sql_type = BigInt)]
    frozen: i64,
    #[diesel(sql_type = Bool)]
    unvisited: bool,
}

/// $1 schema, $2 names of tables.
const ROWS: &str = "
    SELECT pg_class.relname::text AS name, format('%I.%I', nspname, pg_class.relname) AS quoted,
        coalesce(stat.n_live_tup, 0) AS live, coalesce(stat.n_dead_tup, 0) AS dead,
        extract(epoch FROM clock_timestamp() - greatest(last_vacuum, last_autovacuum))::float8 AS visited,
        age(relfrozenxid)::bigint AS frozen,
        EXISTS (SELECT FROM pg_options_to_table(reloptions)
            WHERE option_name = 'autovacuum_enabled' AND NOT option_value::boolean) AS unvisited
    FROM pg_class JOIN pg_namespace ON relnamespace = pg_namespace.oid
        LEFT JOIN pg_stat_all_tables AS stat ON stat.relid = pg_class.oid
    WHERE nspname = $1 AND pg_class.relname = ANY ($2) AND relkind = 'r'
    ORDER BY name";

pub(super) fn dead_rows(exam: &Exam<'_>, conn: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let table = &exam.store.table;
    let tables: Vec<Rows> = diesel::sql_query(ROWS)
        .bind::<Text, _>(table.schema.as_str())
        .bind::<Array<Text>, _>(table.family())
        .load(conn)?;
    let mut findings: Vec<Finding> = tables.iter().flat_map(judge_rows).collect();
    if findings.is_empty() {
        let (live, dead) =
            tables.iter().fold((0, 0), |(live, dead), rows| (live + rows.live, dead + rows.dead));
        let what = format!("{dead} beside {live} rows that live, in {} tables", tables.len());
        findings.push(Finding::ok(DEAD_ROWS, what));
    }
    Ok(findings)
}

fn judge_rows(rows: &Rows) -> Vec<Finding> {
    let mut findings = Vec::new();
    let level = many_dead(rows.live, rows.dead);
    if level > Level::Ok {
        let visited = rows
            .visited
            .map_or("never vacuumed".to_owned(), |seconds| format!("vacuumed {} ago", span(seconds)));
        let what = format!("{} has {} beside {} that live, {visited}", rows.name, rows.dead, rows.live);
        findings.push(Finding::new(DEAD_ROWS, level, what).advise(format!(
            "see that nothing holds the vacuum horizon, then: VACUUM {0}; that autovacuum comes sooner: ALTER TABLE \
             {0} SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, \
             autovacuum_vacuum_cost_delay = 0)",
            rows.quoted
        )));
    }
    if rows.unvisited {
        let what = format!("autovacuum is switched off for {}", rows.name);
        findings.push(
            Finding::new(DEAD_ROWS, Level::Failure, what)
                .advise(format!("ALTER TABLE {} RESET (autovacuum_enabled)", rows.quoted)),
        );
    }
    let level = old_rows(rows.frozen);
    if level > Level::Ok {
        let what = format!("the oldest row of {} may be {} transactions old", rows.name, rows.frozen);
        findings.push(Finding::new(DEAD_ROWS, level, what).advise(format!(
            "the server stops writing at 2,000,000,000: see that nothing holds the vacuum horizon, then: VACUUM \
             (FREEZE) {}",
            rows.quoted
        )));
    }
    findings
}

/// A queue always has dead rows, as many as were taken since the last vacuum.
fn many_dead(live: i64, dead: i64) -> Level {
    if dead > 10_000_000 && dead / 10 > live {
        Level::Failure
    } else if dead > 100_000 && dead > live {
        Level::Warning
    } else {
        Level::Ok
    }
}

fn old_rows(transactions: i64) -> Level {
    match transactions {
        1_600_000_001.. => Level::Failure,
        1_000_000_001.. => Level::Warning,
        _ => Level::Ok,
    }
}

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

/// An estimate from the statistics, as no extension is asked for. A row has 28 bytes of its own, an index entry 12,
/// and an index's pages are nine tenths full. What ANALYZE has not seen, or the role may not see the statistics of,
/// is taken for 32 bytes in an index, and is not judged in a table. Dead rows count, for vacuum frees their room.
/// $1 schema, $2 names of tables.
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

pub(super) fn bloat(exam: &Exam<'_>, conn: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let table = &exam.store.table;
    let sizes: Vec<Size> = diesel::sql_query(SIZES)
        .bind::<Text, _>(table.schema.as_str())
        .bind::<Array<Text>, _>(table.family())
        .load(conn)?;
    let mut findings: Vec<Finding> = sizes.iter().filter_map(judge_size).collect();
    if findings.is_empty() {
        let total: f64 = sizes.iter().map(|size| size.bytes).sum();
        findings.push(Finding::ok(BLOAT, format!("tables and indexes have {} together", mebibytes(total))));
    }
    Ok(findings)
}

fn judge_size(size: &Size) -> Option<Finding> {
    let needed = size.needed?;
    if !bloated(size.index, size.bytes, needed) {
        return None;
    }
    let what = format!(
        "{} has {} where about {} would do",
        size.name,
        mebibytes(size.bytes),
        mebibytes(needed.max(1_048_576.0))
    );
    let advice = if size.index {
        format!("REINDEX INDEX CONCURRENTLY {}", size.quoted)
    } else {
        format!(
            "jobs to come fill the room again; to be rid of it, in a quiet hour, for it locks everybody out: VACUUM \
             (FULL) {}",
            size.quoted
        )
    };
    Some(Finding::new(BLOAT, Level::Warning, what).advise(advice))
}

/// Small ones are never worth a rebuild, and the estimate is a rough one.
fn bloated(index: bool, bytes: f64, needed: f64) -> bool {
    const MIB: f64 = 1_048_576.0;
    let (least, times) = if index { (64.0 * MIB, 4.0) } else { (256.0 * MIB, 10.0) };
    bytes > least && bytes > times * needed
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: f64 = 1_048_576.0;

    #[test]
    fn dead_rows_count_beside_those_that_live() {
        assert_eq!(many_dead(0, 100_000), Level::Ok);
        assert_eq!(many_dead(0, 100_001), Level::Warning);
        assert_eq!(many_dead(1_000_000, 900_000), Level::Ok);
        assert_eq!(many_dead(0, 10_000_001), Level::Failure);
        assert_eq!(many_dead(5_000_000, 10_000_001), Level::Warning);
    }

    #[test]
    fn old_rows_are_told_long_before_the_server_stops() {
        assert_eq!(old_rows(200_000_000), Level::Ok);
        assert_eq!(old_rows(1_000_000_001), Level::Warning);
        assert_eq!(old_rows(1_600_000_001), Level::Failure);
    }

    #[test]
    fn small_indexes_are_never_bloated() {
        assert!(!bloated(true, 64.0 * MIB, 0.0));
        assert!(bloated(true, 65.0 * MIB, 0.0));
        assert!(!bloated(true, 65.0 * MIB, 17.0 * MIB));
        assert!(!bloated(false, 200.0 * MIB, 0.0));
        assert!(bloated(false, 300.0 * MIB, 20.0 * MIB));
    }

    #[test]
    fn a_table_without_statistics_is_not_judged() {
        let size = |needed| Size {
            name: "queue".to_owned(),
            quoted: "pq.queue".to_owned(),
            index: false,
            bytes: 1000.0 * MIB,
            needed,
        };
        assert_eq!(judge_size(&size(None)), None);
        let found = judge_size(&size(Some(0.0)));
        assert!(found.is_some_and(|found| found.what == "queue has 1000 MiB where about 1 MiB would do"));
    }
}
