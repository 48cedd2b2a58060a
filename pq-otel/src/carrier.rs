//! A job's trace context as propagators read and write it.

use opentelemetry::propagation::{Extractor, Injector};
use pq_core::Trace;

pub(crate) struct Inject<'a>(pub(crate) &'a mut Trace);

impl Injector for Inject<'_> {
    fn set(&mut self, key: &str, value: String) {
        // A state without entries says nothing.
        if !value.is_empty() {
            self.0.insert(key.to_owned(), value);
        }
    }
}

pub(crate) struct Extract<'a>(pub(crate) &'a Trace);

impl Extractor for Extract<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}
