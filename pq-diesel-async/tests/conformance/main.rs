//! The conformance suite on asynchronous connections.
//!
//! The suite calls a store that blocks. [`store::Blocking`] is one: it runs each call of the asynchronous
//! implementation on a runtime of its own, and waits for it.

#![allow(clippy::print_stdout, reason = "the reader must know which server was used")]

#[path = "../../../pq-diesel/tests/common/empty_tables.rs"]
mod empty_tables;
mod store;

use std::process::ExitCode;

use pq_conformance::{Fixture, Suite};
use pq_diesel_async::{Error, Pq};
use pq_testing::{Database, Server};
use tokio::runtime::Runtime;

use self::empty_tables::EmptyTables;
use self::store::{Blocking, Conn};

struct Postgres {
    database: Database,
    runtime: Runtime,
    tables: EmptyTables,
}

impl Fixture for Postgres {
    type Store = Blocking;

    fn fresh(&self, table: usize) -> pq_core::Pq<Blocking> {
        let pq = Pq::builder()
            .url(self.database.url())
            .pool_size(4)
            .table(&format!("queue_{table}"))
            .build()
            .expect("names that are allowed");
        self.tables.prepare(&self.database, table, pq.blocking());
        pq_core::Pq::new(Blocking::new(pq, self.runtime.handle().clone()))
    }

    fn connect(&self, _: &pq_core::Pq<Blocking>) -> Conn {
        Conn::open(self.database.url(), self.runtime.handle()).expect("a connection")
    }

    fn core_error<'e>(&self, error: &'e Error) -> Option<&'e pq_core::Error> {
        match error {
            Error::Refused(refused) => Some(refused),
            _ => None,
        }
    }
}

fn main() -> ExitCode {
    let server = Server::shared().expect("a server");
    println!("PostgreSQL: {}", server.origin());
    let database = server.database().expect("a database");
    let runtime = Runtime::new().expect("a runtime");
    Suite::new().with("asynchronous", Postgres { database, runtime, tables: EmptyTables::default() }).run()
}
