//! Checks the number of dead tuples, autovacuum, and the age of the oldest row.

use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Double, Nullable, Text};

use super::{Exam, Finding, Level, span};
use crate::Error;

pub(super) const CHECK: &str = "dead tuples";

#[derive(QueryableByName)]
struct TableStats {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    quoted: String,
    #[diesel(sql_type = BigInt)]
    live: i64,
    #[diesel(sql_type = BigInt)]
    dead: i64,
    #[diesel(sql_type = Nullable<Double>)]
    vacuumed: Option<f64>,
    #[diesel(sql_type = BigInt)]
    frozen: i64,
    #[diesel(sql_type = Bool)]
    autovacuum_off: bool,
}

/// $1 schema, $2 names of tables.
const STATS: &str = "
    SELECT pg_class.relname::text AS name, format('%I.%I', nspname, pg_class.relname) AS quoted,
        coalesce(stat.n_live_tup, 0) AS live, coalesce(stat.n_dead_tup, 0) AS dead,
        extract(epoch FROM clock_timestamp() - greatest(last_vacuum, last_autovacuum))::float8 AS vacuumed,
        age(relfrozenxid)::bigint AS frozen,
        EXISTS (SELECT FROM pg_options_to_table(reloptions)
            WHERE option_name = 'autovacuum_enabled' AND NOT option_value::boolean) AS autovacuum_off
    FROM pg_class JOIN pg_namespace ON relnamespace = pg_namespace.oid
        LEFT JOIN pg_stat_all_tables AS stat ON stat.relid = pg_class.oid
    WHERE nspname = $1 AND pg_class.relname = ANY ($2) AND relkind = 'r'
    ORDER BY name";

pub(super) fn examine(exam: &Exam<'_>, conn: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let table = &exam.store.table;
    let tables: Vec<TableStats> = diesel::sql_query(STATS)
        .bind::<Text, _>(table.schema.as_str())
        .bind::<Array<Text>, _>(table.names())
        .load(conn)?;
    let mut findings: Vec<Finding> = tables.iter().flat_map(assess).collect();
    if findings.is_empty() {
        let (live, dead) =
            tables.iter().fold((0, 0), |(live, dead), table| (live + table.live, dead + table.dead));
        let message = format!("{dead}, and {live} live rows, in {} tables", tables.len());
        findings.push(Finding::ok(CHECK, message));
    }
    Ok(findings)
}

fn assess(table: &TableStats) -> Vec<Finding> {
    let mut findings = Vec::new();
    let level = dead_tuples_level(table.live, table.dead);
    if level > Level::Ok {
        let vacuumed = table
            .vacuumed
            .map_or("never vacuumed".to_owned(), |seconds| format!("vacuumed {} ago", span(seconds)));
        let message =
            format!("{} has {} dead tuples and {} live rows, {vacuumed}", table.name, table.dead, table.live);
        findings.push(Finding::new(CHECK, level, message).advise(format!(
            "make sure that no old snapshot exists, then: VACUUM {0}; to make autovacuum start earlier: ALTER TABLE {0} \
             SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, \
             autovacuum_vacuum_cost_delay = 0)",
            table.quoted
        )));
    }
    if table.autovacuum_off {
        let message = format!("autovacuum is disabled for {}", table.name);
        findings.push(
            Finding::new(CHECK, Level::Failure, message)
                .advise(format!("ALTER TABLE {} RESET (autovacuum_enabled)", table.quoted)),
        );
    }
    let level = row_age_level(table.frozen);
    if level > Level::Ok {
        let message = format!("the oldest row of {} may be {} transactions old", table.name, table.frozen);
        findings.push(Finding::new(CHECK, level, message).advise(format!(
            "the server refuses writes at 2,000,000,000; make sure that no old snapshot exists, then: VACUUM (FREEZE) {}",
            table.quoted
        )));
    }
    findings
}

/// Returns the severity of a number of dead tuples. A queue always has as many as jobs were taken since the last
/// vacuum.
fn dead_tuples_level(live: i64, dead: i64) -> Level {
    if dead > 10_000_000 && dead / 10 > live {
        Level::Failure
    } else if dead > 100_000 && dead > live {
        Level::Warning
    } else {
        Level::Ok
    }
}

fn row_age_level(transactions: i64) -> Level {
    match transactions {
        1_600_000_001.. => Level::Failure,
        1_000_000_001.. => Level::Warning,
        _ => Level::Ok,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_tuples_are_compared_with_live_rows() {
        assert_eq!(dead_tuples_level(0, 100_000), Level::Ok);
        assert_eq!(dead_tuples_level(0, 100_001), Level::Warning);
        assert_eq!(dead_tuples_level(1_000_000, 900_000), Level::Ok);
        assert_eq!(dead_tuples_level(0, 10_000_001), Level::Failure);
        assert_eq!(dead_tuples_level(5_000_000, 10_000_001), Level::Warning);
    }

    #[test]
    fn old_rows_are_reported_long_before_the_server_stops() {
        assert_eq!(row_age_level(200_000_000), Level::Ok);
        assert_eq!(row_age_level(1_000_000_001), Level::Warning);
        assert_eq!(row_age_level(1_600_000_001), Level::Failure);
    }
}
