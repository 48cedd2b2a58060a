//! Calls of the database, for pages and for actions: few at a time, and each statement with a time limit.

use std::sync::Arc;
use std::time::Duration;

use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use pq_diesel::store::Connect;
use pq_diesel::{Error, Pq};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// How long a call waits for others, beyond the time of one statement.
const GRACE: Duration = Duration::from_secs(2);

/// Calls a handle on threads of tokio's pool for blocking work.
#[derive(Clone)]
pub(crate) struct Database {
    pq: Pq,
    permits: Arc<Semaphore>,
    statement_timeout: Duration,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unread(pub(crate) String);

impl Database {
    /// Makes at most `calls` calls at a time.
    pub(crate) fn new(pq: &Pq, calls: usize, statement_timeout: Duration) -> Self {
        Self { pq: pq.clone(), permits: Arc::new(Semaphore::new(calls)), statement_timeout }
    }

    pub(crate) fn statement_timeout(&self) -> Duration {
        self.statement_timeout
    }

    /// Returns the handle, to name queues by.
    pub(crate) fn pq(&self) -> &Pq {
        &self.pq
    }

    /// Runs `work` in a read-only transaction.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Pq, &mut PgConnection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Unread> {
        let here = self.clone();
        self.run(self.statement_timeout, move |_| here.read_here(work)).await
    }

    /// Runs `work` in a read-only transaction on this thread, in [`Database::run`].
    ///
    /// A list is fast only with a plan for its filter, and the compilation of a plan takes longer than most pages.
    pub(crate) fn read_here<T>(
        &self,
        work: impl FnOnce(&Pq, &mut PgConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let settings = format!(
            "SET TRANSACTION READ ONLY; SET LOCAL statement_timeout TO {}; SET LOCAL jit TO off; \
             SET LOCAL plan_cache_mode TO force_custom_plan",
            self.statement_timeout.as_millis()
        );
        let store = self.pq.store();
        store.with_connection(|conn| {
            store.transaction(conn, |conn| {
                conn.batch_execute(&settings)?;
                work(&self.pq, conn)
            })
        })
    }

    /// Runs `work`, which may take this long. Its statements have the limits of the handle.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce(&Pq) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Unread> {
        let permit = timeout(limit + GRACE, Arc::clone(&self.permits).acquire_owned()).await;
        let Ok(Ok(permit)) = permit else {
            return Err(Unread("the connections of the dashboard are in use; try again".to_owned()));
        };
        let pq = self.pq.clone();
        // If the server does not answer, the thread keeps the permit until the handle's call timeout.
        let running = tokio::task::spawn_blocking(move || {
            let done = work(&pq);
            drop(permit);
            done
        });
        match timeout(limit + GRACE, running).await {
            Ok(Ok(Ok(done))) => Ok(done),
            Ok(Ok(Err(error))) if is_slow(&error) => {
                Err(Unread(format!("the database needs more than {limit:?} for this")))
            }
            Ok(Ok(Err(error))) => Err(Unread(error.to_string())),
            Ok(Err(_)) => Err(Unread("reading failed unexpectedly".to_owned())),
            Err(_) => Err(Unread("the database does not answer".to_owned())),
        }
    }
}

/// Returns whether a statement has exceeded its time limit.
pub(crate) fn is_slow(error: &Error) -> bool {
    error.sqlstate() == Some("57014")
}
