//! Many writers that notify a listener, with slow log syncs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use pq_diesel::{Error, Notify, Pq, Queue, StopMode, Wait, Worker};
use serde_json::value::RawValue;

use super::working::{Kind, figure};
use super::{Plan, Scenario};
use crate::{Bench, Figure, PAYLOAD, Target, median, percentile, pool};

/// Sixteen writers and one worker, and eight writers with a handle each.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "notify",
    about: "writers that notify, beside those that do not: sixteen with log syncs of 2 ms, and eight with a handle each",
    run,
};

const QUEUE: &str = "notify";
const WRITERS: usize = 16;

/// The number of writers with a handle of their own, as the processes of a web application have.
const HANDLES: usize = 8;

/// Minimum duration of a log sync.
const MIN_SYNC: Duration = Duration::from_millis(2);

/// How the writers put.
#[derive(Clone, Copy, PartialEq)]
enum Writers {
    /// One statement each, through one handle.
    SharedHandle,
    /// On a connection and in a transaction of their own, which the handle commits.
    OwnConnections,
}

/// Puts per second, and the milliseconds from the start of each put to the start of its handler.
#[derive(Default)]
struct Measurement {
    rates: Vec<f64>,
    pickups: Vec<Vec<f64>>,
}

fn run(bench: &Bench, plan: &Plan) -> Result<Vec<Figure>> {
    let alone = commit_times(bench)?;
    // `commit_delay` makes the server wait before a log sync while it holds the lock of the sync. Transactions
    // that commit during the delay are synced with this one, which a slow disk would not allow.
    let delay = if median(&alone) < MIN_SYNC.as_secs_f64() * 1e3 {
        MIN_SYNC.as_micros().to_string()
    } else {
        "0".to_owned()
    };
    let slow = bench.another(&[("commit_delay", &delay), ("commit_siblings", "0")])?;
    let log = format!("commit_delay {delay} µs");
    let delayed = commit_times(&slow)?;
    let mut figures = vec![Figure {
        ours: vec![median(&delayed)],
        beside: Some("a server without the delay".to_owned()),
        baseline: vec![median(&alone)],
        percentiles: [50.0, 90.0, 99.0].map(|percent| (percent, percentile(&delayed, percent))).into(),
        ..figure(SCENARIO.name, "a commit while nobody else commits", "ms", [("log", log.clone())])
    }];
    let shared = ("through one handle", Writers::SharedHandle);
    let separate = ("on connections of their own, in their transactions", Writers::OwnConnections);
    let in_commit = ("in the commit", Notify::InCommit);
    let after = ("after the commit", Notify::AfterCommit);
    for ((label, writer_kind), (mode, notify)) in
        [(shared, in_commit), (shared, after), (separate, in_commit), (separate, after)]
    {
        let (mut notifying, mut silent) = (Measurement::default(), Measurement::default());
        for _ in 0..plan.rounds {
            writers(&slow, plan, writer_kind, Notify::Off, &mut silent)?;
            writers(&slow, plan, writer_kind, notify, &mut notifying)?;
        }
        let parameters =
            || [("writers", format!("{WRITERS}, {label}")), ("told", mode.to_owned()), ("log", log.clone())];
        figures.push(Figure {
            ours: notifying.rates,
            beside: Some("the same writers with no notification at all".to_owned()),
            baseline: silent.rates,
            target: Some(Target::RatioAtLeast(0.95)),
            ..figure(SCENARIO.name, "puts while a worker waits", "puts/s", parameters())
        });
        let all = notifying.pickups.concat();
        figures.push(Figure {
            ours: notifying.pickups.iter().map(|times| percentile(times, 99.0)).collect(),
            target: Some(Target::AtMost(10.0)),
            percentiles: [50.0, 90.0, 99.0, 99.9].map(|percent| (percent, percentile(&all, percent))).into(),
            ..figure(SCENARIO.name, "from a put's beginning to its handler's start, p99", "ms", parameters())
        });
    }
    let logs = [(bench, "as it is".to_owned()), (&slow, log)];
    for ((bench, log), listens) in logs.iter().flat_map(|log| [(log, false), (log, true)]) {
        figures.push(separate_handles(bench, plan, log, listens)?);
    }
    Ok(figures)
}

/// Measures writers that share nothing, each with a handle, while nobody waits for their jobs or one more handle does.
fn separate_handles(bench: &Bench, plan: &Plan, log: &str, listens: bool) -> Result<Figure> {
    let (mut notifying, mut silent) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        silent.push(writing_handles(bench, plan.time(10.0), Notify::Off, listens)?);
        notifying.push(writing_handles(bench, plan.time(10.0), Notify::InCommit, listens)?);
    }
    let listener = if listens { "one handle listens" } else { "nobody listens" };
    let parameters = [("handles", format!("{HANDLES}, {listener}")), ("log", log.to_owned())];
    Ok(Figure {
        ours: notifying,
        beside: Some("the same writers with no notification at all".to_owned()),
        baseline: silent,
        target: Some(Target::RatioAtLeast(0.9)),
        ..figure(SCENARIO.name, "puts of writers with a handle each", "puts/s", parameters)
    })
}

/// Returns the rate of the writers' puts. The queue is paused, so a handle that waits for its jobs takes none.
fn writing_handles(bench: &Bench, time: Duration, notify: Notify, listens: bool) -> Result<f64> {
    let waiting = bench.queue(QUEUE)?;
    bench.refill(&waiting, 0)?;
    waiting.pause()?;
    let queues = (0..HANDLES).map(|_| {
        Pq::builder().url(bench.url()).pool_size(2).notify(notify).connect()?.queue::<Box<RawValue>>(QUEUE)
    });
    let queues: Vec<_> = queues.collect::<Result<_, _>>()?;
    let (threads, payload) = (pool::threads(HANDLES)?, RawValue::from_string(PAYLOAD.to_owned())?);
    let rate = std::thread::scope(|scope| {
        let waiter = listens.then(|| scope.spawn(|| waiting.get(Wait::For(time))));
        let rate = pool::run_for_duration(&threads, time, |thread| {
            queues[thread].put(&payload)?;
            Ok(())
        });
        if let Some(waiter) = waiter {
            waiter.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
        }
        rate
    });
    waiting.resume()?;
    Ok(rate?.rate)
}

/// Returns the milliseconds of each of a hundred commits without concurrent commits.
fn commit_times(bench: &Bench) -> Result<Vec<f64>> {
    let mut conn = bench.connect()?;
    conn.batch_execute("CREATE TABLE IF NOT EXISTS bench_commits (n integer)")?;
    let times = (0..100).map(|_| {
        let begun = Instant::now();
        conn.batch_execute("INSERT INTO bench_commits VALUES (1)")?;
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    });
    let times = times.collect::<Result<_>>()?;
    conn.batch_execute("DROP TABLE bench_commits")?;
    Ok(times)
}

/// Runs the writers at full speed, with one worker of another handle that waits for their jobs.
fn writers(
    bench: &Bench,
    plan: &Plan,
    writers: Writers,
    notify: Notify,
    measurement: &mut Measurement,
) -> Result<()> {
    bench.refill(&bench.queue(QUEUE)?, 0)?;
    let epoch = Instant::now();
    let pickups = Arc::new(Mutex::new(Vec::new()));
    let recorded = Arc::clone(&pickups);
    let handler = Kind::Transactional.handler(&bench.queue(QUEUE)?, move |data| {
        // The payload is the start time of its put.
        let begun: f64 = data.get().parse().unwrap_or_default();
        let times: &Mutex<Vec<f64>> = &recorded;
        let latency = epoch.elapsed().as_secs_f64() - begun;
        times.lock().unwrap_or_else(PoisonError::into_inner).push(latency * 1e3);
    });
    let worker = Worker::new(&bench.pq).serve(handler);
    let control = worker.control();
    let pq = Pq::builder().url(bench.url()).pool_size(WRITERS as u32 * 2).notify(notify).connect()?;
    let queue: Queue<Box<RawValue>> = pq.queue(QUEUE)?;
    let payload =
        || RawValue::from_string(epoch.elapsed().as_secs_f64().to_string()).context("the number is not JSON");
    let (threads, time) = (pool::threads(WRITERS)?, plan.time(5.0));
    std::thread::scope(|scope| {
        let working = scope.spawn(move || worker.run());
        let rate = match writers {
            Writers::SharedHandle => pool::run_for_duration(&threads, time, |_| {
                queue.put(&payload()?)?;
                Ok(())
            }),
            Writers::OwnConnections => writer_connections(bench, notify).and_then(|connections| {
                pool::run_for_duration(&threads, time, |thread| {
                    let mut conn = connections[thread].lock().unwrap_or_else(PoisonError::into_inner);
                    let payload = payload()?;
                    let put = |conn: &mut PgConnection| queue.on(conn).put(&payload).map(drop);
                    queue.on(&mut conn).transaction(put).map_err(|e: Error| e.into())
                })
            }),
        };
        control.stop(StopMode::Drain);
        working.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
        measurement.rates.push(rate?.rate);
        let times = std::mem::take(&mut *pickups.lock().unwrap_or_else(PoisonError::into_inner));
        measurement.pickups.push(times);
        Ok(())
    })
}

fn writer_connections(bench: &Bench, notify: Notify) -> Result<Vec<Mutex<PgConnection>>> {
    (0..WRITERS)
        .map(|_| {
            let mut conn = bench.connect()?;
            if notify == Notify::Off {
                conn.batch_execute("SET pq.notify = 'off'")?;
            }
            Ok(Mutex::new(conn))
        })
        .collect()
}
