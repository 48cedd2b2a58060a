//! Section 3: a panic gives the job back, and spoils no connection.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use serde_json::json;

use super::scene::{Scene, Undo};
use super::{Fixture, cases};
use crate::Wait;

cases![
    a_panic_in_a_transaction_gives_the_job_back_and_goes_on,
    a_panic_in_a_nested_transaction_rolls_back_all_of_it,
    a_caught_panic_in_a_nested_transaction_leaves_the_outer_one_whole,
    a_panic_in_get_with_gives_the_job_back,
    many_panics_use_up_no_connection,
];

/// Unwinds as a panic does, without its message on standard error.
fn panics() -> ! {
    resume_unwind(Box::new("on purpose"))
}

fn a_panic_in_a_transaction_gives_the_job_back_and_goes_on<F: Fixture>(scene: &Scene<F>) {
    let id = scene.put("a");
    let queue = scene.queue();
    let mut conn = scene.connect();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        scene.nested(&mut conn, |conn| -> Result<(), Undo> {
            queue.on(conn).get()?;
            panics()
        })
    }));
    assert!(panicked.is_err_and(|panic| panic.downcast_ref() == Some(&"on purpose")));
    // The very connection is outside of any transaction, and the job is there for others.
    queue.on(&mut conn).put(&json!("b")).unwrap();
    assert_eq!(scene.get().map(|job| job.id), Some(id));
    assert_eq!(scene.get().map(|job| job.data), Some(json!("b")));
}

fn a_panic_in_a_nested_transaction_rolls_back_all_of_it<F: Fixture>(scene: &Scene<F>) {
    scene.put("a");
    let queue = scene.queue();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        scene.transaction(|conn| {
            queue.on(conn).get()?;
            scene.nested(conn, |conn| -> Result<(), Undo> {
                queue.on(conn).put(&json!("b"))?;
                panics()
            })
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(scene.drain(), [json!("a")]);
}

fn a_caught_panic_in_a_nested_transaction_leaves_the_outer_one_whole<F: Fixture>(scene: &Scene<F>) {
    let queue = scene.queue();
    scene
        .transaction(|conn| {
            queue.on(conn).put(&json!("outer"))?;
            let inner = catch_unwind(AssertUnwindSafe(|| {
                scene.nested(conn, |conn| -> Result<(), Undo> {
                    queue.on(conn).put(&json!("inner"))?;
                    panics()
                })
            }));
            assert!(inner.is_err());
            queue.on(conn).put(&json!("after"))?;
            Ok(())
        })
        .unwrap();
    assert_eq!(scene.drain(), [json!("outer"), json!("after")]);
}

fn a_panic_in_get_with_gives_the_job_back<F: Fixture>(scene: &Scene<F>) {
    scene.put("a");
    let queue = scene.queue();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        queue.get_with(Wait::Forever, |_, _| -> Result<(), Undo> { panics() })
    }));
    assert!(panicked.is_err());
    assert_eq!(scene.drain(), [json!("a")]);
}

fn many_panics_use_up_no_connection<F: Fixture>(scene: &Scene<F>) {
    let queue = scene.queue();
    for n in 0..30 {
        queue.put(&json!(n)).unwrap();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            queue.get_with(Wait::No, |_, _| -> Result<(), Undo> { panics() })
        }));
        assert!(panicked.is_err());
        assert_eq!(queue.get(Wait::No).unwrap().map(|job| job.data), Some(json!(n)));
    }
}
