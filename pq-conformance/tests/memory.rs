//! The suite on the memory store.

use std::process::ExitCode;

use pq_conformance::{Fixture, Suite};
use pq_core::memory::{MemoryConn, MemoryStore};
use pq_core::{Error, Pq};

struct Memory;

impl Fixture for Memory {
    type Store = MemoryStore;

    fn fresh(&self, _table: usize) -> Pq<MemoryStore> {
        Pq::new(MemoryStore::new())
    }

    fn connect(&self, pq: &Pq<MemoryStore>) -> MemoryConn {
        pq.store().connect()
    }

    fn core_error<'e>(&self, error: &'e Error) -> Option<&'e Error> {
        Some(error)
    }
}

fn main() -> ExitCode {
    Suite::new().with("memory", Memory).run()
}
