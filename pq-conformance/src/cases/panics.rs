//! Panics: the job is returned and the connection stays usable.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use pq_core::Wait;
use serde_json::json;

use super::cases;
use crate::Fixture;
use crate::harness::{CaseError, Harness};

cases![
    a_panic_in_a_transaction_returns_the_job_and_leaves_the_connection_usable: Own,
    a_panic_in_a_nested_transaction_rolls_back_the_whole_transaction: Both,
    a_caught_panic_in_a_nested_transaction_rolls_back_only_that: Both,
    a_panic_in_get_with_returns_the_job: Own,
    panics_do_not_leak_connections: Own,
];

/// Unwinds as a panic does, without its message on standard error.
fn panics() -> ! {
    resume_unwind(Box::new("on purpose"))
}

fn a_panic_in_a_transaction_returns_the_job_and_leaves_the_connection_usable<F: Fixture>(
    harness: &Harness<F>,
) {
    let id = harness.put("a");
    let queue = harness.queue();
    let mut conn = harness.connect();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        harness.nested(&mut conn, |conn| -> Result<(), CaseError> {
            queue.on(conn).get()?;
            panics()
        })
    }));
    assert!(panicked.is_err_and(|panic| panic.downcast_ref() == Some(&"on purpose")));
    // The same connection has no open transaction any more, and others can take the job.
    queue.on(&mut conn).put(&json!("b")).unwrap();
    assert_eq!(harness.get().map(|job| job.id), Some(id));
    assert_eq!(harness.get().map(|job| job.data), Some(json!("b")));
}

fn a_panic_in_a_nested_transaction_rolls_back_the_whole_transaction<F: Fixture>(harness: &Harness<F>) {
    harness.put("a");
    let queue = harness.queue();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        harness.transaction(|conn| {
            queue.on(conn).get()?;
            harness.nested(conn, |conn| -> Result<(), CaseError> {
                queue.on(conn).put(&json!("b"))?;
                panics()
            })
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(harness.drain(), [json!("a")]);
}

fn a_caught_panic_in_a_nested_transaction_rolls_back_only_that<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            queue.on(conn).put(&json!("outer"))?;
            let inner = catch_unwind(AssertUnwindSafe(|| {
                harness.nested(conn, |conn| -> Result<(), CaseError> {
                    queue.on(conn).put(&json!("inner"))?;
                    panics()
                })
            }));
            assert!(inner.is_err());
            queue.on(conn).put(&json!("after"))?;
            Ok(())
        })
        .unwrap();
    assert_eq!(harness.drain(), [json!("outer"), json!("after")]);
}

fn a_panic_in_get_with_returns_the_job<F: Fixture>(harness: &Harness<F>) {
    harness.put("a");
    let queue = harness.queue();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        queue.get_with(Wait::Forever, |_, _| -> Result<(), CaseError> { panics() })
    }));
    assert!(panicked.is_err());
    assert_eq!(harness.drain(), [json!("a")]);
}

fn panics_do_not_leak_connections<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.queue();
    for n in 0..30 {
        queue.put(&json!(n)).unwrap();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            queue.get_with(Wait::No, |_, _| -> Result<(), CaseError> { panics() })
        }));
        assert!(panicked.is_err());
        assert_eq!(queue.get(Wait::No).unwrap().map(|job| job.data), Some(json!(n)));
    }
}
