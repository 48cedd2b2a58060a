//! Asynchronous puts and handlers.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use diesel::ExpressionMethods;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use pq_diesel::StopMode;
use pq_diesel::schema::queue;
use pq_diesel_async::{Pq, Queue, Worker};
use serde_json::value::RawValue;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::memory::{self, Sample};
use super::wake;
use super::working::{Kind, figure};
use super::{Plan, Scenario};
use crate::{Bench, Figure, PAYLOAD, Target, median, memory_now, peak_memory, percentile};

/// Asynchronous puts and handlers, beside diesel-async's own statements and the blocking worker.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "async",
    about: "asynchronous puts beside diesel-async's own INSERT, and asynchronous handlers beside blocking ones",
    run,
};

const QUEUE: &str = "async";
const PRODUCERS: usize = 1_000;
/// The number of connections of producers that have one each.
const CONNECTIONS: usize = 64;
const NAP: Duration = Duration::from_millis(50);
const NAPPERS: usize = 1_000;

fn run(bench: &Bench, plan: &Plan) -> Result<Vec<Figure>> {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let _entered = runtime.enter();
    let pq = Pq::builder().url(bench.url()).pool_size(32).build()?;
    let rounds = 0..plan.rounds;
    let mut figures = vec![
        Figure {
            beside: Some(
                "diesel-async, BEGIN, its own INSERT of the same row, prepared, and COMMIT".to_owned(),
            ),
            target: Some(Target::RatioAtLeast(0.95)),
            ..figure(SCENARIO.name, "put in the caller's transaction", "jobs/s", [])
        },
        Figure {
            beside: Some(format!("the same puts on {CONNECTIONS} connections of their own")),
            target: Some(Target::RatioAtLeast(4.0)),
            ..figure(SCENARIO.name, "put by 1,000 tasks through one handle", "jobs/s", [])
        },
        Figure {
            beside: Some("blocking leased handlers, 1 thread".to_owned()),
            target: Some(Target::RatioAtLeast(0.8)),
            ..figure(SCENARIO.name, "drain of asynchronous handlers that do nothing", "jobs/s", [])
        },
        Figure {
            beside: Some("blocking leased handlers, 2 threads".to_owned()),
            ..figure(SCENARIO.name, "drain of asynchronous handlers that do nothing", "jobs/s", [])
        },
        figure(SCENARIO.name, "1,000 concurrent handlers that sleep 50 ms", "jobs/s", []),
        Figure {
            target: Some(Target::AtMost(60.0)),
            ..figure(SCENARIO.name, "peak memory of a process with 1,000 handlers that sleep", "MB", [])
        },
        Figure {
            beside: Some("a blocking worker".to_owned()),
            target: Some(Target::RatioAtMost(1.3)),
            ..figure(SCENARIO.name, "pickup on an idle worker, p50", "ms", [])
        },
    ];
    for _ in rounds {
        let jobs = plan.jobs(200_000);
        let time = plan.time(2.0);
        let measured = [
            interleaved(
                || put_in_transactions(bench, &runtime, &pq, time / 2),
                || insert_in_transactions(bench, &runtime, time / 2),
            )?,
            (
                put_by_tasks(bench, &runtime, &pq, time)?,
                Some(put_on_connections(bench, &runtime, &pq, time)?),
            ),
            (drain(bench, &runtime, &pq, jobs)?, Some(blocking_drain(bench, 1, jobs)?)),
            (drain(bench, &runtime, &pq, jobs)?, Some(blocking_drain(bench, 2, jobs)?)),
        ];
        for (figure, (ours, baseline)) in figures.iter_mut().zip(measured) {
            figure.ours.push(ours);
            figure.baseline.extend(baseline);
        }
        let (rate, memory) = naps(bench, plan.jobs(100_000))?;
        figures[4].ours.push(rate);
        figures[5].ours.push(memory);
        let times = ((500.0 * plan.scale) as usize).max(50);
        figures[6].ours.push(percentile(&pickups(bench, &runtime, &pq, times)?, 50.0));
        figures[6]
            .baseline
            .push(percentile(&wake::pickups(pq.blocking(), &bench.pq, Kind::Leased, times)?, 50.0));
    }
    ensure!(median(&figures[4].ours) > 0.0, "no job was done");
    Ok(figures)
}

fn payload() -> Result<Box<RawValue>> {
    Ok(RawValue::from_string(PAYLOAD.to_owned())?)
}

fn queue_of(pq: &Pq) -> Result<Queue<Box<RawValue>>> {
    Ok(pq.queue(QUEUE)?)
}

/// Returns the rate at which one connection puts a job in each of its transactions.
fn put_in_transactions(bench: &Bench, runtime: &Runtime, pq: &Pq, time: Duration) -> Result<f64> {
    bench.refill(&bench.queue(QUEUE)?, 0)?;
    let (queue, payload) = (queue_of(pq)?, payload()?);
    runtime.block_on(async {
        let mut conn = AsyncPgConnection::establish(bench.url()).await?;
        let (begun, mut jobs) = (Instant::now(), 0);
        while begun.elapsed() < time {
            conn.transaction(async |conn| queue.on(conn).put(&payload).await).await?;
            jobs += 1;
        }
        Ok(f64::from(jobs) / begun.elapsed().as_secs_f64())
    })
}

/// Measures both twice, in an order in which a disk that becomes slower costs both the same.
fn interleaved(
    ours: impl Fn() -> Result<f64>,
    baseline: impl Fn() -> Result<f64>,
) -> Result<(f64, Option<f64>)> {
    let (first, second) = (ours()?, baseline()?);
    let (third, fourth) = (baseline()?, ours()?);
    Ok(((first + fourth) / 2.0, Some((second + third) / 2.0)))
}

/// Returns the rate at which one connection inserts the row of a job by diesel-async.
fn insert_in_transactions(bench: &Bench, runtime: &Runtime, time: Duration) -> Result<f64> {
    bench.refill(&bench.queue(QUEUE)?, 0)?;
    let payload: serde_json::Value = serde_json::from_str(PAYLOAD)?;
    runtime.block_on(async {
        let mut conn = AsyncPgConnection::establish(bench.url()).await?;
        let (begun, mut jobs) = (Instant::now(), 0);
        while begun.elapsed() < time {
            conn.transaction::<_, diesel::result::Error, _>(async |conn| {
                diesel::insert_into(queue::table)
                    .values((queue::q_name.eq(QUEUE), queue::data.eq(&payload)))
                    .returning(queue::id)
                    .get_result::<i64>(conn)
                    .await
            })
            .await?;
            jobs += 1;
        }
        Ok(f64::from(jobs) / begun.elapsed().as_secs_f64())
    })
}

/// Returns the rate at which tasks put one job after the other.
async fn put_until<F: Future<Output = Result<()>> + Send + 'static>(
    tasks: usize,
    time: Duration,
    mut task: impl FnMut(Instant, Arc<AtomicU64>) -> F,
) -> Result<f64> {
    let (begun, jobs) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let mut running = JoinSet::new();
    for _ in 0..tasks {
        running.spawn(task(begun + time, Arc::clone(&jobs)));
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    Ok(jobs.as_ref().load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64())
}

fn put_by_tasks(bench: &Bench, runtime: &Runtime, pq: &Pq, time: Duration) -> Result<f64> {
    bench.refill(&bench.queue(QUEUE)?, 0)?;
    let (queue, payload) = (queue_of(pq)?, payload()?);
    runtime.block_on(put_until(PRODUCERS, time, |until, jobs| {
        let (queue, payload) = (queue.clone(), payload.clone());
        async move {
            while Instant::now() < until {
                queue.put(&payload).await?;
                jobs.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        }
    }))
}

fn put_on_connections(bench: &Bench, runtime: &Runtime, pq: &Pq, time: Duration) -> Result<f64> {
    bench.refill(&bench.queue(QUEUE)?, 0)?;
    let (queue, payload) = (queue_of(pq)?, payload()?);
    let mut connections = runtime.block_on(async {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(AsyncPgConnection::establish(bench.url()).await?);
        }
        Ok::<_, anyhow::Error>(connections)
    })?;
    runtime.block_on(put_until(CONNECTIONS, time, |until, jobs| {
        let (queue, payload, conn) = (queue.clone(), payload.clone(), connections.pop());
        async move {
            let Some(mut conn) = conn else { return Ok(()) };
            while Instant::now() < until {
                queue.on(&mut conn).put(&payload).await?;
                jobs.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        }
    }))
}

/// Returns the rate at which asynchronous handlers that do nothing empty the queue.
fn drain(bench: &Bench, runtime: &Runtime, pq: &Pq, jobs: usize) -> Result<f64> {
    bench.refill(&bench.queue(QUEUE)?, jobs)?;
    let handler = queue_of(pq)?.leased_async(|_context, _job| async { Ok::<_, Infallible>(()) });
    let begun = Instant::now();
    let report = runtime.block_on(Worker::new(pq).serve(handler).concurrency(1_000).run_jobs(jobs as u64))?;
    ensure!(report.done == jobs as u64, "{report:?}");
    Ok(jobs as f64 / begun.elapsed().as_secs_f64())
}

fn blocking_drain(bench: &Bench, threads: usize, jobs: usize) -> Result<f64> {
    bench.refill(&bench.queue(QUEUE)?, jobs)?;
    let handler = Kind::Leased.idle(&bench.queue(QUEUE)?);
    let begun = Instant::now();
    let report = pq_diesel::Worker::new(&bench.pq).serve(handler).threads(threads).run_jobs(jobs as u64)?;
    ensure!(report.done == jobs as u64, "{report:?}");
    Ok(jobs as f64 / begun.elapsed().as_secs_f64())
}

/// Returns the rate of handlers that sleep in a process of their own, and the peak of its memory.
fn naps(bench: &Bench, jobs: usize) -> Result<(f64, f64)> {
    bench.fill_by_sql(QUEUE, jobs)?;
    let samples = memory::child(bench, &["--naps", "--jobs", &jobs.to_string()])?;
    let last = samples.last().context("the measured process reported no sample")?;
    Ok((jobs as f64 / last.at, last.peak))
}

/// Runs handlers that sleep until that many jobs are done, and reports this process's memory at the end.
///
/// # Errors
///
/// Database errors, errors of `report_sample`, and if the memory cannot be read.
pub fn nap(url: &str, jobs: u64, report_sample: impl FnOnce(&Sample) -> Result<()>) -> Result<()> {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let _entered = runtime.enter();
    let pq = Pq::builder().url(url).pool_size(32).build()?;
    let handler = queue_of(&pq)?.leased_async(|_context, _job| async {
        tokio::time::sleep(NAP).await;
        Ok::<_, Infallible>(())
    });
    let begun = Instant::now();
    let report = runtime.block_on(Worker::new(&pq).serve(handler).concurrency(NAPPERS).run_jobs(jobs))?;
    let at = begun.elapsed().as_secs_f64();
    ensure!(report.done == jobs, "{report:?}");
    report_sample(&Sample { at, now: memory_now()?, peak: peak_memory()? })
}

/// Returns the milliseconds from each put to the start of its handler.
fn pickups(bench: &Bench, runtime: &Runtime, pq: &Pq, times: usize) -> Result<Vec<f64>> {
    bench.refill(&bench.queue(QUEUE)?, 0)?;
    let (queue, payload) = (bench.queue(QUEUE)?, payload()?);
    let (begun, begins) = channel();
    let handler = queue_of(pq)?.leased_async(move |_context, _job| {
        let begun = begun.clone();
        async move {
            // The receiver is gone when the run has ended.
            let _ = begun.send(Instant::now());
            Ok::<_, Infallible>(())
        }
    });
    let worker = Worker::new(pq).serve(handler);
    let control = worker.control();
    let running = runtime.spawn(worker.run());
    let latencies: Result<Vec<f64>> = (0..times)
        .map(|_| {
            std::thread::sleep(wake::PAUSE);
            let put = Instant::now();
            queue.put(&payload)?;
            let began = begins.recv_timeout(wake::TIMEOUT)?;
            Ok(began.saturating_duration_since(put).as_secs_f64() * 1_000.0)
        })
        .collect();
    control.stop(StopMode::Drain);
    runtime.block_on(running)??;
    latencies
}
