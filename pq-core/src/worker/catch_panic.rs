//! Catching the panics of an application's code.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::Failure;

/// Calls a function, and returns its panic as [`Failure::Panic`].
///
/// A panic cannot leave shared state half written: a handler's connection is rolled back, and no lock of the worker is
/// held while application code runs.
pub(super) fn catch_panic<R>(work: impl FnOnce() -> R) -> Result<R, Failure> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| Failure::Panic(panic_text(panic)))
}

/// Returns the text of a panic.
pub(super) fn panic_text(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => match panic.downcast::<&'static str>() {
            Ok(text) => (*text).to_owned(),
            Err(_) => "(the panic's payload is not text)".to_owned(),
        },
    }
}
