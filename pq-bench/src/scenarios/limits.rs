//! What limits and turns cost, how exact a rate is, and how long a small group waits behind a large one.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use pq_diesel::{Limits, PutOptions, Queue, Rate, Wait, Worker};
use serde_json::value::RawValue;

use super::working::{Kind, figure};
use super::{Plan, Scenario};
use crate::{Bench, Figure, PAYLOAD, Target};

/// Queues with limits.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "limits",
    about: "drains of limited and fair queues, beside the same without, the starts that a rate allows, and turns",
    run,
};

const QUEUE: &str = "limits";
const THREADS: usize = 4;
const RUNNING: u32 = 50;
const GROUPS: usize = 1_000;
const RATE: u32 = 1_000;
const BURST: u32 = 100;
/// The jobs of a large group, for each job of the other scenarios.
const LARGE: usize = 5;
const SMALL: usize = 10;

fn run(bench: &Bench, plan: &Plan) -> Result<Vec<Figure>> {
    let jobs = plan.jobs(200_000);
    let parameters = || [("jobs", jobs.to_string()), ("threads", THREADS.to_string())];
    let beside = |what: &str| Some(what.to_owned());
    let mut running = Figure {
        beside: beside("without a limit"),
        target: Some(Target::RatioAtLeast(0.6)),
        ..figure(SCENARIO.name, "leased drain, at most 50 running", "jobs/s", parameters())
    };
    let mut bounded = Figure {
        beside: beside("without a limit, in batches of 12"),
        ..figure(SCENARIO.name, "leased drain, at most 50 running", "jobs/s", parameters())
    };
    let mut grouped = Figure {
        beside: beside("without a limit"),
        target: Some(Target::RatioAtLeast(0.5)),
        ..figure(
            SCENARIO.name,
            "leased drain, 1,000 groups with at most 3 running each",
            "jobs/s",
            parameters(),
        )
    };
    let mut starts = Figure {
        beside: beside("1,000 a second"),
        target: Some(Target::RatioAtLeast(0.99)),
        ..figure(SCENARIO.name, "starts at a rate of 1,000 a second", "jobs/s", [])
    };
    let mut excess = Figure {
        // A start is recorded some milliseconds after its token was counted.
        target: Some(Target::AtMost(5.0)),
        ..figure(SCENARIO.name, "most starts above burst and rate in any window", "jobs", [])
    };
    let mut fair = Figure {
        beside: beside("not fair"),
        target: Some(Target::RatioAtLeast(0.6)),
        ..figure(SCENARIO.name, "leased drain of a fair queue, 1,000 groups", "jobs/s", parameters())
    };
    let large = || [("jobs", (LARGE * jobs).to_string()), ("threads", THREADS.to_string())];
    let mut behind = Figure {
        beside: beside("not fair"),
        target: Some(Target::RatioAtLeast(0.6)),
        ..figure(
            SCENARIO.name,
            "leased drain of a fair queue, 10 jobs behind a large group",
            "jobs/s",
            large(),
        )
    };
    let mut last = Figure {
        target: Some(Target::AtMost(2.0)),
        ..figure(SCENARIO.name, "start of the last of 10 jobs behind a large group, fair", "s", large())
    };
    let of_groups = Limits::new().running_per_group(3);
    for _ in 0..plan.rounds {
        let plain = drain(bench, &Limits::new(), 1, jobs, None)?;
        running.ours.push(drain(bench, &Limits::new().running(RUNNING), 1, jobs, None)?);
        running.baseline.push(plain);
        bounded.ours.extend(running.ours.last());
        bounded.baseline.push(drain(bench, &Limits::new(), 1, jobs, Some(RUNNING as usize / THREADS))?);
        grouped.ours.push(drain(bench, &of_groups, GROUPS, jobs, None)?);
        grouped.baseline.push(drain(bench, &Limits::new(), GROUPS, jobs, None)?);
        fair.ours.push(drain(bench, &Limits::new().fair(), GROUPS, jobs, None)?);
        fair.baseline.extend(grouped.baseline.last());
        let turns = drain_behind(bench, &Limits::new().fair(), LARGE * jobs)?;
        behind.ours.push(turns.per_second);
        last.ours.push(turns.last_start);
        behind.baseline.push(drain_behind(bench, &Limits::new(), LARGE * jobs)?.per_second);
        let begun = starts_at_a_rate(bench, plan.time(60.0))?;
        starts.ours.push(begun.per_second);
        starts.baseline.push(f64::from(RATE));
        excess.ours.push(begun.excess);
    }
    bench.queue(QUEUE)?.set_limits(&Limits::new())?;
    Ok(vec![running, bounded, grouped, fair, behind, last, starts, excess])
}

/// Fills the queue with jobs of so many groups in rotation, and returns the rate at which a worker empties it.
fn drain(bench: &Bench, limits: &Limits, groups: usize, jobs: usize, batch: Option<usize>) -> Result<f64> {
    let queue = bench.queue(QUEUE)?;
    queue.set_limits(&Limits::new())?;
    bench.refill(&queue, 0)?;
    let of_group = |group| match groups {
        1 => PutOptions::new(),
        _ => PutOptions::new().group(format!("tenant {group}")),
    };
    let names: Vec<PutOptions> = (0..groups).map(of_group).collect();
    put(&queue, (0..jobs).map(|job| &names[job % groups]))?;
    queue.set_limits(limits)?;
    let worker = Worker::new(&bench.pq).serve(Kind::Leased.idle(&queue)).threads(THREADS);
    let worker = match batch {
        Some(most) => worker.batch(1, most),
        None => worker,
    };
    let begun = Instant::now();
    let report = worker.run_jobs(jobs as u64)?;
    ensure!(report.done == jobs as u64, "{report:?}");
    Ok(jobs as f64 / begun.elapsed().as_secs_f64())
}

fn put<'o>(queue: &Queue<Box<RawValue>>, options: impl Iterator<Item = &'o PutOptions>) -> Result<()> {
    let payload = RawValue::from_string(PAYLOAD.to_owned())?;
    queue.put_many_with(options.map(|options| (&payload, options)))?;
    Ok(())
}

/// A drain of a few jobs of one group behind many of another.
struct Behind {
    per_second: f64,
    /// When the last of the few jobs began, in seconds since the start of the worker.
    last_start: f64,
}

fn drain_behind(bench: &Bench, limits: &Limits, jobs: usize) -> Result<Behind> {
    let queue = bench.queue(QUEUE)?;
    queue.set_limits(&Limits::new())?;
    bench.refill(&queue, 0)?;
    let (large, small) = (PutOptions::new().group("large"), PutOptions::new().group("small"));
    put(&queue, (0..jobs).map(|_| &large).chain((0..SMALL).map(|_| &small)))?;
    queue.set_limits(limits)?;
    let (begun, last_start) = (Instant::now(), Arc::new(Mutex::new(Duration::ZERO)));
    let noted = Arc::clone(&last_start);
    let handler = queue.leased(move |_, job| {
        if job.annotations.group().as_deref() == Some("small") {
            let mut last = noted.lock().unwrap_or_else(PoisonError::into_inner);
            *last = begun.elapsed().max(*last);
        }
        Ok::<_, Infallible>(())
    });
    let all = (jobs + SMALL) as u64;
    let report = Worker::new(&bench.pq).serve(handler).threads(THREADS).run_jobs(all)?;
    ensure!(report.done == all, "{report:?}");
    let last_start = last_start.lock().unwrap_or_else(PoisonError::into_inner).as_secs_f64();
    Ok(Behind { per_second: all as f64 / begun.elapsed().as_secs_f64(), last_start })
}

/// The starts of a queue with a rate.
struct Starts {
    per_second: f64,
    /// The largest number of starts in a window, less the burst and what the rate gains in the window.
    excess: f64,
}

/// Records the takes of jobs by a trigger, on the database's clock.
fn starts_at_a_rate(bench: &Bench, time: Duration) -> Result<Starts> {
    let queue = bench.queue(QUEUE)?;
    queue.set_limits(&Limits::new())?;
    bench.refill(&queue, (time.as_secs_f64() * f64::from(RATE)) as usize + 2 * BURST as usize)?;
    let mut conn = bench.connect()?;
    conn.batch_execute(
        "DROP TABLE IF EXISTS public.starts;
         CREATE TABLE public.starts (at timestamptz NOT NULL, jobs bigint NOT NULL);
         CREATE OR REPLACE FUNCTION public.note_starts() RETURNS trigger LANGUAGE plpgsql AS
         $$BEGIN INSERT INTO public.starts SELECT clock_timestamp(), count(*) FROM taken; RETURN NULL; END$$;
         CREATE TRIGGER note_starts AFTER DELETE ON pq.queue REFERENCING OLD TABLE AS taken
             FOR EACH STATEMENT EXECUTE FUNCTION public.note_starts()",
    )?;
    queue.set_limits(&Limits::new().rate(Rate::new(RATE, Duration::from_secs(1)).burst(BURST)))?;
    let begun = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        let take = || -> Result<()> {
            while begun.elapsed() < time {
                queue.get_many(64, Wait::For(Duration::from_millis(100)))?;
            }
            Ok(())
        };
        let takers: Vec<_> = (0..THREADS).map(|_| scope.spawn(take)).collect();
        takers.into_iter().try_for_each(|taker| taker.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
    })?;
    let ran = begun.elapsed().as_secs_f64();
    conn.batch_execute("DROP TRIGGER note_starts ON pq.queue")?;
    let sql = "(extract(epoch FROM at - min(at) OVER ()) * 1000000)::bigint, jobs FROM public.starts WHERE jobs > 0 ORDER BY at";
    let starts: Vec<(i64, i64)> =
        diesel::dsl::sql::<(BigInt, BigInt)>(&format!("SELECT {sql}")).load(&mut conn)?;
    let total: i64 = starts.iter().map(|(_, jobs)| jobs).sum();
    Ok(Starts { per_second: (total as f64 - f64::from(BURST)) / ran, excess: excess(&starts) })
}

/// Returns the excess of the window with the most starts, which are given with their times in microseconds.
fn excess(starts: &[(i64, i64)]) -> f64 {
    let gained = |micros: i64| micros as f64 / 1_000_000.0 * f64::from(RATE);
    let (mut most, mut worst, mut last) = (0.0_f64, 0.0_f64, None);
    for (at, jobs) in starts {
        // Of all windows that end here, the one with the most starts above the rate.
        most = (most - last.map_or(0.0, |last| gained(at - last))).max(0.0) + *jobs as f64;
        worst = worst.max(most - f64::from(BURST));
        last = Some(*at);
    }
    worst
}
