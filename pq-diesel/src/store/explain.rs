//! Explaining why a job waits.

use diesel::pg::PgConnection;
use pq_core::JobId;
use pq_core::Reason;
use pq_core::store::{Circumstances, Explain};

use super::{PgStore, SqlConnection};
use crate::Error;
use crate::connection::blocking;
use crate::prepared::Value;
use crate::rows::{CircumstancesRow, CircumstancesSql, LimitUseRow, LimitUseSql};

impl Explain for PgStore {
    fn circumstances(&self, conn: &mut PgConnection, id: JobId) -> Result<Circumstances, Error> {
        blocking(self.circumstances_on(conn, id))
    }
}

impl PgStore {
    /// The method of [`Explain`], on a connection of any kind.
    #[allow(clippy::missing_errors_doc)]
    pub async fn circumstances_on(
        &self,
        conn: &mut impl SqlConnection,
        id: JobId,
    ) -> Result<Circumstances, Error> {
        let most = i64::try_from(Reason::MAX_COUNTED).unwrap_or(i64::MAX);
        let values = [Value::BigInt(id.0), Value::BigInt(most)];
        let around = self.begin_without_jit(conn).await?;
        let row = self
            .only::<CircumstancesSql, CircumstancesRow>(conn, &self.statements.circumstances, &values)
            .await;
        let after = self.open_waits(conn, id, Reason::MAX_COUNTED).await;
        let used = self.one::<LimitUseSql, LimitUseRow>(conn, &self.statements.limit_use, &values).await;
        conn.roll_back_to(around).await?;
        let found = row?.into_circumstances();
        let (limits, turn) = used?.map(|used| used.reached(found.now)).unwrap_or_default();
        Ok(Circumstances { after: after?, limits, turn, ..found })
    }
}
