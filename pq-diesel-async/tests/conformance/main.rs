//! The conformance suite on asynchronous connections.
//!
//! The suite calls a store that blocks. [`store::Blocking`] is one: it runs each call of the asynchronous implementation on
//! a runtime of its own, and waits for it.

#![allow(clippy::print_stdout, reason = "the reader must know which server was used")]

mod store;

use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};

use pq_conformance::{Fixture, Suite};
use pq_diesel_async::{Error, Pq};
use pq_testing::{Database, Server};
use tokio::runtime::Runtime;

use self::store::{Blocking, Conn};

struct Postgres {
    database: Database,
    runtime: Runtime,
    made: AtomicU32,
}

impl Fixture for Postgres {
    type Store = Blocking;

    fn fresh(&self) -> pq_core::Pq<Blocking> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let pq = Pq::builder()
            .url(self.database.url())
            .pool_size(4)
            .table(&format!("queue_{number}"))
            .build()
            .expect("names that are allowed");
        pq.blocking().migrate().expect("a table");
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
    Suite::new().with("asynchronous", Postgres { database, runtime, made: AtomicU32::new(0) }).run()
}
