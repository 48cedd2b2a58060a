//! A connection that is rolled back at the end of a test.

use std::time::Duration;

use diesel::PgConnection;
use diesel::r2d2::{ConnectionManager, Pool, TestCustomizer};

use crate::conninfo::Conninfo;
use crate::error::Error;

/// How long a call waits for the connection. It waits in vain if the caller's own thread holds it.
const WAIT: Duration = Duration::from_secs(10);

/// Returns a pool of one connection in a transaction that is never committed.
///
/// The whole test runs in that transaction: the application's own code, the puts and the workers of a handle with
/// this pool (`Builder::pool`). When the pool is dropped, everything is rolled back. Each transaction that the test
/// begins is a savepoint in it, as in diesel's `begin_test_transaction`.
///
/// There is one connection, so a call that needs it waits until it is returned, at most 10 s. A transactional handler
/// must therefore use the connection that it is given, and a test must return its own before it runs a worker.
///
/// # Errors
///
/// [`Error::BadUrl`], and [`Error::Connect`] if the server does not answer.
pub fn test_transaction(url: &str) -> Result<Pool<ConnectionManager<PgConnection>>, Error> {
    let conninfo =
        Conninfo::given(url).map_err(|reason| Error::BadUrl { from: "test_transaction", reason })?;
    let what = "the database of the test";
    // The error of the pool may quote the connection string.
    drop(conninfo.connect(what)?);
    Pool::builder()
        .max_size(1)
        .connection_timeout(WAIT)
        .idle_timeout(None)
        .max_lifetime(None)
        // A connection that fails the check would be replaced by one that sees nothing of the test.
        .test_on_check_out(false)
        .connection_customizer(Box::new(TestCustomizer))
        .build(ConnectionManager::new(conninfo.as_str()))
        .map_err(|_| Error::Connect {
            what: what.to_owned(),
            reason: "the pool could not open its connection in time".to_owned(),
        })
}
