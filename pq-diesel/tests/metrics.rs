//! Measuring a table at a bounded cost, and merging the rows of counters.

mod common;

use std::time::Duration;

use common::{Outcome, database};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use pq_core::store::{Connect, Counting};
use pq_diesel::admin::{Counters, TaskCounters};
use pq_diesel::metrics::QueueGauges;
use pq_diesel::{Filter, Operation, Outcome as Ended, Pq, PutOptions, QueueName, Retention, Wait, Worker};
use pq_testing::Database;
use serde_json::{Value, json};

fn handle(database: &Database) -> Result<Pq, pq_diesel::Error> {
    Pq::builder().url(database.url()).pool_size(4).build()
}

fn gauges(pq: &Pq, queue: &str) -> Result<QueueGauges, Box<dyn std::error::Error>> {
    let queues = pq.metrics(100)?.queues.ok_or("the jobs were not counted")?;
    Ok(queues.into_iter().find(|one| one.queue == queue).ok_or("the queue is missing")?)
}

#[test]
fn the_jobs_of_a_queue_are_counted_as_in_an_overview() -> Outcome {
    let database = database()?;
    let pq = handle(&database)?;
    let queue = pq.queue::<Value>("apples")?;
    for _ in 0..4 {
        queue.put(&json!(1))?;
    }
    let jobs = queue.lease(3, Duration::from_secs(60), Wait::No)?;
    queue.settle(&jobs[0], Ended::dead("broken"))?;
    queue.settle(&jobs[1], Ended::Keep { result: None })?;
    for _ in 0..3 {
        queue.put_with(&json!(2), &PutOptions::new().serialization_key("key"))?;
    }
    let other = PutOptions::new().serialization_key("other").schedule_at(Duration::ZERO);
    queue.put_with(&json!(3), &other)?;
    queue.put_with(&json!(4), &PutOptions::new().schedule_at(Duration::from_secs(3_600)))?;
    let cancelled = queue.put(&json!(5))?;
    queue.cancel(cancelled.id)?;
    let (found, counts) = (gauges(&pq, "apples")?, queue.counts()?);
    assert_eq!(
        [found.ready, found.blocked, found.scheduled, found.running, found.dead, found.cancelled, found.done],
        [
            counts.ready,
            counts.blocked,
            counts.scheduled,
            counts.running,
            counts.dead,
            counts.cancelled,
            counts.done
        ]
    );
    assert_eq!([found.ready, found.blocked, found.running], [3, 2, 1]);
    assert!(!found.is_estimated && found.oldest.is_some());
    assert_eq!(pq.metrics(100)?.ids, Some(10));
    Ok(())
}

#[test]
fn jobs_behind_one_that_keeps_its_key_are_blocked() -> Outcome {
    let database = database()?;
    let pq = handle(&database)?;
    let queue = pq.queue::<Value>("apples")?;
    let strict = PutOptions::new().serialization_key("key").strict_order();
    for n in 0..3 {
        queue.put_with(&json!(n), &strict)?;
    }
    let due = PutOptions::new().serialization_key("key").strict_order().schedule_at(Duration::ZERO);
    queue.put_with(&json!(3), &due)?;
    queue.put_with(&json!(4), &PutOptions::new().serialization_key("free"))?;
    let first = queue.lease(1, Duration::from_secs(60), Wait::No)?;
    queue.settle(&first[0], Ended::retry(Duration::from_secs(3_600), "broken"))?;
    let (found, counts) = (gauges(&pq, "apples")?, queue.counts()?);
    assert_eq!([counts.ready, counts.blocked, counts.scheduled], [1, 3, 1]);
    assert_eq!([found.ready, found.blocked, found.scheduled], [1, 3, 1]);
    // Not more is read if very many jobs keep their keys.
    database.connect()?.batch_execute(
        "INSERT INTO pq.queue (q_name, data, serial_key, schedule_at, attempt, annotations)
             SELECT 'many', '1', 'key ' || n, now() + interval '1 hour', 1, '{\"strict\": true}'
             FROM generate_series(1, 30000) AS n;
         INSERT INTO pq.queue (q_name, data, serial_key) SELECT 'many', '1', 'key ' || n FROM generate_series(1, 50) AS n;
         ANALYZE pq.queue",
    )?;
    let pq = handle(&database)?;
    let many = gauges(&pq, "many")?;
    assert_eq!([many.ready, many.blocked], [0, 50]);
    // A session reports what it has read when it ends, at the latest.
    drop(pq);
    let read = "SELECT coalesce(sum(idx_tup_read), 0)::bigint FROM pg_stat_user_indexes WHERE indexrelname = 'queue_strict'";
    let mut conn = database.connect()?;
    common::until(&mut conn, read)?;
    let read: i64 = diesel::dsl::sql::<BigInt>(read).get_result(&mut conn)?;
    assert!(read < 1_000, "{read} entries of kept keys were read");
    Ok(())
}

#[test]
fn a_queue_that_is_in_use_is_counted_although_it_is_empty() -> Outcome {
    let database = database()?;
    let pq = handle(&database)?;
    pq.queue::<Value>("paused")?.pause()?;
    let worked = pq.queue::<Value>("worked")?;
    worked.put(&json!(1))?;
    let handler = worked.leased(|_, _| Ok::<_, std::fmt::Error>(()));
    Worker::new(&pq).serve(handler).run_until_empty()?;
    let metrics = pq.metrics(100)?;
    let queues = metrics.queues.ok_or("the jobs were not counted")?;
    let names: Vec<&str> = queues.iter().map(|one| one.queue.as_str()).collect();
    assert_eq!(names, ["paused", "worked"]);
    assert!(queues[0].is_paused && !queues[1].is_paused);
    assert_eq!((queues[1].ready, metrics.counters.len(), metrics.workers_live), (0, 1, 0));
    assert_eq!(pq.metrics(1)?.queues.map(|queues| queues.len()), Some(1));
    Ok(())
}

#[test]
fn many_jobs_are_estimated() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    conn.batch_execute(
        "INSERT INTO pq.queue (q_name, data) SELECT 'many', '1' FROM generate_series(1, 30000);
         INSERT INTO pq.queue (q_name, data, schedule_at)
             SELECT 'many', '1', now() + interval '1 hour' FROM generate_series(1, 20000);
         INSERT INTO pq.queue (q_name, data) SELECT 'few', '1' FROM generate_series(1, 7);
         ANALYZE pq.queue",
    )?;
    let pq = handle(&database)?;
    let many = gauges(&pq, "many")?;
    assert!(many.is_estimated);
    assert!((25_000..35_000).contains(&many.ready), "{many:?}");
    assert!((15_000..25_000).contains(&many.scheduled), "{many:?}");
    let few = gauges(&pq, "few")?;
    assert_eq!((few.ready, few.is_estimated), (7, false));
    Ok(())
}

/// The planner must not read the archive of one queue for each of the others.
#[test]
fn each_queue_is_counted_by_its_own_entries() -> Outcome {
    let database = database()?;
    let mut conn = database.connect()?;
    conn.batch_execute(
        "INSERT INTO pq.queue_archive (id, q_name, data, enqueued_at, priority, attempt, outcome)
             SELECT n, 'many', '1', now(), 0, 1, 'dead' FROM generate_series(1, 30000) AS n;
         INSERT INTO pq.queue (q_name, data) SELECT 'few ' || n, '1' FROM generate_series(1, 30) AS n;
         ANALYZE pq.queue, pq.queue_archive",
    )?;
    let pq = handle(&database)?;
    assert_eq!(gauges(&pq, "many")?.dead, 30_000);
    // A session reports what it has read when it ends, at the latest.
    drop(pq);
    let read = "SELECT coalesce(sum(idx_tup_read), 0)::bigint FROM pg_stat_user_indexes
        WHERE relname = 'queue_archive'";
    common::until(&mut conn, read)?;
    let read: i64 = diesel::dsl::sql::<BigInt>(read).get_result(&mut conn)?;
    assert!(read < 30_000, "{read} entries were read");
    Ok(())
}

#[test]
fn jobs_that_wait_for_others_for_a_time_and_for_signals_are_counted() -> Outcome {
    let database = database()?;
    let pq = handle(&database)?;
    let queue = pq.queue::<u32>("apples")?;
    let first = queue.put(&1)?.id;
    queue.put_with(&2, &PutOptions::new().after([first]))?;
    queue.put_with(&3, &PutOptions::new().schedule_at(Duration::from_secs(60)))?;
    let found = gauges(&pq, "apples")?;
    assert_eq!((found.follow_ups, found.scheduled), (1, 2));
    queue.cancel(first)?;
    for job in 0..3 {
        pq.queue::<u32>("steps")?.put(&job)?;
    }
    let handler = pq.queue::<u32>("steps")?.leased(|context, job| {
        let hour = Duration::from_secs(3_600);
        context.step("look", || Ok::<_, pq_diesel::Error>(()))?;
        match job.data {
            0 => context.wait_for_signal::<u32>("ripe", hour).map(drop),
            _ => context.sleep(hour),
        }
    });
    Worker::new(&pq).serve(handler).run_until_empty()?;
    let metrics = pq.metrics(100)?;
    assert_eq!((metrics.asleep, metrics.awaiting_signals), (2, 1));
    drop(pq);
    let mut conn = database.connect()?;
    // A session reports what it has written when it ends, at the latest.
    common::until(
        &mut conn,
        "SELECT (pg_stat_get_live_tuples('pq.queue_steps'::regclass) = 6)::int::bigint",
    )?;
    assert_eq!(handle(&database)?.metrics(100)?.steps, 6);
    Ok(())
}

/// A lock that is held for long must not hide everything else.
#[test]
fn jobs_that_cannot_be_counted_in_time_are_left_out() -> Outcome {
    let database = database()?;
    let pq = handle(&database)?;
    let mut conn = database.connect()?;
    conn.transaction::<(), Box<dyn std::error::Error>, _>(|conn| {
        conn.batch_execute("LOCK TABLE pq.queue_archive IN ACCESS EXCLUSIVE MODE")?;
        let metrics = pq.metrics(100)?;
        assert!(metrics.queues.is_none() && metrics.ids.is_some());
        Ok(())
    })?;
    assert!(pq.metrics(100)?.queues.is_some());
    Ok(())
}

#[test]
fn maintenance_merges_the_rows_of_counters() -> Outcome {
    let database = database()?;
    let pq = handle(&database)?;
    let mut counters = Counters::default();
    counters.done = 1;
    let one = TaskCounters { queue: QueueName::new("apples")?, task: "eat".to_owned(), counters };
    let store = pq.store();
    store.with_connection(|conn| (0..150).try_for_each(|_| store.count(conn, std::slice::from_ref(&one))))?;
    let mut conn = database.connect()?;
    let mut rows =
        || diesel::dsl::sql::<BigInt>("SELECT count(*) FROM pq.queue_counters").get_result::<i64>(&mut conn);
    assert_eq!(rows()?, 150);
    pq.maintain(&Retention::default())?;
    assert_eq!(rows()?, 1);
    assert_eq!(pq.counters()?[0].counters.done, 150);
    Ok(())
}

/// A payload may name any task, and the store counts jobs that it ends without a worker.
#[test]
fn the_counters_of_many_tasks_are_merged() -> Outcome {
    let database = database()?;
    let pq = handle(&database)?;
    let mut conn = database.connect()?;
    conn.batch_execute(
        "INSERT INTO pq.queue (q_name, data)
             SELECT 'apples', json_build_object('function', 'task ' || n) FROM generate_series(1, 1000) AS n",
    )?;
    let cancelled = pq.operate(&Operation::Cancel, &Filter::queue("apples"), |_| ())?;
    assert_eq!(cancelled.changed, 1_000);
    pq.maintain(&Retention::default())?;
    let rows: i64 =
        diesel::dsl::sql::<BigInt>("SELECT count(*) FROM pq.queue_counters").get_result(&mut conn)?;
    assert_eq!(rows, 101, "100 tasks, and all others");
    assert_eq!(pq.counters()?.iter().map(|one| one.counters.cancelled).sum::<u64>(), 1_000);
    Ok(())
}

#[test]
fn the_state_of_the_handle_is_known_without_the_database() -> Outcome {
    let database = database()?;
    let pq = handle(&database)?;
    let listener = pq.listener_gauges().ok_or("no listener")?;
    assert!(!listener.is_started && !listener.is_connected);
    assert_eq!(pq.pool_gauges().map(|pool| (pool.size, pool.open)), Some((4, 0)));
    pq.queue::<Value>("apples")?.get(Wait::For(Duration::from_millis(10)))?;
    let started = std::time::Instant::now();
    while !pq.listener_gauges().is_some_and(|listener| listener.is_connected) {
        assert!(started.elapsed() < common::PATIENCE, "the listener is not connected");
        std::thread::sleep(Duration::from_millis(2));
    }
    let pool = pq.pool_gauges().ok_or("no pool")?;
    assert!(pool.open >= 1 && pool.idle == pool.open && pool.waiting == 0, "{pool:?}");
    assert!(Pq::detached().pool_gauges().is_none() && Pq::detached().listener_gauges().is_none());
    Ok(())
}
