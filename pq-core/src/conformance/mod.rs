//! The suite that every store passes, whole: what [`crate::Store`] promises and the specification
//! says, a case a sentence.
//!
//! A store's author implements [`Fixture`] and gives it to a [`Suite`] in a test without harness. Each
//! case runs twice: on connections of the handle's own, and on a connection of the caller's.
//!
//! ```no_run
//! use pq_core::conformance::{Fixture, Suite};
//! use pq_core::memory::{MemoryConn, MemoryStore};
//! use pq_core::Pq;
//!
//! struct Mine;
//!
//! impl Fixture for Mine {
//!     type Store = MemoryStore;
//!     fn fresh(&self) -> Pq<MemoryStore> {
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

// A case that cannot go on says why and fails: that is a panic.
#![allow(clippy::unwrap_used, clippy::panic)]

mod attending;
mod bulk;
mod counting;
mod ending;
mod handlers;
mod holding;
mod keys;
mod leasing;
mod naming;
mod ordering;
mod overseeing;
mod panicking;
mod payloads;
mod putting;
mod recurring;
mod scene;
mod stopping;
mod taking;
mod tasks;
mod timing;
mod together;
mod transactions;
mod uniqueness;
mod waiting;
mod working;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};

use self::scene::{Access, Scene};
use crate::{Pq, Store};

/// A store under test.
pub trait Fixture: Send + Sync + 'static {
    /// The store.
    type Store: Store<Conn: Send>;

    /// A handle, with connections of its own, to a table that is empty and that nobody else uses.
    fn fresh(&self) -> Pq<Self::Store>;

    /// A connection to the same table, such as another process would have.
    fn connect(&self, pq: &Pq<Self::Store>) -> <Self::Store as Store>::Conn;

    /// The core's error in one of the store's, if that is what it is.
    fn core_error<'e>(&self, error: &'e <Self::Store as Store>::Error) -> Option<&'e crate::Error>;
}

/// A case: its name and what it does.
type Case<F> = (&'static str, fn(&Scene<F>));

/// Names each function as a case.
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub(super) fn cases<F: super::Fixture>() -> Vec<super::Case<F>> {
            vec![$((concat!(module_path!(), "::", stringify!($name)), $name::<F>)),*]
        }
    };
}
use cases;

/// The cases, for as many fixtures as are given.
#[derive(Default)]
#[must_use]
pub struct Suite {
    trials: Vec<Trial>,
}

impl Suite {
    /// No fixture yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// All cases on this fixture, under this name.
    pub fn with<F: Fixture>(mut self, name: &str, fixture: F) -> Self {
        let fixture = Arc::new(fixture);
        let topics: [fn() -> Vec<Case<F>>; 24] = [
            putting::cases,
            bulk::cases,
            taking::cases,
            together::cases,
            ordering::cases,
            transactions::cases,
            holding::cases,
            waiting::cases,
            timing::cases,
            payloads::cases,
            counting::cases,
            naming::cases,
            panicking::cases,
            leasing::cases,
            keys::cases,
            uniqueness::cases,
            ending::cases,
            tasks::cases,
            handlers::cases,
            working::cases,
            stopping::cases,
            attending::cases,
            overseeing::cases,
            recurring::cases,
        ];
        for (case, run) in topics.into_iter().flat_map(|topic| topic()) {
            let sentence = case.rsplit("conformance::").next().unwrap_or(case);
            for access in [Access::Own, Access::Callers] {
                let fixture = Arc::clone(&fixture);
                let trial = move || {
                    run(&Scene::new(fixture, access));
                    Ok(())
                };
                self.trials.push(Trial::test(format!("{name}: {sentence} ({access})"), trial));
            }
        }
        self
    }

    /// Runs the cases, as the arguments of a test binary say.
    #[must_use]
    pub fn run(self) -> ExitCode {
        libtest_mimic::run(&Arguments::from_args(), self.trials).exit_code()
    }
}
