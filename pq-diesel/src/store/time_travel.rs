//! Letting time pass, for tests.

use std::time::Duration;

use diesel::pg::PgConnection;
use diesel::sql_types::Text;
use pq_core::QueueName;
use pq_core::store::{Connect, TimeTravel};

use super::{PgStore, age_micros};
use crate::Error;
use crate::prepared::Value;

impl TimeTravel for PgStore {
    /// Moves the times of this table and of the tables that belong to it, and of no other.
    fn advance(&self, conn: &mut PgConnection, duration: Duration) -> Result<(), Error> {
        let values = [Value::BigInt(age_micros(duration))];
        self.transaction(conn, |conn| {
            let waiting: Vec<String> =
                self.statements.advance.with::<Text>(&values).load(conn).map_err(|e| self.error(e))?;
            let queues: Vec<QueueName> =
                waiting.iter().filter_map(|name| QueueName::new(name).ok()).collect();
            queues.iter().for_each(|queue| self.fast_path.forget_position(queue));
            self.notify_queues(conn, &queues)
        })
    }
}
