//! Sections 1 and 3: counts and clear.

use serde_json::json;

use super::scene::{Scene, undo};
use super::{Fixture, cases};
use crate::PutOptions;

cases![
    jobs_are_counted_by_state,
    what_a_transaction_holds_counts_as_before_to_others,
    counting_holds_nothing,
    clear_deletes_scheduled_and_ready_jobs_and_says_how_many,
    clear_passes_over_what_others_hold,
    a_rolled_back_clear_deletes_nothing,
    clear_leaves_other_queues_alone,
];

fn jobs_are_counted_by_state<F: Fixture>(scene: &Scene<F>) {
    scene.put(1);
    scene.put_with(2, &PutOptions::new().schedule_at(chrono::TimeDelta::seconds(-1)));
    scene.put_with(3, &PutOptions::new().schedule_at("1h"));
    let counts = scene.counts();
    assert_eq!((counts.ready, counts.scheduled, counts.dequeued, counts.dead), (2, 1, 0, 0));
    assert_eq!(counts.live(), 3);
}

fn what_a_transaction_holds_counts_as_before_to_others<F: Fixture>(scene: &Scene<F>) {
    scene.put(1);
    scene.put(2);
    let queue = scene.queue();
    scene
        .transaction(|conn| {
            queue.on(conn).get()?;
            assert_eq!(queue.on(conn).counts()?.ready, 1);
            assert_eq!(scene.counts().ready, 2);
            Ok(())
        })
        .unwrap();
    assert_eq!(scene.counts().ready, 1);
}

fn counting_holds_nothing<F: Fixture>(scene: &Scene<F>) {
    scene.put(1);
    let queue = scene.queue();
    scene
        .transaction(|conn| {
            queue.on(conn).counts()?;
            assert_eq!(scene.get().map(|job| job.data), Some(json!(1)));
            Ok(())
        })
        .unwrap();
}

fn clear_deletes_scheduled_and_ready_jobs_and_says_how_many<F: Fixture>(scene: &Scene<F>) {
    scene.put(1);
    scene.put_with(2, &PutOptions::new().schedule_at("1h"));
    assert_eq!(scene.clear(), 2);
    assert_eq!(scene.clear(), 0);
    assert_eq!(scene.counts().live(), 0);
}

fn clear_passes_over_what_others_hold<F: Fixture>(scene: &Scene<F>) {
    scene.put("held");
    scene.put("free");
    let queue = scene.queue();
    let rolled_back = scene.transaction(|conn| {
        queue.on(conn).get()?;
        assert_eq!(scene.clear(), 1);
        undo::<()>()
    });
    assert!(rolled_back.is_err());
    assert_eq!(scene.drain(), [json!("held")]);
}

fn a_rolled_back_clear_deletes_nothing<F: Fixture>(scene: &Scene<F>) {
    scene.put(1);
    let queue = scene.queue();
    let rolled_back = scene.transaction(|conn| {
        assert_eq!(queue.on(conn).clear()?, 1);
        assert_eq!(queue.on(conn).counts()?.live(), 0);
        undo::<()>()
    });
    assert!(rolled_back.is_err());
    assert_eq!(scene.drain(), [json!(1)]);
}

fn clear_leaves_other_queues_alone<F: Fixture>(scene: &Scene<F>) {
    scene.put(1);
    assert_eq!(scene.named::<u8>("pears").clear().unwrap(), 0);
    assert_eq!(scene.drain(), [json!(1)]);
}
