//! One put per commit.

use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use diesel::PgConnection;
use serde_json::value::RawValue;

use super::comparison::{Comparison, figure, insert};
use super::{Plan, Scenario};
use crate::{Bench, Cost, Figure, Meter, PAYLOAD, Script, Target, pool};

/// One put per commit, on the caller's connection and through a handle.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "put",
    about: "one put per commit, on the caller's connection and through one handle, beside pgbench",
    run,
};

const QUEUE: &str = "put";
const BESIDE: &str = "pgbench, the same INSERT, prepared";

fn run(bench: &Bench, plan: &Plan) -> Result<Vec<Figure>> {
    let script = insert(bench, QUEUE);
    let mut figures = Vec::new();
    for clients in [1, 4, 16] {
        figures.extend(puts(bench, plan, clients, &script)?);
        figures.push(in_a_transaction(bench, plan, clients, &script)?);
    }
    Ok(figures)
}

fn puts(bench: &Bench, plan: &Plan, clients: usize, script: &Script) -> Result<[Figure; 2]> {
    let queue = bench.queue(QUEUE)?;
    let payload = RawValue::from_string(PAYLOAD.to_owned())?;
    let (mut callers, mut handle) = (Comparison::default(), Comparison::default());
    for _ in 0..plan.rounds {
        bench.refill(&queue, 0)?;
        let baseline = script.cost_of(bench, clients, plan.time(2.0))?;
        bench.refill(&queue, 0)?;
        callers.ours.push(on_connections(bench, plan, clients)?);
        bench.refill(&queue, 0)?;
        handle.ours.push(pool::cost_of(bench, clients, plan.time(2.0), |_| {
            queue.put(&payload)?;
            Ok(())
        })?);
        callers.baseline.push(baseline);
        handle.baseline.push(baseline);
    }
    let by_connections = Figure {
        parameters: [("connections".to_owned(), clients.to_string())].into(),
        target: Some(Target::RatioAtLeast(0.95)),
        ..figure(SCENARIO.name, "put on the caller's connection", BESIDE)
    };
    let by_threads = Figure {
        parameters: [("threads".to_owned(), clients.to_string())].into(),
        target: (clients == 16).then_some(Target::RatioAtLeast(2.0)),
        ..figure(SCENARIO.name, "put through one handle", BESIDE)
    };
    Ok([callers.rates(by_connections), handle.rates(by_threads)])
}

/// Runs one thread per connection.
fn on_connections(bench: &Bench, plan: &Plan, clients: usize) -> Result<Cost> {
    let queue = bench.queue(QUEUE)?;
    let payload = RawValue::from_string(PAYLOAD.to_owned())?;
    let threads = pool::threads(clients)?;
    // Each connection belongs to one thread; the lock only satisfies the borrow checker.
    let connections: Vec<Mutex<PgConnection>> =
        (0..clients).map(|_| Ok(Mutex::new(bench.connect()?))).collect::<Result<_>>()?;
    let mut conn = bench.connect()?;
    let meter = Meter::start(&mut conn)?;
    let done = pool::run_for_duration(&threads, plan.time(2.0), |thread| {
        let mut conn = connections[thread].lock().unwrap_or_else(PoisonError::into_inner);
        queue.on(&mut conn).put(&payload)?;
        Ok(())
    })?;
    // A session reports its statistics when it ends.
    drop(connections);
    Ok(Cost { rate: done.rate, ..meter.stop(&mut conn, done.operations)? })
}

fn in_a_transaction(bench: &Bench, plan: &Plan, clients: usize, script: &Script) -> Result<Figure> {
    let queue = bench.queue(QUEUE)?;
    let payload = RawValue::from_string(PAYLOAD.to_owned())?;
    let script = script.in_a_transaction();
    let mut comparison = Comparison::default();
    for _ in 0..plan.rounds {
        bench.refill(&queue, 0)?;
        comparison.baseline.push(script.cost_of(bench, clients, plan.time(2.0))?);
        bench.refill(&queue, 0)?;
        comparison.ours.push(pool::cost_of(bench, clients, plan.time(2.0), |_| {
            bench.pq.transaction(|conn| queue.on(conn).put(&payload))?;
            Ok(())
        })?);
    }
    Ok(comparison.rates(Figure {
        parameters: [("threads".to_owned(), clients.to_string())].into(),
        ..figure(
            SCENARIO.name,
            "put in the caller's transaction",
            "pgbench, BEGIN, the same INSERT and COMMIT, prepared",
        )
    }))
}
