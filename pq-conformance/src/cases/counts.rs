//! Counting and clearing a queue.

use pq_core::PutOptions;
use serde_json::json;

use super::cases;
use crate::Fixture;
use crate::harness::{Harness, roll_back};

cases![
    jobs_are_counted_by_state: Both,
    others_count_jobs_that_a_transaction_holds_as_ready: Both,
    counting_locks_no_job: Both,
    clear_deletes_scheduled_and_ready_jobs_and_returns_their_number: Both,
    clear_skips_jobs_that_others_hold: Both,
    a_rolled_back_clear_deletes_nothing: Both,
    clear_leaves_other_queues_alone: Own,
];

fn jobs_are_counted_by_state<F: Fixture>(harness: &Harness<F>) {
    harness.put(1);
    harness.put_with(2, &PutOptions::new().schedule_at(chrono::TimeDelta::seconds(-1)));
    harness.put_with(3, &PutOptions::new().schedule_at("1h"));
    let counts = harness.counts();
    assert_eq!((counts.ready, counts.scheduled, counts.dequeued, counts.dead), (2, 1, 0, 0));
    assert_eq!(counts.live(), 3);
}

fn others_count_jobs_that_a_transaction_holds_as_ready<F: Fixture>(harness: &Harness<F>) {
    harness.put(1);
    harness.put(2);
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            queue.on(conn).get()?;
            assert_eq!(queue.on(conn).counts()?.ready, 1);
            assert_eq!(harness.counts().ready, 2);
            Ok(())
        })
        .unwrap();
    assert_eq!(harness.counts().ready, 1);
}

fn counting_locks_no_job<F: Fixture>(harness: &Harness<F>) {
    harness.put(1);
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            queue.on(conn).counts()?;
            assert_eq!(harness.get().map(|job| job.data), Some(json!(1)));
            Ok(())
        })
        .unwrap();
}

fn clear_deletes_scheduled_and_ready_jobs_and_returns_their_number<F: Fixture>(harness: &Harness<F>) {
    harness.put(1);
    harness.put_with(2, &PutOptions::new().schedule_at("1h"));
    assert_eq!(harness.clear(), 2);
    assert_eq!(harness.clear(), 0);
    assert_eq!(harness.counts().live(), 0);
}

fn clear_skips_jobs_that_others_hold<F: Fixture>(harness: &Harness<F>) {
    harness.put("held");
    harness.put("free");
    let queue = harness.queue();
    let rolled_back = harness.transaction(|conn| {
        queue.on(conn).get()?;
        assert_eq!(harness.clear(), 1);
        roll_back::<()>()
    });
    assert!(rolled_back.is_err());
    assert_eq!(harness.drain(), [json!("held")]);
}

fn a_rolled_back_clear_deletes_nothing<F: Fixture>(harness: &Harness<F>) {
    harness.put(1);
    let queue = harness.queue();
    let rolled_back = harness.transaction(|conn| {
        assert_eq!(queue.on(conn).clear()?, 1);
        assert_eq!(queue.on(conn).counts()?.live(), 0);
        roll_back::<()>()
    });
    assert!(rolled_back.is_err());
    assert_eq!(harness.drain(), [json!(1)]);
}

fn clear_leaves_other_queues_alone<F: Fixture>(harness: &Harness<F>) {
    harness.put(1);
    assert_eq!(harness.named::<u8>("pears").clear().unwrap(), 0);
    assert_eq!(harness.drain(), [json!(1)]);
}
