//! The latency from a put to an idle worker.

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use pq_diesel::{Pq, StopMode, Worker};
use serde_json::value::RawValue;

use super::working::{Kind, figure};
use super::{Plan, Scenario};
use crate::{Bench, Figure, Listening, PAYLOAD, Target, percentile};

/// Time from the start of a put to the start of its handler.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "wake",
    about: "latency from a put to the handler's start on an idle worker, beside plain LISTEN and NOTIFY",
    run,
};

const QUEUE: &str = "wake";
const BASELINE: &str = "wake-baseline";
const PERCENTILES: [f64; 4] = [50.0, 90.0, 99.0, 99.9];

/// Pause before each put, so that the worker has polled and waits again.
pub(super) const PAUSE: Duration = Duration::from_millis(5);
pub(super) const TIMEOUT: Duration = Duration::from_secs(120);

/// The handle that puts the jobs.
const PRODUCERS: [&str; 2] = ["another handle", "the worker's own handle"];

fn run(bench: &Bench, plan: &Plan) -> Result<Vec<Figure>> {
    let times = ((1_000.0 * plan.scale) as usize).max(50);
    let another = Pq::connect(bench.url())?;
    let producers = [&another, &bench.pq];
    let cases = Kind::BOTH.into_iter().flat_map(|kind| {
        PRODUCERS.into_iter().zip(producers).map(move |(name, producer)| (kind, name, producer))
    });
    let mut cases: Vec<_> = cases.map(|case| (case, [const { Vec::new() }; 3])).collect();
    for _ in 0..plan.rounds {
        bench.refill(&bench.queue(QUEUE)?, 0)?;
        // The machine's wake-up latency changes within seconds, so compared figures are measured one after the
        // other.
        for ((kind, _, producer), [ours, notified, deleted]) in &mut cases {
            ours.push(pickups(&bench.pq, producer, *kind, times)?);
            notified.push(baseline(bench, times, |_| Ok(()))?);
            deleted.push(baseline(bench, times, |conn| Ok(conn.batch_execute("EXECUTE take")?))?);
        }
    }
    let notified_label = "the same INSERT on one connection, its NOTIFY by another that sleeps in poll(2)";
    let deleted_label = "the same INSERT and NOTIFY, and a DELETE of the job by the notified session";
    let mut figures = Vec::new();
    for ((kind, producer, _), [ours, notified, deleted]) in &cases {
        let of = |percent: f64, beside: &str, baseline: &[Vec<f64>], target: Option<Target>| Figure {
            ours: ours.iter().map(|times| percentile(times, percent)).collect(),
            beside: Some(beside.to_owned()),
            baseline: baseline.iter().map(|times| percentile(times, percent)).collect(),
            target,
            percentiles: percentiles(ours),
            ..figure(
                SCENARIO.name,
                &format!("pickup on an idle worker, p{percent}"),
                "ms",
                [("handlers", kind.name().to_owned()), ("put by", (*producer).to_owned())],
            )
        };
        figures.extend([
            of(50.0, notified_label, notified, Some(Target::RatioAtMost(1.2))),
            of(50.0, deleted_label, deleted, None),
            of(99.0, notified_label, notified, Some(Target::AtMost(3.0))),
            of(99.9, notified_label, notified, None),
        ]);
    }
    Ok(figures)
}

/// Returns the milliseconds from each put to the start of its handler.
///
/// Puts one job at a time, to a worker of one thread that is otherwise idle.
pub(super) fn pickups(pq: &Pq, producer: &Pq, kind: Kind, times: usize) -> Result<Vec<f64>> {
    let (queue, puts) = (pq.queue::<Box<RawValue>>(QUEUE)?, producer.queue::<Box<RawValue>>(QUEUE)?);
    let payload = RawValue::from_string(PAYLOAD.to_owned())?;
    let (begun, begins) = channel();
    let handler = kind.handler(&queue, move |_| {
        // The receiver is gone when the run has ended.
        let _ = begun.send(Instant::now());
    });
    let worker = Worker::new(pq).serve(handler);
    let control = worker.control();
    std::thread::scope(|scope| {
        let working = scope.spawn(move || worker.run());
        let latencies = (0..times).map(|_| {
            std::thread::sleep(PAUSE);
            let put = Instant::now();
            puts.put(&payload)?;
            let began = begins.recv_timeout(TIMEOUT)?;
            Ok(began.saturating_duration_since(put).as_secs_f64() * 1_000.0)
        });
        let latencies = latencies.collect();
        control.stop(StopMode::Drain);
        working.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
        latencies
    })
}

/// Returns the percentiles of all rounds together.
fn percentiles(rounds: &[Vec<f64>]) -> Vec<(f64, f64)> {
    let all = rounds.concat();
    PERCENTILES.iter().map(|percent| (*percent, percentile(&all, *percent))).collect()
}

/// Returns the milliseconds from each INSERT until the notified connection has completed `then`.
fn baseline(
    bench: &Bench,
    times: usize,
    mut then: impl FnMut(&mut PgConnection) -> Result<()> + Send,
) -> Result<Vec<f64>> {
    let mut listening = Listening::on(bench, BASELINE)?;
    let mut writer = bench.connect()?;
    writer.batch_execute(&format!(
        "TRUNCATE pq.queue; PREPARE put AS INSERT INTO pq.queue (q_name, data) SELECT '{BASELINE}', '{PAYLOAD}'::json RETURNING id"
    ))?;
    // With at most one job in the table, the simplest DELETE is the fastest baseline.
    listening.conn().batch_execute(&format!(
        "PREPARE take AS DELETE FROM pq.queue WHERE ctid = ANY (ARRAY(SELECT ctid FROM pq.queue \
        WHERE q_name = '{BASELINE}' AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NULL \
        ORDER BY (-priority::bigint), coalesce(expected_at, 'infinity'::timestamptz), id \
        LIMIT 1 FOR UPDATE SKIP LOCKED)) RETURNING id, data"
    ))?;
    let (woken, wakes) = channel();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(move || -> Result<()> {
            for _ in 0..times {
                ensure!(listening.wait(TIMEOUT)?, "no notification came");
                then(listening.conn())?;
                woken.send(Instant::now())?;
            }
            Ok(())
        });
        let mut latencies = Vec::with_capacity(times);
        for _ in 0..times {
            std::thread::sleep(PAUSE);
            let begun = Instant::now();
            writer.batch_execute("EXECUTE put")?;
            // The channel closes if the waiting thread fails; joining it returns the error.
            let Ok(woken) = wakes.recv() else { break };
            latencies.push(woken.saturating_duration_since(begun).as_secs_f64() * 1_000.0);
        }
        waiter.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
        Ok(latencies)
    })
}
