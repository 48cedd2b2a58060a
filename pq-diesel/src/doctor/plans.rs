//! Checks the plans of the statements that put and take: they must use an index, and neither read the whole table nor
//! sort it.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Double, Json, Text};
use serde_json::Value;

use super::{Exam, Finding, Level};
use crate::Error;
use crate::prepared::Statement;
use crate::statements::{Measure, Sized, Trigger};

pub(super) const CHECK: &str = "plans";

/// Below these sizes reading the whole table is fast, and PostgreSQL plans accordingly.
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

/// A statement to explain, with the types of its parameters and values of these types. The plan is the generic one.
struct Explainee<'a> {
    name: String,
    /// The number of jobs, if the statement takes them in index order. Nearly all takes do.
    in_order: Option<usize>,
    statement: &'a Statement,
    types: String,
    values: String,
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
    let explainees = statements(exam);
    let mut bad: BTreeMap<(Reverse<Level>, Problem), Vec<&str>> = BTreeMap::new();
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    for one in &explainees {
        match explain(conn, one) {
            Ok(plan) => {
                tracing::debug!(statement = one.name, %plan, "statement planned");
                let jobs = Jobs { schema, table: name, rows: size.rows };
                if matters && let Some((level, problem)) = assess(&plan, &jobs, one.in_order) {
                    bad.entry((Reverse(level), problem)).or_default().push(&one.name);
                }
            }
            Err(Error::Database { source, .. }) => {
                *refused.entry(source.to_string()).or_default() += 1;
            }
            Err(error) => return Err(error),
        }
    }
    let advice = format!(
        "check that no index is missing or invalid, then update the statistics: VACUUM (ANALYZE) {}; on a disk with \
         fast random reads, set random_page_cost to 1.1",
        exam.store.table.jobs()
    );
    let mut findings: Vec<Finding> = bad
        .iter()
        .map(|((level, problem), names)| {
            Finding::new(CHECK, level.0, format!("{}: {}", problem.as_str(), names.join(", ")))
                .advise(&*advice)
        })
        .collect();
    findings.extend(refused.iter().map(|(error, count)| {
        Finding::new(CHECK, Level::Skipped, format!("cannot plan {count} statements: {error}"))
    }));
    if findings.is_empty() {
        let message = if matters {
            format!("{} statements use the indexes", explainees.len())
        } else {
            "the table is too small for plans to matter".to_owned()
        };
        findings.push(Finding::ok(CHECK, message));
    }
    Ok(findings)
}

fn statements<'a>(exam: &Exam<'a>) -> Vec<Explainee<'a>> {
    const LEVELS: [&str; 4] =
        ["", " with merged indexes", " with many keys in use", " with very many keys in use"];
    const KEY: [&str; 2] = ["text, bigint, bigint, timestamptz, bigint", "'', 1, 0, 'infinity', 0"];
    let statements = &exam.store.statements;
    let (fast_take, fast_lease) = (&statements.fast_take, &statements.fast_lease);
    let mut explainees = Vec::new();
    for count in [1, 512] {
        let explainee = |name, in_order: bool, sized: &'a Sized, [types, values]: [&str; 2]| {
            let (statement, limit) = sized.of(count, Measure::No);
            let (types, values) = match limit {
                Some(_) => (format!("{types}, bigint"), format!("{values}, {count}")),
                None => (types.to_owned(), values.to_owned()),
            };
            Explainee { name, in_order: in_order.then_some(count), statement, types, values }
        };
        explainees.extend([
            explainee(format!("fast take of {count}"), true, &fast_take.behind_key, KEY),
            explainee(format!("fast lease of {count}"), true, &fast_lease.behind_key, KEY),
        ]);
        for (level, (fallback, words)) in statements.fallbacks.iter().zip(LEVELS).enumerate() {
            let name = format!("take of {count}{words}");
            explainees.push(explainee(name, level == 0, fallback, ["text, bigint", "'', NULL"]));
        }
    }
    let put = Explainee {
        name: "put".to_owned(),
        in_order: None,
        statement: statements.put_one.of(Trigger::Fires),
        types: "text, text".to_owned(),
        values: "'', 'null'".to_owned(),
    };
    explainees.push(put);
    explainees
}

/// Explains a statement. A prepared statement survives a rollback, so it is deallocated in any case.
fn explain(conn: &mut PgConnection, explainee: &Explainee<'_>) -> Result<Value, Error> {
    let prepare = format!("PREPARE pq_doctor ({}) AS {}", explainee.types, explainee.statement.text());
    conn.transaction(|conn| conn.batch_execute(&prepare))?;
    let sql = format!("EXPLAIN (VERBOSE, FORMAT JSON) EXECUTE pq_doctor ({})", explainee.values);
    let explained = conn.transaction(|conn| diesel::sql_query(sql).get_result::<Explained>(conn));
    conn.batch_execute("DEALLOCATE pq_doctor")?;
    Ok(explained?.plan)
}

/// The defects of a plan, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Problem {
    Sort,
    FullScan,
}

impl Problem {
    fn as_str(self) -> &'static str {
        match self {
            Self::Sort => "sort of the whole queue",
            Self::FullScan => "full table scan",
        }
    }
}

/// The table of jobs.
struct Jobs<'a> {
    schema: &'a str,
    table: &'a str,
    rows: f64,
}

/// Returns the defect of a plan: it reads the whole table for a few rows, or sorts many rows for a few of them.
///
/// A full scan is right if the statement needs a large part of the table, or any one row of many. For a large batch it
/// can be right to sort a queue that is not much longer.
fn assess(plan: &Value, jobs: &Jobs<'_>, in_order: Option<usize>) -> Option<(Level, Problem)> {
    let many = in_order.map(|count| 100.0 * count.max(10) as f64);
    let bad = if in_order.is_some() && jobs.rows >= MANY_ROWS { Level::Failure } else { Level::Warning };
    let mut worst = None;
    for query in plan.as_array().into_iter().flatten() {
        visit(&query["Plan"], false, &mut |node, selects| {
            let rows = node["Plan Rows"].as_f64().unwrap_or_default();
            let too_many = selects && many.is_some_and(|many| rows > many);
            let found = match node["Node Type"].as_str() {
                Some("Seq Scan") => {
                    let ours = node["Relation Name"] == jobs.table && node["Schema"] == jobs.schema;
                    (ours && (too_many || 10.0 * rows < jobs.rows)).then_some((bad, Problem::FullScan))
                }
                Some("Sort" | "Incremental Sort") if too_many => Some((bad, Problem::Sort)),
                _ => None,
            };
            worst = worst.max(found);
        });
    }
    worst
}

/// Visits each node of a plan, and passes whether it finds the rows that are locked or deleted.
fn visit<'p>(node: &'p Value, selects: bool, show: &mut impl FnMut(&'p Value, bool)) {
    let selects = selects || matches!(node["Node Type"].as_str(), Some("LockRows" | "ModifyTable"));
    show(node, selects);
    for child in node["Plans"].as_array().into_iter().flatten() {
        // A subplan only computes a value for its parent.
        let is_subplan = matches!(child["Parent Relationship"].as_str(), Some("InitPlan" | "SubPlan"));
        visit(child, selects && !is_subplan, show);
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

    fn level(node: &Value, in_order: Option<usize>) -> Option<Level> {
        assess(&json!([{ "Plan": node }]), &JOBS, in_order).map(|(level, _)| level)
    }

    #[test]
    fn a_full_scan_or_sort_for_few_jobs_is_a_failure() {
        assert_eq!(level(&locked(&scan("queue", 20_000)), Some(1)), Some(Level::Failure));
        assert_eq!(level(&locked(&scan("other", 20_000)), Some(1)), None);
        assert_eq!(level(&locked(&sort(20_000)), Some(1)), Some(Level::Failure));
        assert_eq!(level(&locked(&sort(900)), Some(1)), None);
        assert_eq!(
            level(&locked(&sort(20_000)), Some(512)),
            None,
            "the statement needs a large part of the table"
        );
        assert_eq!(level(&locked(&sort(60_000)), Some(512)), Some(Level::Failure));
        assert_eq!(level(&sort(20_000), Some(1)), None, "the sort is not of jobs");
    }

    #[test]
    fn a_full_scan_for_a_condition_is_bad_only_if_few_rows_match() {
        let question = |rows| {
            let mut question = scan("queue", rows);
            question["Parent Relationship"] = json!("InitPlan");
            locked(&question)
        };
        assert_eq!(level(&question(1), Some(1)), Some(Level::Failure));
        assert_eq!(level(&question(1), None), Some(Level::Warning), "the statement is rare");
        assert_eq!(level(&question(20_000), Some(1)), None, "any row will do");
    }
}
