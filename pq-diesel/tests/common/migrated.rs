//! Databases with the tables of pq.

use pq_diesel::Pq;
use pq_testing::{Database, Server};

/// Returns a database with the tables.
///
/// `PQ_TEST_MIGRATED` may name one on the same server that is copied, as in ci/test. Otherwise the migrations run,
/// which takes longer.
pub(crate) fn migrated() -> Database {
    let server = Server::shared().expect("a server");
    if let Ok(template) = std::env::var("PQ_TEST_MIGRATED") {
        return server.database_like(&template).expect("a copy");
    }
    let database = server.database().expect("a database");
    Pq::detached().migrate_on(&mut database.connect().expect("a connection")).expect("the tables");
    database
}
