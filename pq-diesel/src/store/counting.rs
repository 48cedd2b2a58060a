//! Counters of what became of jobs.

use diesel::pg::PgConnection;
use pq_core::TaskCounters;
use pq_core::store::{Counting, MAX_COUNTED_QUEUES, MAX_COUNTED_TASKS};

use super::transaction::single_statement;
use super::{PgStore, SqlConnection};
use crate::Error;
use crate::connection::blocking;
use crate::prepared::Value;
use crate::rows::{CountersRow, CountersSql};

impl Counting for PgStore {
    fn count(&self, conn: &mut PgConnection, counted: &[TaskCounters]) -> Result<(), Error> {
        blocking(self.count_tasks_on(conn, counted))
    }

    fn counted(&self, conn: &mut PgConnection) -> Result<Vec<TaskCounters>, Error> {
        blocking(self.counted_on(conn))
    }
}

/// The methods of [`Counting`], on a connection of any kind.
#[allow(missing_docs, clippy::missing_errors_doc)]
impl PgStore {
    pub async fn count_tasks_on(
        &self,
        conn: &mut impl SqlConnection,
        counted: &[TaskCounters],
    ) -> Result<(), Error> {
        let counts: Result<Vec<String>, _> =
            counted.iter().map(|one| serde_json::to_string(&one.counters)).collect();
        let counts =
            counts.map_err(|error| pq_core::Error::Encode(pq_core::CodecError::new(error.to_string())))?;
        let values = [
            Value::Texts(counted.iter().map(|one| one.queue.as_str()).collect()),
            Value::Texts(counted.iter().map(|one| one.task.as_str()).collect()),
            Value::Texts(counts.iter().map(String::as_str).collect()),
        ];
        let as_single = single_statement(conn)?;
        self.changed(conn, &self.statements.count, &values).await.map(drop).map_err(as_single)
    }

    pub async fn counted_on(&self, conn: &mut impl SqlConnection) -> Result<Vec<TaskCounters>, Error> {
        let rows: Vec<CountersRow> = self.rows::<CountersSql, _>(conn, &self.statements.counted, &[]).await?;
        Ok(merge(rows))
    }

    /// Merges the rows of each task into one. Maintenance, which runs once at a time, calls it in its transaction.
    pub(super) async fn merge_counters(&self, conn: &mut impl SqlConnection) -> Result<(), Error> {
        let limits = [Value::count(MAX_COUNTED_QUEUES), Value::count(MAX_COUNTED_TASKS)];
        let rows: Vec<CountersRow> =
            self.rows::<CountersSql, _>(conn, &self.statements.take_counted, &limits).await?;
        match merge(rows) {
            none if none.is_empty() => Ok(()),
            merged => self.count_tasks_on(conn, &merged).await,
        }
    }
}

fn merge(rows: Vec<CountersRow>) -> Vec<TaskCounters> {
    let counters = rows.into_iter().filter_map(CountersRow::into_counters);
    TaskCounters::merge(counters, MAX_COUNTED_QUEUES, MAX_COUNTED_TASKS)
}
