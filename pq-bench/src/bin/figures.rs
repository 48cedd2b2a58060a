//! Prints what put, get and waiting cost beside the bare SQL, as medians of interleaved pairs.
//!
//! `cargo run --release -p pq-bench --bin figures`

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use comfy_table::Table;
use diesel::connection::{InstrumentationEvent, set_default_instrumentation};
use pq_bench::{Bench, PAYLOAD, copy_rate, median, percentile, pgbench, rate, wake_latencies};
use pq_diesel::Wait;
use serde_json::value::RawValue;

/// How many pairs each figure is the median of, and how long one side of a pair takes.
const PAIRS: usize = 5;
const TIME: Duration = Duration::from_secs(2);

/// Statements that the handle's connections have sent.
static SENT: AtomicU64 = AtomicU64::new(0);

fn main() -> Result<()> {
    // Before the first connection, for each one takes it when it is made.
    set_default_instrumentation(|| {
        Some(Box::new(|event: InstrumentationEvent<'_>| {
            if matches!(event, InstrumentationEvent::StartQuery { .. }) {
                SENT.fetch_add(1, Ordering::Relaxed);
            }
        }))
    })?;
    let bench = Bench::start()?;
    println!("measured on: {}\n", bench.origin());
    one_at_a_time(&bench)?;
    in_bulk(&bench)?;
    round_trips(&bench)?;
    waking(&bench)
}

fn one_at_a_time(bench: &Bench) -> Result<()> {
    let queue = bench.queue("one")?;
    let payload = RawValue::from_string(PAYLOAD.to_owned())?;
    let [(_, put), (_, take_one), _] = bench.pq.store().hot_statements();
    let bare_put = put.replace("$1", "'one'").replace("$2", &format!("'{PAYLOAD}'"));
    let bare_take = take_one.replace("$1", "'one'");
    let plain_take = "DELETE FROM pq.queue WHERE ctid = ANY (ARRAY(SELECT ctid FROM pq.queue \
        WHERE q_name = 'one' AND dequeued_at IS NULL AND schedule_at IS NULL \
        ORDER BY -priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id \
        LIMIT 1 FOR UPDATE SKIP LOCKED)) RETURNING id, data";

    let mut table = Table::new();
    table.set_header(["operation", "threads", "pq /s", "pgbench /s", "pq : pgbench", "plain DELETE /s"]);
    for threads in [1, 4, 16] {
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..PAIRS {
            bench.refill(&queue, 0)?;
            ours.push(rate(threads, TIME, || queue.put(&payload).map(drop))?);
            bench.refill(&queue, 0)?;
            bare.push(pgbench(bench.url(), &bare_put, threads, TIME)?);
        }
        table.add_row(row("put", threads, &ours, &bare, None));
    }
    for threads in [1, 4, 16] {
        let (mut ours, mut bare, mut plain) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..PAIRS {
            bench.refill(&queue, 60_000)?;
            ours.push(rate(threads, TIME, || queue.get(Wait::No).map(drop))?);
            ensure!(queue.counts()?.ready > 0, "the queue ran dry while it was measured");
            bench.refill(&queue, 60_000)?;
            bare.push(pgbench(bench.url(), &bare_take, threads, TIME)?);
            bench.refill(&queue, 60_000)?;
            plain.push(pgbench(bench.url(), plain_take, threads, TIME)?);
        }
        table.add_row(row("get", threads, &ours, &bare, Some(&plain)));
    }
    println!("{table}\n");
    Ok(())
}

fn row(what: &str, threads: usize, ours: &[f64], bare: &[f64], plain: Option<&[f64]>) -> [String; 6] {
    let ratios: Vec<f64> = ours.iter().zip(bare).map(|(ours, bare)| ours / bare).collect();
    [
        what.to_owned(),
        threads.to_string(),
        format!("{:.0}", median(ours)),
        format!("{:.0}", median(bare)),
        format!("{:.2}", median(&ratios)),
        plain.map_or(String::new(), |plain| format!("{:.0}", median(plain))),
    ]
}

fn in_bulk(bench: &Bench) -> Result<()> {
    const JOBS: usize = 100_000;
    let queue = bench.queue("copied")?;
    let payload = RawValue::from_string(PAYLOAD.to_owned())?;
    let (mut puts, mut copies, mut gets, mut ratios) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        bench.refill(&queue, 0)?;
        let begun = Instant::now();
        queue.put_many(std::iter::repeat_n(&payload, JOBS))?;
        let put = JOBS as f64 / begun.elapsed().as_secs_f64();
        let copy = copy_rate(&mut bench.connect()?, JOBS)?;
        bench.refill(&queue, JOBS)?;
        let begun = Instant::now();
        let mut got = 0;
        while got < JOBS {
            got += queue.get_many(500, Wait::No)?.len();
        }
        gets.push(JOBS as f64 / begun.elapsed().as_secs_f64());
        puts.push(put);
        copies.push(copy);
        ratios.push(put / copy);
    }
    println!(
        "put_many of {JOBS}: {:.0} jobs/s; COPY: {:.0} rows/s; ratio {:.2}",
        median(&puts),
        median(&copies),
        median(&ratios)
    );
    println!("get_many of 500 at a time: {:.0} jobs/s", median(&gets));
    Ok(())
}

fn round_trips(bench: &Bench) -> Result<()> {
    const CALLS: u64 = 1_000;
    let queue = bench.queue("trips")?;
    let payload = RawValue::from_string(PAYLOAD.to_owned())?;
    let counted = |call: &dyn Fn() -> Result<()>| -> Result<f64> {
        let before = SENT.load(Ordering::Relaxed);
        (0..CALLS).try_for_each(|_| call())?;
        Ok((SENT.load(Ordering::Relaxed) - before) as f64 / CALLS as f64)
    };
    let put = counted(&|| Ok(queue.put(&payload).map(drop)?))?;
    let get = counted(&|| queue.get(Wait::No)?.map(drop).context("a job"))?;
    println!("round trips: {put} a put, {get} a get");
    Ok(())
}

fn waking(bench: &Bench) -> Result<()> {
    let waits = wake_latencies(&bench.queue("woken")?, 1_000)?;
    println!(
        "commit to wake: p50 {:.2} ms, p99 {:.2} ms",
        percentile(&waits, 50.0),
        percentile(&waits, 99.0)
    );
    Ok(())
}
