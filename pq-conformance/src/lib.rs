//! The conformance suite of `pq`: every [`pq_core::Store`] must pass all of its cases.
//!
//! A store's author implements [`Fixture`] and passes it to a [`Suite`] in a test with `harness = false`. A case
//! that needs both kinds of access runs twice: on the handle's own connections, and on a connection of the caller.
//! The others run once.
//!
//! ```no_run
//! use pq_conformance::{Fixture, Suite};
//! use pq_core::memory::{MemoryConn, MemoryStore};
//! use pq_core::Pq;
//!
//! struct Mine;
//!
//! impl Fixture for Mine {
//!     type Store = MemoryStore;
//!     fn fresh(&self, _table: usize) -> Pq<MemoryStore> {
//!         Pq::new(MemoryStore::new())
//!     }
//!     fn connect(&self, pq: &Pq<MemoryStore>) -> MemoryConn {
//!         pq.store().connect()
//!     }
//!     fn core_error<'e>(&self, error: &'e pq_core::Error) -> Option<&'e pq_core::Error> {
//!         Some(error)
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     Suite::new().with("mine", Mine).run()
//! }
//! ```

// A failed case panics, as any test does.
#![allow(clippy::unwrap_used, clippy::panic)]

mod cases;
mod harness;

use std::num::NonZero;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use pq_core::store::Connect;
use pq_core::{Pq, Store};

use self::cases::Case;
use self::harness::{FreeTables, Harness};

/// Creates the handles and connections of a store under test.
pub trait Fixture: Send + Sync + 'static {
    /// The store.
    type Store: Store<Conn: Send>;

    /// Returns a handle, with connections of its own, to an empty table that nothing else uses.
    ///
    /// Tables are numbered from 0. A number comes again when the case that used it has passed, so a fixture can empty a
    /// table instead of creating one.
    fn fresh(&self, table: usize) -> Pq<Self::Store>;

    /// Opens a connection to the same table, as another process would.
    fn connect(&self, pq: &Pq<Self::Store>) -> <Self::Store as Connect>::Conn;

    /// Returns the error of `pq_core` in a store's error, if it holds one.
    fn core_error<'e>(&self, error: &'e <Self::Store as Connect>::Error) -> Option<&'e pq_core::Error>;
}

/// Collects the trials of one or more fixtures.
#[derive(Default)]
#[must_use]
pub struct Suite {
    trials: Vec<Trial>,
}

impl Suite {
    /// Returns a suite without fixtures.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds all cases on this fixture. The name is the prefix of each trial's name.
    pub fn with<F: Fixture>(self, name: &str, fixture: F) -> Self {
        self.with_cases(name, fixture, cases::all())
    }

    /// Adds the cases of these topics: for a fixture that differs from another one only in what these topics are about.
    /// A topic is a file of `cases`, for example `wait`.
    ///
    /// # Panics
    ///
    /// If a topic has no case.
    pub fn with_topics<F: Fixture>(self, name: &str, fixture: F, topics: &[&str]) -> Self {
        let all = cases::all::<F>();
        for topic in topics {
            assert!(all.iter().any(|case| case.topic() == *topic), "no case is about {topic:?}");
        }
        let of_topics = all.into_iter().filter(|case| topics.contains(&case.topic())).collect();
        self.with_cases(name, fixture, of_topics)
    }

    fn with_cases<F: Fixture>(mut self, name: &str, fixture: F, cases: Vec<Case<F>>) -> Self {
        let fixture = Arc::new(fixture);
        let tables = Arc::new(FreeTables::default());
        for case in cases {
            let sentence = case.sentence();
            for &access in case.needs.accesses() {
                let (fixture, tables) = (Arc::clone(&fixture), Arc::clone(&tables));
                let trial = move || {
                    let harness = Harness::new(fixture, access, tables);
                    (case.run)(&harness);
                    harness.assert_access_was_needed(case.needs);
                    harness.release();
                    Ok(())
                };
                self.trials.push(Trial::test(format!("{name}: {sentence} ({access})"), trial));
            }
        }
        self
    }

    /// Runs the trials that the command-line arguments of the test binary select.
    ///
    /// Cases mostly wait for the store. By default there are therefore more test threads than processors.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let mut arguments = Arguments::from_args();
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        arguments.test_threads.get_or_insert((4 * processors).clamp(8, 16));
        libtest_mimic::run(&arguments, self.trials).exit_code()
    }
}
