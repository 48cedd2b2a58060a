//! Takes from a queue that contains many other jobs.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use pq_diesel::{Pq, PutOptions, Queue, Wait, Worker};
use serde_json::value::RawValue;

use super::working::{self, Kind, figure, parts};
use super::{Plan, Scenario};
use crate::{Bench, Cost, Figure, PAYLOAD, Target};

/// Drains and single gets beside ready jobs, scheduled jobs, due jobs, or jobs of a leased key.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "deep",
    about: "takes beside a million ready jobs, ten million scheduled jobs, a million due jobs or a leased key, compared with a queue without them",
    run,
};

const QUEUE: &str = "deep";

/// Maximum number of rows per INSERT. The transition table of the trigger would spill to disk beyond it.
const MAX_ROWS_PER_INSERT: usize = 200_000;

/// A lease that is longer than the whole measurement.
const LEASE: Duration = Duration::from_secs(24 * 3_600);

/// The other jobs in the queue.
#[derive(Clone, Copy)]
enum OtherJobs {
    Ready,
    Scheduled,
    Due,
    BusyKey,
}

impl OtherJobs {
    fn jobs(self, plan: &Plan) -> usize {
        plan.jobs(match self {
            Self::Ready | Self::Due => 1_000_000,
            Self::Scheduled => 10_000_000,
            Self::BusyKey => 100_000,
        })
    }

    fn label(self, plan: &Plan) -> String {
        let jobs = self.jobs(plan);
        match self {
            Self::Ready => format!("{jobs} ready behind"),
            Self::Scheduled => format!("{jobs} scheduled in a year"),
            Self::Due => format!("{jobs} scheduled and due behind"),
            Self::BusyKey => format!("{jobs} of a leased key in front"),
        }
    }
}

fn run(bench: &Bench, plan: &Plan) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for beside in [OtherJobs::Ready, OtherJobs::Scheduled, OtherJobs::Due, OtherJobs::BusyKey] {
        let (empty, deep) = (Table::new(bench, "bench_empty")?, Table::new(bench, "bench_deep")?);
        deep.fill(beside, beside.jobs(plan))?;
        let jobs = plan.jobs(100_000);
        for kind in Kind::BOTH {
            let name = format!("{} drain", kind.name());
            figures.push(compare(plan, beside, &name, jobs, [&deep, &empty], |table| {
                working::drain(bench, Pq::builder().schema(table.schema), 1, jobs, |pq| {
                    Ok(Worker::new(pq).serve(kind.idle(&pq.queue(QUEUE)?)))
                })
            })?);
        }
        let jobs = plan.jobs(5_000);
        figures.push(compare(plan, beside, "gets one at a time", jobs, [&deep, &empty], |table| {
            let begun = Instant::now();
            for _ in 0..jobs {
                ensure!(table.queue.get(Wait::No)?.is_some(), "the queue is empty");
            }
            Ok(Cost { rate: jobs as f64 / begun.elapsed().as_secs_f64(), ..Cost::default() })
        })?);
        empty.drop()?;
        deep.drop()?;
    }
    Ok(figures)
}

/// Runs the same on both tables in turn: the first with other jobs, the second without.
fn compare(
    plan: &Plan,
    beside: OtherJobs,
    name: &str,
    jobs: usize,
    tables: [&Table; 2],
    take: impl Fn(&Table) -> Result<Cost>,
) -> Result<Figure> {
    let mut costs = [const { Vec::new() }; 2];
    for _ in 0..plan.rounds {
        for (table, costs) in tables.into_iter().zip(&mut costs) {
            table.put(jobs)?;
            costs.push(take(table)?);
        }
    }
    let [deep, empty] = costs;
    // Gets are only timed.
    let counted = |costs: &[Cost]| Cost::median(costs).filter(|cost| cost.trips > 0.0);
    Ok(Figure {
        ours: parts(&deep, |cost| cost.rate),
        beside: Some("the same with nothing else in the table".to_owned()),
        baseline: parts(&empty, |cost| cost.rate),
        target: Some(Target::RatioAtLeast(0.95)),
        cost: counted(&deep),
        baseline_cost: counted(&empty),
        ..figure(SCENARIO.name, name, "jobs/s", [("beside", beside.label(plan)), ("jobs", jobs.to_string())])
    })
}

/// A table in a schema of its own, which keeps its jobs while another one is measured.
struct Table {
    queue: Queue<Box<RawValue>>,
    schema: &'static str,
    conn: std::cell::RefCell<PgConnection>,
}

impl Table {
    fn new(bench: &Bench, schema: &'static str) -> Result<Self> {
        let mut conn = bench.connect()?;
        conn.batch_execute(&format!("DROP SCHEMA IF EXISTS {schema} CASCADE"))?;
        let pq = Pq::builder().url(bench.url()).schema(schema).connect()?;
        pq.migrate()?;
        Ok(Self { queue: pq.queue(QUEUE)?, schema, conn: conn.into() })
    }

    fn execute(&self, sql: &str) -> Result<()> {
        Ok(self.conn.borrow_mut().batch_execute(&sql.replace("{jobs}", &format!("{}.queue", self.schema)))?)
    }

    /// Puts jobs behind those in the queue.
    fn put(&self, jobs: usize) -> Result<()> {
        let payload = RawValue::from_string(PAYLOAD.to_owned())?;
        self.queue.put_many(std::iter::repeat_n(&payload, jobs))?;
        self.settle()
    }

    /// Updates statistics, removes dead tuples and writes dirty pages.
    fn settle(&self) -> Result<()> {
        self.execute("VACUUM ANALYZE {jobs}")?;
        self.execute("CHECKPOINT")
    }

    fn fill(&self, beside: OtherJobs, jobs: usize) -> Result<()> {
        let (columns, values) = match beside {
            OtherJobs::Ready => ("", ""),
            OtherJobs::Scheduled => (", schedule_at", ", now() + interval '1 year'"),
            OtherJobs::Due => (", schedule_at, priority", ", now(), -1"),
            OtherJobs::BusyKey => {
                let payload = RawValue::from_string(PAYLOAD.to_owned())?;
                let options = PutOptions::new().serialization_key("busy").priority(1);
                self.queue.put_with(&payload, &options)?;
                let held = self.queue.lease(1, LEASE, Wait::No)?;
                ensure!(held.len() == 1, "cannot lease the job with the key");
                (", serial_key, priority", ", 'busy', 1")
            }
        };
        let mut left = jobs;
        while left > 0 {
            let now = left.min(MAX_ROWS_PER_INSERT);
            self.execute(&format!(
                "INSERT INTO {{jobs}} (q_name, data{columns}) SELECT '{QUEUE}', '{PAYLOAD}'{values} \
                FROM generate_series(1, {now})"
            ))?;
            left -= now;
        }
        self.settle()
    }

    fn drop(self) -> Result<()> {
        self.execute(&format!("DROP SCHEMA {} CASCADE", self.schema))
    }
}
