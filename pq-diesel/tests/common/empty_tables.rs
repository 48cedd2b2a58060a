//! Empty tables for the cases of the conformance suite.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use pq_diesel::Pq;
use pq_testing::Database;

/// Creates each numbered table once and empties it for each further use: a migration takes longer than most cases.
#[derive(Default)]
pub(crate) struct EmptyTables {
    /// For each table, the SQL that empties it and the tables that belong to it.
    emptying: Mutex<HashMap<usize, String>>,
}

impl EmptyTables {
    /// Empties the table of the handle, or creates it.
    pub(crate) fn prepare(&self, database: &Database, number: usize, pq: &Pq) {
        let mut conn = database.connect().expect("a connection");
        let known = self.lock().get(&number).cloned();
        if let Some(emptying) = known {
            return conn.batch_execute(&emptying).expect("an empty table");
        }
        // One at a time: the new tables are those of this number.
        let mut tables = self.lock();
        let newest = text(&mut conn, "SELECT max(oid)::text FROM pg_class");
        pq.migrate().expect("a table");
        // The table of migrations keeps its rows. It is the only one with this column.
        let emptying = format!(
            "SELECT string_agg(format('DELETE FROM %s;', oid::regclass), ' ') FROM pg_class
             WHERE relkind = 'r' AND oid > {newest} AND NOT EXISTS (
                 SELECT FROM pg_attribute WHERE attrelid = pg_class.oid AND attname = 'run_on')"
        );
        tables.insert(number, text(&mut conn, &emptying));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<usize, String>> {
        self.emptying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn text(conn: &mut PgConnection, sql: &str) -> String {
    diesel::dsl::sql::<Text>(sql).get_result(conn).expect("a text")
}
