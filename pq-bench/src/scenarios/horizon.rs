//! Full speed for a long time while dead rows are not removed.

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

/// One producer and one consumer, and a backlog that stays small.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "horizon",
    about: "rates over time while a snapshot keeps the dead rows, or autovacuum is off",
    run,
};

const QUEUE: &str = "horizon";
const BATCH: usize = 500;
const BACKLOG: u64 = 2_000;

/// In how many windows a run is divided: five seconds each of ten minutes.
const WINDOWS: u32 = 120;

/// How many of them are its first minute, and its last.
const MINUTE: usize = 12;

/// A round of all takes three quarters of an hour.
const MOST_ROUNDS: usize = 3;

/// The server's processes tell what they read once a second, so that of the first tenth up to a second's is missing: of
/// one shorter than this that would be too much.
const LONG_ENOUGH: Duration = Duration::from_secs(30);

/// Why dead rows stay.
#[derive(Clone, Copy)]
enum Why {
    Pinned,
    NoAutovacuum,
}

impl Why {
    fn word(self) -> &'static str {
        match self {
            Self::Pinned => "a snapshot is held",
            Self::NoAutovacuum => "autovacuum is off",
        }
    }
}

fn run(bench: &Bench, plan: &Plan) -> Result<Vec<Figure>> {
    let long = plan.time(plan.horizon);
    let mut figures = Vec::new();
    for kind in Kind::BOTH {
        for why in [Why::Pinned, Why::NoAutovacuum] {
            let rounds = (0..plan.rounds.min(MOST_ROUNDS))
                .map(|_| while_dead_rows_stay(bench, why, || ours(bench, kind, long)))
                .collect::<Result<Vec<_>>>()?;
            let target = Some(Target::RatioAtLeast(0.95));
            let who = format!("{} worker", kind.word());
            figures.push(Figure { target, ..rates(&who, why, long, &rounds) });
            figures.extend(blocks(&who, why, long, &rounds));
        }
    }
    // A fifth of the time is enough to see where it goes.
    let short = plan.time(plan.horizon / 5.0);
    let plain = [while_dead_rows_stay(bench, Why::Pinned, || plain(bench, short))?];
    let who = "plain SKIP LOCKED loop";
    figures.push(rates(who, Why::Pinned, short, &plain));
    figures.extend(blocks(who, Why::Pinned, short, &plain));
    Ok(figures)
}

/// How a run went.
struct Round {
    /// The rates over time, by the seconds at the end of each window.
    points: Vec<(f64, f64)>,
    /// Blocks of the tables and their indexes that the server asked for, a job: in the first minute, and in the last.
    blocks: [f64; 2],
}

fn rates(who: &str, why: Why, time: Duration, rounds: &[Round]) -> Figure {
    let mean =
        |part: &[(f64, f64)]| part.iter().map(|(_, rate)| rate).sum::<f64>() / part.len().max(1) as f64;
    let first = |Round { points, .. }: &Round| mean(&points[..points.len().min(MINUTE)]);
    let last = |Round { points, .. }: &Round| mean(&points[points.len() - points.len().min(MINUTE)..]);
    let track =
        |round: &Round| Track { name: format!("{who}, {}", why.word()), points: round.points.clone() };
    Figure {
        ours: rounds.iter().map(last).collect(),
        baseline: rounds.iter().map(first).collect(),
        tracks: rounds.last().map(track).into_iter().collect(),
        ..beside_its_first(&format!("{who}, last tenth of the run"), "jobs/s", why, time)
    }
}

/// What does not change with the pace of the machine. A vacuum's are among them. Nothing of a run too short to tell.
fn blocks(who: &str, why: Why, time: Duration, rounds: &[Round]) -> Option<Figure> {
    (time / 10 >= LONG_ENOUGH).then(|| Figure {
        ours: rounds.iter().map(|round| round.blocks[1]).collect(),
        baseline: rounds.iter().map(|round| round.blocks[0]).collect(),
        ..beside_its_first(&format!("{who}, blocks read or hit in the last tenth"), "blocks/job", why, time)
    })
}

fn beside_its_first(name: &str, unit: &str, why: Why, time: Duration) -> Figure {
    let parameters = [("while", why.word().to_owned()), ("seconds", format!("{:.0}", time.as_secs_f64()))];
    Figure { beside: Some("its own first tenth".to_owned()), ..figure(SCENARIO.name, name, unit, parameters) }
}

/// Runs something while the dead rows of all tables stay where they are.
fn while_dead_rows_stay<T>(bench: &Bench, why: Why, run: impl FnOnce() -> Result<T>) -> Result<T> {
    bench.refill(&bench.queue(QUEUE)?, BACKLOG as usize)?;
    let mut conn = bench.connect()?;
    match why {
        Why::Pinned => {
            conn.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")?;
            let pins = "SELECT backend_xmin IS NOT NULL FROM pg_stat_activity WHERE pid = pg_backend_pid()";
            ensure!(sql::<Bool>(pins).get_result::<bool>(&mut conn)?, "the snapshot holds nothing back");
            let ran = run();
            conn.batch_execute("ROLLBACK")?;
            ran
        }
        Why::NoAutovacuum => {
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
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let working = scope.spawn(move || worker.run());
        let putting = scope.spawn(|| {
            produce(&over, &done, || {
                queue.put_many(std::iter::repeat_n(&payload, BATCH))?;
                Ok(())
            })
        });
        let round = watch(bench, &done, &over, time);
        over.store(true, Ordering::SeqCst);
        control.stop(StopMode::Drain);
        putting.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
        working.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
        round
    })
}

/// What a queue of one statement does.
fn plain(bench: &Bench, time: Duration) -> Result<Round> {
    let (mut producer, mut consumer) = (bench.connect()?, bench.connect()?);
    // Nobody listens.
    producer.batch_execute("SET pq.notify = 'off'")?;
    let insert = format!(
        "INSERT INTO pq.queue (q_name, data) SELECT '{QUEUE}', '{PAYLOAD}' FROM generate_series(1, {BATCH})"
    );
    let delete = plain_take(QUEUE, BATCH);
    let (done, over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let taking = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::SeqCst) {
                let taken = diesel::sql_query(delete.trim_end_matches(';')).execute(&mut consumer);
                if taken.is_err() {
                    over.store(true, Ordering::SeqCst);
                }
                done.fetch_add(taken? as u64, Ordering::Relaxed);
            }
            Ok(())
        });
        let putting = scope.spawn(|| produce(&over, &done, || Ok(producer.batch_execute(&insert)?)));
        let round = watch(bench, &done, &over, time);
        over.store(true, Ordering::SeqCst);
        putting.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
        taking.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
        round
    })
}

/// Puts a batch after the other, as long as no more than the backlog waits.
fn produce(over: &AtomicBool, done: &AtomicU64, mut put: impl FnMut() -> Result<()>) -> Result<()> {
    let mut there = BACKLOG;
    while !over.load(Ordering::SeqCst) {
        if there.saturating_sub(done.load(Ordering::Relaxed)) > BACKLOG {
            std::thread::sleep(Duration::from_micros(200));
            continue;
        }
        let ran = put();
        if ran.is_err() {
            over.store(true, Ordering::SeqCst);
        }
        ran?;
        there += BATCH as u64;
    }
    Ok(())
}

/// How far a run has come.
struct Mark {
    seconds: f64,
    jobs: u64,
    /// How many blocks the tables have been asked for, as far as the server's processes have told.
    blocks: i64,
}

fn watch(bench: &Bench, done: &AtomicU64, over: &AtomicBool, time: Duration) -> Result<Round> {
    let mut conn = bench.connect()?;
    let (begun, window) = (Instant::now(), time / WINDOWS);
    let mut mark = || -> Result<Mark> {
        let (seconds, jobs) = (begun.elapsed().as_secs_f64(), done.load(Ordering::Relaxed));
        Ok(Mark { seconds, jobs, blocks: blocks_so_far(&mut conn)? })
    };
    let mut marks = vec![mark()?];
    for number in 1..=WINDOWS {
        std::thread::sleep((window * number).saturating_sub(begun.elapsed()));
        if over.load(Ordering::SeqCst) {
            break;
        }
        marks.push(mark()?);
    }
    let rate = |from: &Mark, to: &Mark| (to.jobs - from.jobs) as f64 / (to.seconds - from.seconds);
    let a_job =
        |from: &Mark, to: &Mark| (to.blocks - from.blocks) as f64 / (to.jobs - from.jobs).max(1) as f64;
    let end = marks.len() - 1;
    let minute = end.min(MINUTE);
    Ok(Round {
        points: marks.windows(2).map(|pair| (pair[1].seconds, rate(&pair[0], &pair[1]))).collect(),
        blocks: [a_job(&marks[0], &marks[minute]), a_job(&marks[end - minute], &marks[end])],
    })
}

fn blocks_so_far(conn: &mut PgConnection) -> Result<i64> {
    let blocks = "SELECT sum(
            heap_blks_read + heap_blks_hit + coalesce(idx_blks_read + idx_blks_hit, 0)
            + coalesce(toast_blks_read + toast_blks_hit + tidx_blks_read + tidx_blks_hit, 0))::bigint
        FROM pg_statio_user_tables WHERE schemaname = 'pq'";
    Ok(sql::<BigInt>(blocks).get_result(conn)?)
}
