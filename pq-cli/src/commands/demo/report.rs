//! The demo's tables, and the report that counts their rows at the end.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use diesel::prelude::*;
use diesel::sql_types::BigInt;

use crate::failure::Failure;

diesel::table! {
    demo_file (path) { path -> Text, }
}

diesel::table! {
    demo_result (path) {
        path -> Text,
        worker -> Integer,
        bytes -> Nullable<BigInt>,
        lines -> Nullable<BigInt>,
        sha256 -> Nullable<Text>,
        error -> Nullable<Text>,
    }
}

diesel::table! {
    demo_fault (path, fault) { path -> Text, fault -> Text, worker -> Nullable<Integer>, }
}

/// Stores the paths of the files, in the transaction that puts their jobs.
pub(super) fn insert_files(conn: &mut PgConnection, files: &[String]) -> Result<(), Failure> {
    for some in files.chunks(10_000) {
        let rows: Vec<_> = some.iter().map(|path| demo_file::path.eq(path)).collect();
        diesel::insert_into(demo_file::table).values(rows).execute(conn)?;
    }
    Ok(())
}

/// Counts of the worker processes.
pub(super) struct ProcessCounts {
    pub(super) started: usize,
    pub(super) killed: usize,
    pub(super) chaos: Option<ChaosCounts>,
}

/// Counts of `--chaos`.
#[derive(Clone, Copy)]
pub(super) struct ChaosCounts {
    pub(super) terminated: usize,
    pub(super) seed: u64,
}

/// Counts from the demo's tables.
#[derive(Debug, QueryableByName)]
pub(super) struct Report {
    #[diesel(sql_type = BigInt)]
    files: i64,
    #[diesel(sql_type = BigInt)]
    results: i64,
    #[diesel(sql_type = BigInt)]
    unreadable: i64,
    #[diesel(sql_type = BigInt)]
    bytes: i64,
    #[diesel(sql_type = BigInt)]
    lost: i64,
    #[diesel(sql_type = BigInt)]
    twice: i64,
    #[diesel(sql_type = BigInt)]
    workers: i64,
}

/// A file without a result is lost. Every result after the first counts as done twice.
const COUNT: &str = "\
WITH done AS (SELECT path, count(*) AS times FROM demo_result GROUP BY path)
SELECT
    (SELECT count(*) FROM demo_file) AS files,
    (SELECT count(*) FROM demo_result) AS results,
    (SELECT count(*) FROM demo_result WHERE error IS NOT NULL) AS unreadable,
    (SELECT coalesce(sum(bytes), 0)::bigint FROM demo_result) AS bytes,
    (SELECT count(*) FROM demo_file WHERE path NOT IN (SELECT path FROM done)) AS lost,
    (SELECT coalesce(sum(times - 1), 0)::bigint FROM done) AS twice,
    (SELECT count(DISTINCT worker) FROM demo_result) AS workers";

impl Report {
    pub(super) fn count(conn: &mut PgConnection) -> Result<Self, Failure> {
        Ok(diesel::sql_query(COUNT).get_result(conn)?)
    }

    pub(super) fn is_clean(&self) -> bool {
        self.lost == 0 && self.twice == 0 && self.results == self.files
    }

    pub(super) fn table(&self, elapsed: Duration, processes: &ProcessCounts, origin: &str) -> String {
        let rate = self.results as f64 / elapsed.as_secs_f64().max(0.001);
        let mut rows = vec![
            ("PostgreSQL", origin.to_owned()),
            ("jobs (one per file)", self.files.to_string()),
            ("results", self.results.to_string()),
            ("  of unreadable files", self.unreadable.to_string()),
            ("bytes hashed", self.bytes.to_string()),
            ("jobs per second", format!("{rate:.0}")),
            ("processes started", processes.started.to_string()),
            ("processes with results", self.workers.to_string()),
            ("processes killed", processes.killed.to_string()),
        ];
        if let Some(ChaosCounts { terminated, seed }) = processes.chaos {
            rows.push(("backends terminated", terminated.to_string()));
            rows.push(("seed", seed.to_string()));
        }
        rows.push(("lost", self.lost.to_string()));
        rows.push(("done twice", self.twice.to_string()));
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        for (what, count) in rows {
            table.add_row([what.to_owned(), count]);
        }
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table.to_string()
    }
}
