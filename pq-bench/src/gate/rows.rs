//! Counts what a take reads, as EXPLAIN reports it.

use anyhow::{Context, Result};
use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Json;
use serde_json::Value;

use super::{Group, Measured, QUEUE, fill};
use crate::{Bench, PAYLOAD};

const JOBS: usize = 10_000;
const BATCH: usize = 500;

/// Explains takes of one job and of a batch, in several states of the table.
///
/// The plain take: with ready jobs alone, with scheduled jobs beside them, and behind dead tuples that a snapshot
/// of another session keeps. The take that merges due scheduled jobs: with many of them due.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Measured>> {
    let mut measured = Vec::new();
    let mut conn = fill(bench, JOBS)?;
    let [_, (_, one), (_, many), (_, sorted)] = bench.pq.store().hot_statements();
    // A number in place of the token, and no lease.
    let batch = |text: &str, jobs: usize| text.replace("$2", "NULL").replace("$3", &jobs.to_string());
    let plain = &[one.replace("$2", "1"), batch(&many, BATCH)];
    let sorted = &[batch(&sorted, 1), batch(&sorted, BATCH)];
    explain(&mut conn, "10,000 ready", plain, &mut measured)?;

    conn.batch_execute(&format!(
        "INSERT INTO pq.queue (q_name, data, schedule_at)
         SELECT '{QUEUE}', '{PAYLOAD}', now() + interval '1 year' FROM generate_series(1, {JOBS});
         ANALYZE pq.queue"
    ))?;
    explain(&mut conn, "10,000 scheduled beside", plain, &mut measured)?;
    conn.batch_execute("UPDATE pq.queue SET schedule_at = now() WHERE schedule_at IS NOT NULL")?;
    conn.batch_execute("VACUUM ANALYZE pq.queue")?;
    explain(&mut conn, "10,000 due beside", sorted, &mut measured)?;

    let mut conn = fill(bench, 2 * JOBS)?;
    let mut snapshot_conn = bench.connect()?;
    snapshot_conn.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pq.queue LIMIT 1")?;
    conn.batch_execute(&format!(
        "DELETE FROM pq.queue WHERE id <= (SELECT min(id) + {JOBS} - 1 FROM pq.queue); ANALYZE pq.queue"
    ))?;
    explain(&mut conn, "10,000 dead rows before", plain, &mut measured)?;
    Ok(measured)
}

fn explain(
    conn: &mut PgConnection,
    beside: &str,
    [one, many]: &[String; 2],
    measured: &mut Vec<Measured>,
) -> Result<()> {
    for (name, text, jobs) in [("a take of 1", one, 1), ("a take of 500", many, BATCH)] {
        // As for a worker: planned once, for any queue.
        conn.batch_execute(&format!(
            "DEALLOCATE ALL; SET plan_cache_mode = force_generic_plan; PREPARE take (text) AS {text}"
        ))?;
        // The first read of new tuples sets hint bits, which dirties pages.
        measure_take(conn)?;
        let read = measure_take(conn)?;
        let jobs = jobs as f64;
        measured.push(Measured::new(
            Group::Rows,
            format!("{name}, {beside}: rows a job"),
            read.rows / jobs,
            5.0,
        ));
        measured.push(Measured::new(
            Group::Rows,
            format!("{name}, {beside}: pages a job"),
            read.pages / jobs,
            10.0,
        ));
    }
    Ok(())
}

struct Read {
    rows: f64,
    pages: f64,
}

#[derive(QueryableByName)]
struct Plan {
    #[diesel(sql_type = Json, column_name = "QUERY PLAN")]
    plan: Value,
}

/// Runs a take in a transaction that is rolled back, and returns what it read.
fn measure_take(conn: &mut PgConnection) -> Result<Read> {
    let explain = format!("EXPLAIN (ANALYZE, BUFFERS, TIMING off, FORMAT JSON) EXECUTE take('{QUEUE}')");
    let found = conn.test_transaction::<_, diesel::result::Error, _>(|conn| {
        diesel::sql_query(&explain).get_result::<Plan>(conn)
    });
    let root = found.plan.get(0).and_then(|all| all.get("Plan")).context("EXPLAIN returned no plan")?;
    Ok(Read {
        rows: rows_of(root),
        pages: number(root, "Shared Hit Blocks") + number(root, "Shared Read Blocks"),
    })
}

fn number(node: &Value, key: &str) -> f64 {
    node.get(key).and_then(Value::as_f64).unwrap_or_default()
}

/// Returns the rows that table scans have read, including rows removed by filters.
fn rows_of(node: &Value) -> f64 {
    let text = |key: &str| node.get(key).and_then(Value::as_str);
    let is_scan =
        text("Node Type").is_some_and(|kind| kind.ends_with("Scan")) && text("Relation Name").is_some();
    let own = ["Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck"];
    let own = own.iter().map(|key| number(node, key)).sum::<f64>() * number(node, "Actual Loops");
    let children =
        node.get("Plans").and_then(Value::as_array).into_iter().flatten().map(rows_of).sum::<f64>();
    if is_scan { own + children } else { children }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_table_scans_are_counted_at_any_depth() {
        let plan = serde_json::json!({
            "Node Type": "ModifyTable", "Relation Name": "queue", "Actual Rows": 7, "Actual Loops": 1,
            "Plans": [
                { "Node Type": "CTE Scan", "Actual Rows": 100, "Actual Loops": 1 },
                { "Node Type": "LockRows", "Actual Rows": 5, "Actual Loops": 1, "Plans": [
                    { "Node Type": "Index Scan", "Relation Name": "queue", "Actual Rows": 3,
                      "Rows Removed by Filter": 2, "Actual Loops": 4 }] },
                { "Node Type": "Bitmap Heap Scan", "Relation Name": "queue", "Actual Rows": 1,
                  "Rows Removed by Index Recheck": 6, "Actual Loops": 1, "Plans": [
                    { "Node Type": "Bitmap Index Scan", "Index Name": "i", "Actual Rows": 9, "Actual Loops": 1 }] }
            ]
        });
        assert_eq!(rows_of(&plan), 27.0);
    }
}
