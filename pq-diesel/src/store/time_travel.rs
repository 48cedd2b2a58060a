//! Letting time pass, for tests.

use std::time::Duration;

use diesel::pg::PgConnection;
use diesel::sql_types::Text;
use pq_core::QueueName;
use pq_core::store::TimeTravel;

use super::{PgStore, SqlConnection, age_micros};
use crate::Error;
use crate::connection::blocking;
use crate::prepared::Value;

impl TimeTravel for PgStore {
    /// Moves the times of this table and of the tables that belong to it, and of no other.
    fn advance(&self, conn: &mut PgConnection, duration: Duration) -> Result<(), Error> {
        blocking(self.advance_on(conn, duration))
    }
}

/// The method of [`TimeTravel`], on a connection of any kind.
#[allow(missing_docs, clippy::missing_errors_doc)]
impl PgStore {
    pub async fn advance_on(&self, conn: &mut impl SqlConnection, duration: Duration) -> Result<(), Error> {
        let around = self.begin(conn).await?;
        let done = self.advance_in_transaction(conn, duration).await;
        self.end(conn, around, done).await
    }

    async fn advance_in_transaction(
        &self,
        conn: &mut impl SqlConnection,
        duration: Duration,
    ) -> Result<(), Error> {
        let values = [Value::BigInt(age_micros(duration))];
        let waiting: Vec<String> = self.rows::<Text, _>(conn, &self.statements.advance, &values).await?;
        let queues: Vec<QueueName> = waiting.iter().filter_map(|name| QueueName::new(name).ok()).collect();
        queues.iter().for_each(|queue| self.fast_path.forget_position(queue));
        self.notify_queues(conn, &queues).await
    }
}
