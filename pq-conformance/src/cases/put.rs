//! Puts: visibility, ids, options and batches.

use pq_core::PutOptions;
use serde_json::json;

use super::cases;
use crate::Fixture;
use crate::harness::{Harness, ids, roll_back};

cases![
    a_put_job_is_visible_to_other_connections: Both,
    a_rolled_back_put_is_never_visible: Both,
    an_uncommitted_put_is_visible_to_its_own_transaction_only: Both,
    ids_ascend_in_the_order_given: Both,
    put_many_puts_all_jobs_or_none: Own,
    put_many_keeps_the_options_of_each_job: Both,
    an_empty_put_many_puts_nothing: Own,
    a_job_has_its_times_and_size: Both,
    a_large_batch_is_put_completely: Own,
];

fn a_put_job_is_visible_to_other_connections<F: Fixture>(harness: &Harness<F>) {
    let id = harness.put("a");
    let other = harness.queue().on(&mut harness.connect()).get().unwrap().unwrap();
    assert_eq!((other.id, other.data), (id, json!("a")));
}

fn a_rolled_back_put_is_never_visible<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.queue();
    let rolled_back = harness.transaction(|conn| {
        queue.on(conn).put(&json!(1))?;
        queue.on(conn).put_many(&[json!(2), json!(3)])?;
        roll_back::<()>()
    });
    assert!(rolled_back.is_err());
    assert!(harness.get().is_none());
    assert_eq!(harness.counts().live(), 0);
}

fn an_uncommitted_put_is_visible_to_its_own_transaction_only<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.queue();
    harness
        .transaction(|conn| {
            queue.on(conn).put(&json!("mine"))?;
            queue.on(conn).put(&json!("left"))?;
            let other = queue.on(&mut harness.connect()).get()?;
            assert!(other.is_none(), "others must not see uncommitted jobs");
            assert_eq!(queue.on(conn).counts()?.ready, 2);
            assert_eq!(queue.on(conn).get()?.map(|job| job.data), Some(json!("mine")));
            Ok(())
        })
        .unwrap();
    assert_eq!(harness.drain(), [json!("left")]);
}

fn ids_ascend_in_the_order_given<F: Fixture>(harness: &Harness<F>) {
    let first = harness.put(0);
    let numbers: Vec<_> = (1..=50).map(|n| json!(n)).collect();
    let put = harness.transaction(|conn| Ok(harness.queue().on(conn).put_many(&numbers)?)).unwrap();
    let ids = ids(put);
    assert!(first < ids[0] && ids.is_sorted_by(|a, b| a < b));
    let got: Vec<_> = harness.get_many(100).iter().map(|job| (job.id, job.data.clone())).collect();
    let expected: Vec<_> = std::iter::once((first, json!(0))).chain(ids.into_iter().zip(numbers)).collect();
    assert_eq!(got, expected);
}

fn put_many_puts_all_jobs_or_none<F: Fixture>(harness: &Harness<F>) {
    let (good, bad) = (PutOptions::new(), PutOptions::new().schedule_at("10s rubbish"));
    let (one, two) = (json!(1), json!(2));
    let refused = harness.queue().put_many_with([(&one, &good), (&two, &bad)]);
    assert!(refused.is_err());
    assert_eq!(harness.counts().live(), 0);
}

fn put_many_keeps_the_options_of_each_job<F: Fixture>(harness: &Harness<F>) {
    let options = [
        PutOptions::new(),
        PutOptions::new().priority(5),
        PutOptions::new().schedule_at("1h"),
        PutOptions::new().expected_at("1h"),
    ];
    let data: Vec<_> = (0..4).map(|n| json!(n)).collect();
    let jobs = data.iter().zip(&options);
    harness.transaction(|conn| Ok(harness.queue().on(conn).put_many_with(jobs)?)).unwrap();
    assert_eq!(harness.counts().scheduled, 1);
    assert_eq!(harness.drain(), [json!(1), json!(3), json!(0)]);
}

fn an_empty_put_many_puts_nothing<F: Fixture>(harness: &Harness<F>) {
    assert!(harness.queue().put_many(&[]).unwrap().is_empty());
    assert!(harness.queue().on(&mut harness.connect()).put_many(&[]).unwrap().is_empty());
    assert_eq!(harness.counts().live(), 0);
}

fn a_job_has_its_times_and_size<F: Fixture>(harness: &Harness<F>) {
    let due = chrono::DateTime::parse_from_rfc3339("2001-02-03T04:05:06.123456+02:00").unwrap();
    let wanted = chrono::NaiveDate::from_ymd_opt(2002, 3, 4).unwrap().and_hms_opt(5, 6, 7).unwrap();
    let options = PutOptions::new().schedule_at(due).expected_at(wanted).priority(-7);
    let id = harness.put_with("payload", &options);
    let job = harness.get().unwrap();
    assert_eq!((job.id, job.priority, job.size(), job.attempt), (id, -7, 9, 1));
    assert_eq!(job.schedule_at, Some(due.to_utc()));
    assert_eq!(job.expected_at, Some(wanted.and_utc()), "a naive datetime is UTC");
    assert_eq!(job.queue.as_str(), "apples");
    for shown in [format!("{job}"), format!("{job:?}")] {
        assert!(shown.contains(&id.to_string()) && !shown.contains("payload\""), "{shown}");
    }
}

fn a_large_batch_is_put_completely<F: Fixture>(harness: &Harness<F>) {
    let data: Vec<_> = (0..5_000).map(|n| json!({ "n": n })).collect();
    assert_eq!(harness.queue().put_many(&data).unwrap().len(), 5_000);
    let got: Vec<_> = harness.get_many(10_000).into_iter().map(|job| job.data).collect();
    assert_eq!(got, data);
}
