//! Full load for a long time while dead tuples are not removed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool};
use pq_diesel::{StopMode, Worker};
use serde_json::value::RawValue;

use super::working::{Kind, figure};
use super::{Plan, Scenario};
use crate::baseline::plain_take;
use crate::{Bench, Figure, PAYLOAD, Target, Track};

/// One producer and one consumer, with a small backlog.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "horizon",
    about: "rates over time while a snapshot keeps dead tuples, or while autovacuum is off",
    run,
};

const QUEUE: &str = "horizon";
const BATCH: usize = 500;
const BACKLOG: u64 = 2_000;

/// Number of windows of a run: five seconds each in a run of ten minutes.
const WINDOWS: u32 = 120;

/// Number of windows in the first and in the last minute.
const MINUTE: usize = 12;

/// Maximum number of rounds. A round of all cases takes three quarters of an hour.
const MAX_ROUNDS: usize = 3;

/// Minimum length of a tenth of a run for counts of blocks. The server's processes report their reads once a
/// second, so up to one second of the first tenth is missing.
const MIN_TENTH: Duration = Duration::from_secs(30);

/// Why dead tuples are not removed.
#[derive(Clone, Copy)]
enum Cause {
    HeldSnapshot,
    NoAutovacuum,
}

impl Cause {
    fn name(self) -> &'static str {
        match self {
            Self::HeldSnapshot => "a snapshot is held",
            Self::NoAutovacuum => "autovacuum is off",
        }
    }
}

fn run(bench: &Bench, plan: &Plan) -> Result<Vec<Figure>> {
    let long = plan.time(plan.horizon);
    let mut figures = Vec::new();
    for kind in Kind::BOTH {
        for cause in [Cause::HeldSnapshot, Cause::NoAutovacuum] {
            let rounds = (0..plan.rounds.min(MAX_ROUNDS))
                .map(|_| with_dead_tuples(bench, cause, || ours(bench, kind, long)))
                .collect::<Result<Vec<_>>>()?;
            let target = Some(Target::RatioAtLeast(0.95));
            let label = format!("{} worker", kind.name());
            figures.push(Figure { target, ..rates(&label, cause, long, &rounds) });
            figures.extend(blocks(&label, cause, long, &rounds));
        }
    }
    // A fifth of the time shows the trend.
    let short = plan.time(plan.horizon / 5.0);
    let plain_loop = [with_dead_tuples(bench, Cause::HeldSnapshot, || plain_loop(bench, short))?];
    let label = "plain SKIP LOCKED loop";
    figures.push(rates(label, Cause::HeldSnapshot, short, &plain_loop));
    figures.extend(blocks(label, Cause::HeldSnapshot, short, &plain_loop));
    Ok(figures)
}

/// The figures of a run.
struct Round {
    /// Rates, by the seconds at the end of each window.
    points: Vec<(f64, f64)>,
    /// Blocks of tables and indexes that were requested per job, in the first and in the last minute.
    blocks: [f64; 2],
}

fn rates(label: &str, cause: Cause, time: Duration, rounds: &[Round]) -> Figure {
    let mean =
        |part: &[(f64, f64)]| part.iter().map(|(_, rate)| rate).sum::<f64>() / part.len().max(1) as f64;
    let first = |Round { points, .. }: &Round| mean(&points[..points.len().min(MINUTE)]);
    let last = |Round { points, .. }: &Round| mean(&points[points.len() - points.len().min(MINUTE)..]);
    let track =
        |round: &Round| Track { name: format!("{label}, {}", cause.name()), points: round.points.clone() };
    Figure {
        ours: rounds.iter().map(last).collect(),
        baseline: rounds.iter().map(first).collect(),
        tracks: rounds.last().map(track).into_iter().collect(),
        ..compared_with_start(&format!("{label}, last tenth of the run"), "jobs/s", cause, time)
    }
}

/// Returns blocks per job, which do not depend on the machine's speed; `None` if the run is too short.
///
/// Blocks that vacuum reads are included.
fn blocks(label: &str, cause: Cause, time: Duration, rounds: &[Round]) -> Option<Figure> {
    (time / 10 >= MIN_TENTH).then(|| Figure {
        ours: rounds.iter().map(|round| round.blocks[1]).collect(),
        baseline: rounds.iter().map(|round| round.blocks[0]).collect(),
        ..compared_with_start(
            &format!("{label}, blocks read or hit in the last tenth"),
            "blocks/job",
            cause,
            time,
        )
    })
}

fn compared_with_start(name: &str, unit: &str, cause: Cause, time: Duration) -> Figure {
    let parameters = [("while", cause.name().to_owned()), ("seconds", format!("{:.0}", time.as_secs_f64()))];
    Figure { beside: Some("its own first tenth".to_owned()), ..figure(SCENARIO.name, name, unit, parameters) }
}

/// Calls `run` while dead tuples of all tables are kept.
fn with_dead_tuples<T>(bench: &Bench, cause: Cause, run: impl FnOnce() -> Result<T>) -> Result<T> {
    bench.refill(&bench.queue(QUEUE)?, BACKLOG as usize)?;
    let mut conn = bench.connect()?;
    match cause {
        Cause::HeldSnapshot => {
            conn.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")?;
            let pins = "SELECT backend_xmin IS NOT NULL FROM pg_stat_activity WHERE pid = pg_backend_pid()";
            ensure!(sql::<Bool>(pins).get_result::<bool>(&mut conn)?, "the session holds no snapshot");
            let ran = run();
            conn.batch_execute("ROLLBACK")?;
            ran
        }
        Cause::NoAutovacuum => {
            conn.batch_execute(&on_all_tables("SET (autovacuum_enabled = off)"))?;
            let ran = run();
            conn.batch_execute(&on_all_tables("RESET (autovacuum_enabled)"))?;
            ran
        }
    }
}

fn on_all_tables(change: &str) -> String {
    format!(
        "DO $$ DECLARE name regclass; BEGIN \
        FOR name IN SELECT oid FROM pg_class WHERE relnamespace = 'pq'::regnamespace AND relkind = 'r' \
        LOOP EXECUTE format('ALTER TABLE %s {change}', name); END LOOP; END $$"
    )
}

fn ours(bench: &Bench, kind: Kind, time: Duration) -> Result<Round> {
    let queue = bench.queue(QUEUE)?;
    let payload = RawValue::from_string(PAYLOAD.to_owned())?;
    let done = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&done);
    let handler = kind.handler(&queue, move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let worker = Worker::new(&bench.pq).serve(handler);
    let control = worker.control();
    let stopped = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let working = scope.spawn(move || worker.run());
        let putting = scope.spawn(|| {
            produce(&stopped, &done, || {
                queue.put_many(std::iter::repeat_n(&payload, BATCH))?;
                Ok(())
            })
        });
        let round = watch(bench, &done, &stopped, time);
        stopped.store(true, Ordering::SeqCst);
        control.stop(StopMode::Drain);
        putting.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
        working.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
        round
    })
}

/// Runs a queue of one plain DELETE statement.
fn plain_loop(bench: &Bench, time: Duration) -> Result<Round> {
    let (mut producer, mut consumer) = (bench.connect()?, bench.connect()?);
    // No session listens.
    producer.batch_execute("SET pq.notify = 'off'")?;
    let insert = format!(
        "INSERT INTO pq.queue (q_name, data) SELECT '{QUEUE}', '{PAYLOAD}' FROM generate_series(1, {BATCH})"
    );
    let delete = plain_take(QUEUE, BATCH);
    let (done, stopped) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let taking = scope.spawn(|| -> Result<()> {
            while !stopped.load(Ordering::SeqCst) {
                let taken = diesel::sql_query(delete.trim_end_matches(';')).execute(&mut consumer);
                if taken.is_err() {
                    stopped.store(true, Ordering::SeqCst);
                }
                done.fetch_add(taken? as u64, Ordering::Relaxed);
            }
            Ok(())
        });
        let putting = scope.spawn(|| produce(&stopped, &done, || Ok(producer.batch_execute(&insert)?)));
        let round = watch(bench, &done, &stopped, time);
        stopped.store(true, Ordering::SeqCst);
        putting.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
        taking.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
        round
    })
}

/// Puts batches until stopped, while the queue holds at most the backlog.
fn produce(stopped: &AtomicBool, done: &AtomicU64, mut put: impl FnMut() -> Result<()>) -> Result<()> {
    let mut there = BACKLOG;
    while !stopped.load(Ordering::SeqCst) {
        if there.saturating_sub(done.load(Ordering::Relaxed)) > BACKLOG {
            std::thread::sleep(Duration::from_micros(200));
            continue;
        }
        let ran = put();
        if ran.is_err() {
            stopped.store(true, Ordering::SeqCst);
        }
        ran?;
        there += BATCH as u64;
    }
    Ok(())
}

/// Counters at one point of a run.
struct Progress {
    seconds: f64,
    jobs: u64,
    /// Blocks of the tables that were requested, as far as the server's processes have reported.
    blocks: i64,
}

fn watch(bench: &Bench, done: &AtomicU64, stopped: &AtomicBool, time: Duration) -> Result<Round> {
    let mut conn = bench.connect()?;
    let (begun, window) = (Instant::now(), time / WINDOWS);
    let mut progress = || -> Result<Progress> {
        let (seconds, jobs) = (begun.elapsed().as_secs_f64(), done.load(Ordering::Relaxed));
        Ok(Progress { seconds, jobs, blocks: blocks_so_far(&mut conn)? })
    };
    let mut points_in_time = vec![progress()?];
    for number in 1..=WINDOWS {
        std::thread::sleep((window * number).saturating_sub(begun.elapsed()));
        if stopped.load(Ordering::SeqCst) {
            break;
        }
        points_in_time.push(progress()?);
    }
    let rate = |from: &Progress, to: &Progress| (to.jobs - from.jobs) as f64 / (to.seconds - from.seconds);
    let per_job = |from: &Progress, to: &Progress| {
        (to.blocks - from.blocks) as f64 / (to.jobs - from.jobs).max(1) as f64
    };
    let end = points_in_time.len() - 1;
    let minute = end.min(MINUTE);
    Ok(Round {
        points: points_in_time.windows(2).map(|pair| (pair[1].seconds, rate(&pair[0], &pair[1]))).collect(),
        blocks: [
            per_job(&points_in_time[0], &points_in_time[minute]),
            per_job(&points_in_time[end - minute], &points_in_time[end]),
        ],
    })
}

fn blocks_so_far(conn: &mut PgConnection) -> Result<i64> {
    let blocks = "SELECT sum(
            heap_blks_read + heap_blks_hit + coalesce(idx_blks_read + idx_blks_hit, 0)
            + coalesce(toast_blks_read + toast_blks_hit + tidx_blks_read + tidx_blks_hit, 0))::bigint
        FROM pg_statio_user_tables WHERE schemaname = 'pq'";
    Ok(sql::<BigInt>(blocks).get_result(conn)?)
}
