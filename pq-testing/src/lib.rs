//! Throwaway PostgreSQL servers, for tests, benches and demos.
//!
//! A [`Server`] is found or started with one call, and each test gets a [`Database`] of its own
//! on it. What was started is stopped and removed again, however the process ends.
//!
//! ```
//! use diesel::prelude::*;
//! use pq_testing::Server;
//!
//! fn main() -> Result<(), pq_testing::Error> {
//!     // One server for all tests of this process, started by the first that asks.
//!     let server = Server::shared()?;
//!     // A fresh database, dropped with the guard: tests need not know of one another.
//!     let database = server.database()?;
//!     let mut conn = database.connect()?;
//!
//!     diesel::sql_query("CREATE TABLE greetings (text text NOT NULL)")
//!         .execute(&mut conn)
//!         .expect("the database is ours alone");
//!     // Code that wants a connection string gets this one.
//!     assert!(database.url().starts_with("postgres"));
//!     Ok(())
//! }
//! ```
//!
//! # Which server
//!
//! [`Server::start`] takes the first of these that there is; [`Server::origin`] tells which.
//!
//! 1. A server of yours: [`Options::url`], else the environment's `PQ_TEST_DATABASE_URL`. It is
//!    used as it is and never stopped; databases are created on it, so its user needs `CREATEDB`.
//! 2. A private cluster, from the PostgreSQL programs on this machine: those in `PQ_TEST_PG_BIN`
//!    if that is set, else the first found by `pg_config --bindir`, on `PATH` and in the places
//!    where packages put them. It listens on 127.0.0.1 at a free port and in a directory of its
//!    own, with a random password. Under root it runs as `postgres`, else as `nobody`.
//! 3. A container, if a Docker daemon answers (feature `container`, on by default). The image is
//!    `PQ_TEST_IMAGE` and `PQ_TEST_IMAGE_TAG`, by default `postgres` and `17-alpine`. It
//!    is published to 127.0.0.1 only, unless the daemon is on another machine or we are in a
//!    container ourselves.
//!
//! # Safe or fast
//!
//! [`Options::throwaway`] turns `fsync` off: right for tests, since a test outlives a crash of
//! the server (`synchronous_commit` stays on) but not one of the machine. What is measured or
//! shown to somebody starts with [`Options::durable`].
//!
//! # One server for a whole test run
//!
//! A process that starts a private cluster pays about a second for it. Where a test run is many
//! processes (`cargo test` with many test binaries, `cargo nextest`, a mix of languages), the
//! command in this crate starts one server for all of them:
//!
//! ```text
//! with-postgres -- cargo test --workspace
//! with-postgres --durable --database demo -- psql
//! ```
//!
//! It sets `PQ_TEST_DATABASE_URL` for the command, and passes on how the command ended.
//!
//! # Faults
//!
//! A private cluster can be stopped in three ways ([`Stop`]) and started again at the same port,
//! with its data: [`Server::stop`], [`Server::start_again`].
//!
//! # What is left behind
//!
//! Nothing, as a rule. Dropping a [`Server`] stops and removes it. If the process ends without
//! that, by `exit`, a signal or `kill -9`, a small watchdog process (`sh` at the other end of a
//! pipe) does so. If the watchdog was killed too, the next start sweeps up what belongs to
//! processes that are no more. A container is removed by the watchdog only where the `docker`
//! command is installed, and by the sweep otherwise.
//!
//! # Limits
//!
//! Unix only, PostgreSQL 13 or later. Errors and log events carry no password; the connection
//! strings do.

#[cfg(not(unix))]
compile_error!("pq-testing runs on Unix only");

mod cluster;
mod conninfo;
#[cfg(feature = "container")]
mod container;
mod database;
mod error;
mod options;
mod origin;
mod owner;
mod server;
mod watchdog;

pub use cluster::Stop;
pub use database::Database;
pub use error::Error;
pub use options::{Kind, Options};
pub use origin::Origin;
pub use server::Server;
