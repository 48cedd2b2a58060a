//! Prints what working jobs costs beside the bare SQL, as medians of interleaved runs on one server.
//!
//! `cargo run --release -p pq-bench --bin work [RUNS [drains|beside|pickup|memory]]`

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::time::Duration;

use anyhow::{Result, ensure};
use comfy_table::Table;
use diesel::connection::SimpleConnection;
use pq_bench::{Bench, Cost, Meter, median, percentile, pgbench_drain, pickup_latencies};
use pq_diesel::{Handler, Pq, PutOptions, Wait, Worker};
use serde_json::value::RawValue;

const JOBS: usize = 100_000;
const QUEUE: &str = "worked";

/// What else lies in the table while jobs are worked.
#[derive(Clone, Copy, PartialEq)]
enum Beside {
    Scheduled,
    BusyKey,
}

/// Makes this the process whose memory is measured.
const CHILD: &str = "--work-a-million";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (first, second) = (arguments.next(), arguments.next());
    if let (Some(CHILD), Some(url)) = (first.as_deref(), &second) {
        return work_a_million(url);
    }
    pq_bench::count_statements()?;
    let runs = first.map_or(Ok(5), |runs| runs.parse())?;
    let bench = Bench::start()?;
    println!("measured on: {}; medians of {runs}\n", bench.origin());
    let wanted = |part: &str| second.as_deref().is_none_or(|only| only == part);
    if wanted("drains") {
        drains(&bench, runs)?;
    }
    if wanted("beside") {
        beside(&bench, runs)?;
    }
    if wanted("pickup") {
        pickup(&bench)?;
    }
    if wanted("memory") {
        memory(&bench)?;
    }
    Ok(())
}

fn handler(bench: &Bench, transactional: bool) -> Result<Handler> {
    let queue = bench.queue(QUEUE)?;
    Ok(match transactional {
        true => queue.transactional(|_, _| Ok::<_, std::convert::Infallible>(())),
        false => queue.leased(|_, _| Ok::<_, std::convert::Infallible>(())),
    })
}

/// Works all jobs that are there, by one process.
fn drain(bench: &Bench, transactional: bool, threads: usize) -> Result<Cost> {
    let worker = Worker::new(&bench.pq).threads(threads).serve(handler(bench, transactional)?);
    let mut conn = bench.connect()?;
    let meter = Meter::start(&mut conn)?;
    let report = worker.run_until_empty()?;
    let time = meter.elapsed();
    ensure!(report.done == JOBS as u64, "{report:?}");
    meter.stop_after(&mut conn, JOBS, time)
}

const BARE_DELETE: &str = "DELETE FROM pq.queue WHERE ctid = ANY (ARRAY(SELECT ctid FROM pq.queue \
    WHERE q_name = 'worked' AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NULL \
    ORDER BY -priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id \
    LIMIT 500 FOR UPDATE SKIP LOCKED)) RETURNING id, data";

/// A lease as a column, and then the end of the job.
const BARE_UPDATE: &str = "UPDATE pq.queue SET dequeued_at = now(), attempt = attempt + 1 WHERE ctid = ANY (ARRAY(SELECT ctid \
    FROM pq.queue WHERE q_name = 'worked' AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NULL \
    ORDER BY -priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id \
    LIMIT 500 FOR UPDATE SKIP LOCKED)) RETURNING id, data;
DELETE FROM pq.queue WHERE ctid = ANY (ARRAY(SELECT ctid FROM pq.queue \
    WHERE q_name = 'worked' AND dequeued_at IS NOT NULL LIMIT 500 FOR UPDATE SKIP LOCKED)) RETURNING id";

fn drains(bench: &Bench, runs: usize) -> Result<()> {
    let queue = bench.queue(QUEUE)?;
    let mut table = Table::new();
    table.set_header([
        "handlers",
        "threads",
        "jobs/s",
        "bare /s",
        "ratio",
        "WAL B/job, table in use",
        "just after a checkpoint",
        "bare, just after one",
        "commits/job",
        "trips/job",
    ]);
    for (kind, transactional, sql) in [("transactional", true, BARE_DELETE), ("leased", false, BARE_UPDATE)] {
        for threads in [1, 4, 16] {
            let (mut ours, mut bare, mut in_use) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..runs {
                bench.refill_in_use(&queue, JOBS)?;
                in_use.push(drain(bench, transactional, threads)?);
                bench.refill(&queue, JOBS)?;
                ours.push(drain(bench, transactional, threads)?);
                bench.refill(&queue, JOBS)?;
                bare.push(pgbench_drain(bench, sql, threads, JOBS)?);
            }
            let of =
                |costs: &[Cost], part: fn(&Cost) -> f64| median(&costs.iter().map(part).collect::<Vec<_>>());
            let ratios: Vec<f64> = ours.iter().zip(&bare).map(|(ours, bare)| ours.rate / bare.rate).collect();
            table.add_row([
                kind.to_owned(),
                threads.to_string(),
                format!("{:.0}", of(&ours, |cost| cost.rate)),
                format!("{:.0}", of(&bare, |cost| cost.rate)),
                format!("{:.2}", median(&ratios)),
                format!("{:.0}", of(&in_use, |cost| cost.wal)),
                format!("{:.0}", of(&ours, |cost| cost.wal)),
                format!("{:.0}", of(&bare, |cost| cost.wal)),
                format!("{:.4}", of(&ours, |cost| cost.commits)),
                format!("{:.4}", of(&ours, |cost| cost.trips)),
            ]);
        }
    }
    println!("{table}\n");
    Ok(())
}

fn beside(bench: &Bench, runs: usize) -> Result<()> {
    let queue = bench.queue(QUEUE)?;
    let mut table = Table::new();
    table.set_header(["handlers", "beside 1,000,000 scheduled", "beside 100,000 behind a leased key"]);
    for (kind, transactional) in [("transactional", true), ("leased", false)] {
        let mut row = vec![kind.to_owned()];
        for beside in [Beside::Scheduled, Beside::BusyKey] {
            let mut ratios = Vec::new();
            for _ in 0..runs {
                bench.refill(&queue, JOBS)?;
                let alone = drain(bench, transactional, 1)?;
                bench.refill(&queue, JOBS)?;
                lay_beside(bench, beside)?;
                ratios.push(drain(bench, transactional, 1)?.rate / alone.rate);
            }
            row.push(format!("{:.2} of alone", median(&ratios)));
        }
        table.add_row(row);
    }
    println!("{table}\n");
    Ok(())
}

fn lay_beside(bench: &Bench, beside: Beside) -> Result<()> {
    let payload = RawValue::from_string(pq_bench::PAYLOAD.to_owned())?;
    let mut conn = bench.connect()?;
    match beside {
        Beside::Scheduled => conn.batch_execute(&format!(
            "INSERT INTO pq.queue (q_name, data, schedule_at) SELECT '{QUEUE}', '{}', now() + interval '1 year' \
            FROM generate_series(1, 1000000)",
            pq_bench::PAYLOAD
        ))?,
        Beside::BusyKey => {
            let queue = bench.queue(QUEUE)?;
            queue.put_with(&payload, &PutOptions::new().serialization_key("busy").priority(1))?;
            let held = queue.lease(1, Duration::from_secs(600), Wait::No)?;
            ensure!(held[0].serialization_key.is_some(), "the keyed job is not the first");
            conn.batch_execute(&format!(
                "INSERT INTO pq.queue (q_name, data, serial_key, priority) SELECT '{QUEUE}', '{}', 'busy', 1 \
                FROM generate_series(1, 100000)",
                pq_bench::PAYLOAD
            ))?;
        }
    }
    conn.batch_execute("VACUUM ANALYZE pq.queue")?;
    conn.batch_execute("CHECKPOINT")?;
    Ok(())
}

fn pickup(bench: &Bench) -> Result<()> {
    for (kind, transactional) in [("transactional", true), ("leased", false)] {
        bench.refill(&bench.queue(QUEUE)?, 0)?;
        let times = pickup_latencies(&bench.pq, QUEUE, transactional, 1_000)?;
        println!(
            "put to the handler's start on an idle worker, {kind}: p50 {:.2} ms, p99 {:.2} ms",
            percentile(&times, 50.0),
            percentile(&times, 99.0)
        );
    }
    Ok(())
}

/// The most memory that a process of its own ever has that works a backlog of a million.
fn memory(bench: &Bench) -> Result<()> {
    bench.fill_by_sql(QUEUE, 1_000_000)?;
    let child = std::process::Command::new(std::env::current_exe()?).args([CHILD, bench.url()]).output()?;
    ensure!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    print!("{}", String::from_utf8_lossy(&child.stdout));
    Ok(())
}

fn work_a_million(url: &str) -> Result<()> {
    let pq = Pq::connect(url)?;
    let handler = pq.queue::<Box<RawValue>>(QUEUE)?.leased(|_, _| Ok::<_, std::convert::Infallible>(()));
    let report = Worker::new(&pq).threads(4).serve(handler).run_until_empty()?;
    ensure!(report.done == 1_000_000, "{report:?}");
    println!(
        "peak memory of a worker of 4 threads with a backlog of 1,000,000: {:.0} MB",
        pq_bench::peak_memory()?
    );
    Ok(())
}
