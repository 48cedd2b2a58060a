//! The effect of the payload's size.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::value::RawValue;

use super::comparison::{Comparison, baseline_drain, figure};
use super::working::Kind;
use super::{Plan, Scenario};
use crate::{Bench, Figure, PAYLOAD, Script, payload_of, pool};

/// Puts and drains of jobs from 24 bytes to 256 KiB.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "payload",
    about: "puts and drains of payloads from 24 B to 256 KiB, and the WAL per job",
    run,
};

const QUEUE: &str = "payload";
const SIZES: [(&str, usize); 4] =
    [("24 B", PAYLOAD.len()), ("1 KiB", 1 << 10), ("16 KiB", 16 << 10), ("256 KiB", 256 << 10)];
/// Linux limits an argument of a program to 128 KiB.
const PIECE: usize = 100_000;

fn run(bench: &Bench, plan: &Plan) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (name, size) in SIZES {
        let (mut puts, mut drains) = (Comparison::default(), Comparison::default());
        for _ in 0..plan.rounds {
            put_side(bench, plan, &payload_of(size), &mut puts)?;
            drain_side(bench, plan, &payload_of(size), &mut drains)?;
        }
        figures.extend(three(name, &puts, &drains));
    }
    Ok(figures)
}

/// Returns the rates, and the WAL of put and drain together.
fn three(size: &str, puts: &Comparison, drains: &Comparison) -> [Figure; 3] {
    let with = BTreeMap::from([("payload".to_owned(), size.to_owned())]);
    let figure = |name, beside| Figure { parameters: with.clone(), ..figure(SCENARIO.name, name, beside) };
    let put = figure("put by size of the payload", "pgbench, the same INSERT, prepared");
    let drain = figure(
        "transactional drain by size of the payload",
        "pgbench, a plain DELETE of 500 a commit, prepared",
    );
    let wal = figure(
        "WAL of put and drain by size of the payload",
        "pgbench, the same INSERT and the DELETE of 500",
    );
    let (put_wal, drain_wal) =
        (puts.parts(wal.clone(), |cost| cost.wal), drains.parts(wal.clone(), |cost| cost.wal));
    let sum = |one: &[f64], other: &[f64]| one.iter().zip(other).map(|(one, other)| one + other).collect();
    let wal = Figure {
        unit: "bytes/job".to_owned(),
        ours: sum(&put_wal.ours, &drain_wal.ours),
        baseline: sum(&put_wal.baseline, &drain_wal.baseline),
        ..wal
    };
    [puts.rates(put), drains.rates(drain), wal]
}

fn put_side(bench: &Bench, plan: &Plan, payload: &str, comparison: &mut Comparison) -> Result<()> {
    let queue = bench.queue(QUEUE)?;
    let data = RawValue::from_string(payload.to_owned())?;
    bench.refill(&queue, 0)?;
    comparison.baseline.push(insert_of(bench, payload)?.cost_of(bench, 1, plan.time(2.0))?);
    bench.refill(&queue, 0)?;
    comparison.ours.push(pool::cost_of(bench, 1, plan.time(2.0), |_| {
        queue.put(&data)?;
        Ok(())
    })?);
    Ok(())
}

fn drain_side(bench: &Bench, plan: &Plan, payload: &str, comparison: &mut Comparison) -> Result<()> {
    // 64 MiB in total, at most 50,000 jobs.
    let jobs = ((64 << 20) / payload.len()).min(50_000);
    let jobs = ((jobs as f64 * plan.scale) as usize).max(100);
    bench.fill_in_use_by_sql(QUEUE, jobs, payload)?;
    comparison.baseline.push(baseline_drain(bench, QUEUE, 1, jobs)?);
    bench.fill_in_use_by_sql(QUEUE, jobs, payload)?;
    comparison.ours.push(Kind::Transactional.drain(bench, QUEUE, 1, jobs)?);
    Ok(())
}

/// Returns the INSERT with this payload, sent in pieces that fit into a program's argument.
fn insert_of(bench: &Bench, payload: &str) -> Result<Script> {
    let [(_, sql), ..] = bench.pq.store().hot_statements();
    let pieces: Vec<&str> =
        payload.as_bytes().chunks(PIECE).map(std::str::from_utf8).collect::<Result<_, _>>()?;
    let names: Vec<String> = (0..pieces.len()).map(|piece| format!(":piece{piece}::text")).collect();
    let sql = sql.replace("$1", ":queue").replace("$2", &format!("({})", names.join(" || ")));
    let script = Script::new(&sql).bind("queue", QUEUE);
    Ok((0..)
        .zip(pieces)
        .fold(script, |script, (number, piece)| script.bind(&format!("piece{number}"), piece)))
}
