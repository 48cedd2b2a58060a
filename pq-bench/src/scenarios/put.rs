//! One put a commit.

use std::sync::Mutex;

use anyhow::Result;
use diesel::PgConnection;
use serde_json::value::RawValue;

use super::{Plan, Scenario};
use crate::{Bench, Figure, Meter, PAYLOAD, Target, pgbench, rate};

/// One put a commit, on the caller's connection and through a handle.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "put",
    about: "one put a commit, on the caller's connection and through one handle, beside pgbench",
    run,
};

const QUEUE: &str = "put";

fn run(bench: &Bench, plan: &Plan) -> Result<Vec<Figure>> {
    let queue = bench.queue(QUEUE)?;
    let payload = RawValue::from_string(PAYLOAD.to_owned())?;
    let [(_, sql), ..] = bench.pq.store().hot_statements();
    let sql = sql.replace("$1", &format!("'{QUEUE}'")).replace("$2", &format!("'{PAYLOAD}'"));
    let mut figures = Vec::new();
    for clients in [1, 4, 16] {
        let mut callers = Figure {
            scenario: SCENARIO.name.to_owned(),
            name: "put on the caller's connection".to_owned(),
            parameters: [("connections".to_owned(), clients.to_string())].into(),
            unit: "jobs/s".to_owned(),
            beside: Some("pgbench, the same INSERT, prepared".to_owned()),
            target: Some(Target::RatioAtLeast(0.95)),
            ..Figure::default()
        };
        let mut handle = Figure {
            name: "put through one handle".to_owned(),
            parameters: [("threads".to_owned(), clients.to_string())].into(),
            target: (clients == 16).then_some(Target::RatioAtLeast(2.0)),
            ..callers.clone()
        };
        let connections: Vec<Mutex<PgConnection>> =
            (0..clients).map(|_| Ok(Mutex::new(bench.connect()?))).collect::<Result<_>>()?;
        for _ in 0..plan.rounds {
            bench.refill(&queue, 0)?;
            let bare = pgbench(bench.url(), &sql, clients, plan.time(2.0))?;
            bench.refill(&queue, 0)?;
            // A thread a connection: whoever finds its own is never refused.
            callers.ours.push(rate(clients, plan.time(2.0), || {
                let free = connections.iter().find_map(|conn| conn.try_lock().ok());
                let mut conn = free.expect("a connection for each thread");
                queue.on(&mut conn).put(&payload).map(drop)
            })?);
            callers.bare.push(bare);
            bench.refill(&queue, 0)?;
            let mut conn = bench.connect()?;
            let meter = Meter::start(&mut conn)?;
            let rate = rate(clients, plan.time(2.0), || queue.put(&payload).map(drop))?;
            let time = meter.elapsed();
            handle.cost = Some(meter.stop_after(&mut conn, queue.counts()?.ready.try_into()?, time)?);
            handle.ours.push(rate);
            handle.bare.push(bare);
        }
        figures.extend([callers, handle]);
    }
    Ok(figures)
}
