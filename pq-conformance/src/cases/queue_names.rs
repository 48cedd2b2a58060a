//! Queue names: every valid name works in every call.

use std::time::Instant;

use pq_core::{QueueName, Wait};
use serde_json::json;

use super::cases;
use crate::Fixture;
use crate::harness::{Harness, TIMEOUT};

cases![
    any_valid_name_works_for_put_wait_and_get: Own,
    names_with_a_common_prefix_are_different_queues: Own,
    an_invalid_name_is_refused_with_the_reason: Own,
];

fn names() -> Vec<String> {
    let plain =
        ["A", "an apple", "it's \"quoted\"", "a/b", "%s %(x)s", "$$; DROP TABLE queue; --", "Äpfel 🍎", "\\"];
    let long = [
        "x".repeat(63),
        "x".repeat(64),
        "x".repeat(65),
        // 62, 80 and 280 bytes.
        "ж".repeat(31),
        "ж".repeat(40),
        "🍎".repeat(70),
        "x".repeat(QueueName::MAX_BYTES),
    ];
    plain.into_iter().map(str::to_owned).chain(long).collect()
}

fn any_valid_name_works_for_put_wait_and_get<F: Fixture>(harness: &Harness<F>) {
    for name in names() {
        let queue = harness.named(&name);
        std::thread::scope(|threads| {
            let waiter = threads.spawn(|| queue.get(Wait::For(2 * TIMEOUT)).unwrap().map(|job| job.data));
            let put = Instant::now();
            queue.put(&json!(name)).unwrap();
            assert_eq!(waiter.join().unwrap(), Some(json!(name)), "the waiter on {name:?}");
            assert!(
                put.elapsed() < TIMEOUT,
                "the waiter on {name:?} was not woken and polled at its deadline"
            );
        });
        queue.on(&mut harness.connect()).put(&json!(name)).unwrap();
        assert_eq!(queue.counts().unwrap().ready, 1);
        assert_eq!(queue.clear().unwrap(), 1);
    }
}

fn names_with_a_common_prefix_are_different_queues<F: Fixture>(harness: &Harness<F>) {
    let (one, two) = (format!("{}1", "x".repeat(63)), format!("{}2", "x".repeat(63)));
    harness.named::<u8>(&one).put(&1).unwrap();
    assert!(harness.named::<u8>(&two).get(Wait::No).unwrap().is_none());
    assert!(harness.named::<u8>(&one.to_uppercase()).get(Wait::No).unwrap().is_none());
    assert_eq!(harness.named::<u8>(&one).get(Wait::No).unwrap().map(|job| job.data), Some(1));
}

fn an_invalid_name_is_refused_with_the_reason<F: Fixture>(harness: &Harness<F>) {
    for (name, reason) in [("", "empty"), ("a\0b", "NUL"), (&*"x".repeat(1025), "has 1025")] {
        let refused = harness.pq.queue::<u8>(name).err().unwrap();
        assert!(refused.to_string().contains(reason), "{refused}");
    }
}
