//! The plans of the statements that take, on this database: the line is walked along its index, and neither read
//! whole nor sorted.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Double, Json, Text};
use serde_json::Value;

use super::{Exam, Finding, Level};
use crate::Error;
use crate::prepared::Statement;
use crate::statements::Trigger;

pub(super) const CHECK: &str = "plans";

/// Below this a table is read whole in no time, and PostgreSQL knows it.
const MANY_ROWS: f64 = 10_000.0;
const MANY_PAGES: i64 = 1_000;

#[derive(QueryableByName)]
struct Size {
    #[diesel(sql_type = Double)]
    rows: f64,
    #[diesel(sql_type = BigInt)]
    pages: i64,
}

#[derive(QueryableByName)]
struct Explained {
    #[diesel(sql_type = Json, column_name = "QUERY PLAN")]
    plan: Value,
}

/// A statement as it is explained: its types, and values of them. The plan is the one that is kept for any value.
struct Asked<'a> {
    name: String,
    /// It walks the line from its start for so many jobs, which is how nearly all are taken.
    walks: Option<usize>,
    statement: &'a Statement,
    types: &'static str,
    values: &'static str,
}

pub(super) fn examine(exam: &Exam<'_>, conn: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let (schema, name) = (exam.store.table.schema.as_str(), exam.store.table.name.as_str());
    let size: Size = diesel::sql_query(
        "SELECT greatest(reltuples, pg_stat_get_live_tuples(pg_class.oid))::float8 AS rows,
            pg_relation_size(pg_class.oid) / current_setting('block_size')::bigint AS pages
         FROM pg_class JOIN pg_namespace ON relnamespace = pg_namespace.oid WHERE nspname = $1 AND relname = $2",
    )
    .bind::<Text, _>(schema)
    .bind::<Text, _>(name)
    .get_result(conn)?;
    let matters = size.rows >= MANY_ROWS || size.pages >= MANY_PAGES;

    conn.batch_execute("SET LOCAL plan_cache_mode TO force_generic_plan")?;
    let asked = statements(exam);
    let mut bad: BTreeMap<(Reverse<Level>, &str), Vec<&str>> = BTreeMap::new();
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    for one in &asked {
        match explain(conn, one) {
            Ok(plan) => {
                tracing::debug!(statement = one.name, %plan, "planned");
                let jobs = Jobs { schema, table: name, rows: size.rows };
                if matters && let Some((level, how)) = judge(&plan, &jobs, one.walks) {
                    bad.entry((Reverse(level), how)).or_default().push(&one.name);
                }
            }
            Err(Error::Database(error)) => {
                *refused.entry(error.to_string()).or_default() += 1;
            }
            Err(error) => return Err(error),
        }
    }
    let advice = format!(
        "see whether an index is missing or not valid; else have the planner look again: VACUUM (ANALYZE) {}; and \
         where the disk is fast at reading anywhere, set random_page_cost to 1.1",
        exam.store.table.jobs()
    );
    let mut findings: Vec<Finding> = bad
        .iter()
        .map(|((level, how), names)| {
            Finding::new(CHECK, level.0, format!("{how}: {}", names.join(", "))).advise(&*advice)
        })
        .collect();
    findings.extend(refused.iter().map(|(error, count)| {
        Finding::new(CHECK, Level::Skipped, format!("{count} statements not looked at: {error}"))
    }));
    if findings.is_empty() {
        let what = if matters {
            format!("{} statements find their jobs by the indexes", asked.len())
        } else {
            "the table is too small for them to matter".to_owned()
        };
        findings.push(Finding::ok(CHECK, what));
    }
    Ok(findings)
}

fn statements<'a>(exam: &Exam<'a>) -> Vec<Asked<'a>> {
    const LEVELS: [&str; 4] =
        ["", " with jobs sorted in", " with many busy keys", " with very many busy keys"];
    let statements = &exam.store.statements;
    let mut asked = Vec::new();
    for count in [1, 512] {
        let walk = Asked {
            name: format!("the walk to {count}"),
            walks: Some(count),
            statement: statements.walk.from_start.of(count).0,
            types: "text, bigint",
            values: "'', 1",
        };
        let from = Asked {
            name: format!("the walk on to {count}"),
            statement: statements.walk.from_place.of(count).0,
            types: "text, bigint, bigint, timestamptz, bigint",
            values: "'', 1, 0, 'infinity', 0",
            ..walk
        };
        let leased = Asked {
            name: format!("the walk to {count} for a lease"),
            statement: statements.walk_leased.from_start.of(count).0,
            ..walk
        };
        let leased_from = Asked {
            name: format!("the walk on to {count} for a lease"),
            statement: statements.walk_leased.from_place.of(count).0,
            ..from
        };
        asked.extend([walk, from, leased, leased_from]);
        for (level, words) in LEVELS.iter().enumerate() {
            let take = Asked {
                name: format!("the take of {count}{words}"),
                walks: (level == 0).then_some(count),
                statement: statements.take[level].of(count).0,
                types: "text",
                values: "''",
            };
            let lease = Asked {
                name: format!("the lease of {count}{words}"),
                statement: statements.lease[level].of(count).0,
                types: "text, bigint",
                values: "'', 1",
                ..take
            };
            asked.extend([take, lease]);
        }
    }
    let put = Asked {
        name: "the put".to_owned(),
        walks: None,
        statement: statements.put_one.of(Trigger::Fires),
        types: "text, text",
        values: "'', 'null'",
    };
    asked.push(put);
    asked
}

/// What is prepared outlives a rollback, so it is deallocated whether or not it can be explained.
fn explain(conn: &mut PgConnection, asked: &Asked<'_>) -> Result<Value, Error> {
    let prepare = format!("PREPARE pq_doctor ({}) AS {}", asked.types, asked.statement.text());
    conn.transaction(|conn| conn.batch_execute(&prepare))?;
    let sql = format!("EXPLAIN (VERBOSE, FORMAT JSON) EXECUTE pq_doctor ({})", asked.values);
    let explained = conn.transaction(|conn| diesel::sql_query(sql).get_result::<Explained>(conn));
    conn.batch_execute("DEALLOCATE pq_doctor")?;
    Ok(explained?.plan)
}

/// The table of a plan.
struct Jobs<'a> {
    schema: &'a str,
    table: &'a str,
    rows: f64,
}

/// What is wrong with a plan: that it reads the whole table for a few rows, or sorts many to have a few of them.
///
/// To read a table whole is right where much of it is wanted, and where the first row will do and nearly any is
/// one. For a large batch it may be right to sort a line that is not much longer.
fn judge(plan: &Value, jobs: &Jobs<'_>, walks: Option<usize>) -> Option<(Level, &'static str)> {
    let many = walks.map(|count| 100.0 * count.max(10) as f64);
    let bad = if walks.is_some() && jobs.rows >= MANY_ROWS { Level::Failure } else { Level::Warning };
    let mut worst = None;
    for query in plan.as_array().into_iter().flatten() {
        visit(&query["Plan"], false, &mut |node, picks| {
            let rows = node["Plan Rows"].as_f64().unwrap_or_default();
            let too_many = picks && many.is_some_and(|many| rows > many);
            let found = match node["Node Type"].as_str() {
                Some("Seq Scan") => {
                    let ours = node["Relation Name"] == jobs.table && node["Schema"] == jobs.schema;
                    (ours && (too_many || 10.0 * rows < jobs.rows))
                        .then_some((bad, "the whole table is read"))
                }
                Some("Sort" | "Incremental Sort") if too_many => Some((bad, "the whole line is sorted")),
                _ => None,
            };
            worst = worst.max(found);
        });
    }
    worst
}

/// Shows each node of a plan, and whether it finds the rows that are locked or deleted.
fn visit<'p>(node: &'p Value, picks: bool, show: &mut impl FnMut(&'p Value, bool)) {
    let picks = picks || matches!(node["Node Type"].as_str(), Some("LockRows" | "ModifyTable"));
    show(node, picks);
    for child in node["Plans"].as_array().into_iter().flatten() {
        // A subplan only answers a question of its parent's.
        let asks = matches!(child["Parent Relationship"].as_str(), Some("InitPlan" | "SubPlan"));
        visit(child, picks && !asks, show);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const JOBS: Jobs<'_> = Jobs { schema: "pq", table: "queue", rows: 20_000.0 };

    fn scan(relation: &str, rows: u32) -> Value {
        json!({"Node Type": "Seq Scan", "Relation Name": relation, "Schema": "pq", "Plan Rows": rows})
    }

    fn sort(rows: u32) -> Value {
        json!({"Node Type": "Sort", "Plan Rows": rows})
    }

    fn locked(node: &Value) -> Value {
        json!({"Node Type": "LockRows", "Plan Rows": 1, "Plans": [node]})
    }

    fn judged(node: &Value, walks: Option<usize>) -> Option<Level> {
        judge(&json!([{ "Plan": node }]), &JOBS, walks).map(|(level, _)| level)
    }

    #[test]
    fn the_line_is_neither_read_whole_nor_sorted() {
        assert_eq!(judged(&locked(&scan("queue", 20_000)), Some(1)), Some(Level::Failure));
        assert_eq!(judged(&locked(&scan("other", 20_000)), Some(1)), None);
        assert_eq!(judged(&locked(&sort(20_000)), Some(1)), Some(Level::Failure));
        assert_eq!(judged(&locked(&sort(900)), Some(1)), None);
        assert_eq!(judged(&locked(&sort(20_000)), Some(512)), None, "a large part of it is wanted");
        assert_eq!(judged(&locked(&sort(60_000)), Some(512)), Some(Level::Failure));
        assert_eq!(judged(&sort(20_000), Some(1)), None, "it is of something else");
    }

    #[test]
    fn few_rows_of_many_are_not_looked_for_one_by_one() {
        let question = |rows| {
            let mut question = scan("queue", rows);
            question["Parent Relationship"] = json!("InitPlan");
            locked(&question)
        };
        assert_eq!(judged(&question(1), Some(1)), Some(Level::Failure));
        assert_eq!(judged(&question(1), None), Some(Level::Warning), "this one is seldom asked");
        assert_eq!(judged(&question(20_000), Some(1)), None, "the first row will do");
    }
}
