//! Workers in child processes that are killed, stopped or disconnected. The tests check what the database contains
//! afterwards.

mod child;
#[path = "../common/mod.rs"]
mod common;
mod crashes;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use child::{Child, Step, expire_leases, work_task};
use common::{LISTENING, Outcome, PATIENCE, StopOnDrop, contend, database, until, until_no_notifier};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer};
use pq_core::store::Archive;
use pq_diesel::{Backoff, CallOptions, Control, JobState, Pq, StopMode, Worker};
use pq_testing::{Database, Kind, Options, Server, Stop};

/// Not a test: the entry point of the child processes.
#[test]
fn child() -> Outcome {
    child::run()
}

/// Returns a database with a table of effects. The table has no constraint that could hide a repeated effect.
fn setup() -> Result<(Database, Pq), Box<dyn std::error::Error>> {
    let database = database()?;
    let pq = prepare(&database)?;
    Ok((database, pq))
}

fn prepare(database: &Database) -> Result<Pq, Box<dyn std::error::Error>> {
    let mut conn = database.connect()?;
    conn.batch_execute("CREATE TABLE effect (job bigint, attempt integer, worker integer)")?;
    Ok(Pq::builder().url(database.url()).pool_size(20).poll_interval(Duration::from_millis(200)).build()?)
}

/// Returns the attempts that had an effect, by job.
fn effects(database: &Database) -> Result<BTreeMap<i64, Vec<i32>>, Box<dyn std::error::Error>> {
    let rows: Vec<(i64, i32)> =
        diesel::dsl::sql::<(BigInt, Integer)>("SELECT job, attempt FROM effect ORDER BY 1, 2")
            .load(&mut database.connect()?)?;
    let mut effects = BTreeMap::<i64, Vec<i32>>::new();
    for (job, attempt) in rows {
        effects.entry(job).or_default().push(attempt);
    }
    Ok(effects)
}

/// Stops a worker when it is dropped. Without it a failed test would wait for the worker forever.
struct AbortOnDrop<'c>(&'c Control);

impl Drop for AbortOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop(StopMode::Abort);
    }
}

/// Runs a worker in this process until no job is left.
fn finish(pq: &Pq, transactional: bool) -> Outcome {
    let worker =
        Worker::new(pq).maintain_every(Duration::from_millis(20)).serve(child::handler(pq, transactional)?);
    let control = worker.control();
    std::thread::scope(|threads| -> Outcome {
        let working = threads.spawn(|| worker.run());
        let _abort = AbortOnDrop(&control);
        let queue = pq.queue::<()>("work")?;
        let started = Instant::now();
        while queue.counts()?.live() > 0 {
            assert!(started.elapsed() < PATIENCE, "jobs are left: {:?}", queue.counts()?);
            std::thread::sleep(Duration::from_millis(5));
        }
        control.stop(StopMode::Drain);
        working.join().map_err(|_| "the worker panicked")??;
        Ok(())
    })
}

#[test]
fn a_worker_killed_at_any_step_loses_no_job_and_repeats_none() -> Outcome {
    for transactional in [true, false] {
        for step in [Step::KillBefore, Step::KillAfter, Step::KillAtReturn] {
            let (database, pq) = setup()?;
            let task = work_task(&pq)?;
            let ids: Vec<i64> = task
                .call_many([Step::Nothing, step, Step::Nothing])?
                .into_iter()
                .map(|put| put.id.0)
                .collect();
            let mut child = Child::spawn(&database, transactional)?;
            assert!(!child.wait()?, "the child was not killed");
            expire_leases(&mut database.connect()?)?;
            finish(&pq, transactional)?;
            let effects = effects(&database)?;
            assert_eq!(effects.keys().copied().collect::<Vec<_>>(), ids, "{transactional} {step:?}");
            for attempts in effects.values() {
                // In a transaction the effect commits with the completion. Under a lease it may repeat.
                assert!(!transactional || attempts.len() == 1, "{step:?}: {attempts:?}");
            }
            let counts = pq.queue::<()>("work")?.counts()?;
            assert_eq!((counts.live(), counts.dead), (0, 0));
        }
    }
    Ok(())
}

#[test]
fn a_process_that_ends_right_after_its_worker_does_not_crash() -> Outcome {
    let (database, _pq) = setup()?;
    for n in 0..60 {
        assert!(Child::spawn_until_empty(&database)?.wait()?, "process {n} crashed");
    }
    Ok(())
}

#[test]
fn a_put_killed_before_its_commit_leaves_nothing() -> Outcome {
    let (database, pq) = setup()?;
    let mut child = Child::spawn_put(&database)?;
    assert!(!child.wait()?, "the child was not killed");
    assert_eq!(pq.queue::<()>("work")?.counts()?.live(), 0);
    assert!(effects(&database)?.is_empty(), "the effect was committed without the put");
    Ok(())
}

#[test]
fn a_worker_stopped_past_its_lease_cannot_settle() -> Outcome {
    let (database, pq) = setup()?;
    let id = work_task(&pq)?.call(&Step::Wait)?.id;
    let mut child = Child::spawn(&database, false)?;
    let mut conn = database.connect()?;
    until(&mut conn, "SELECT count(*) FROM effect WHERE attempt = 1")?;
    child.stop()?;
    expire_leases(&mut conn)?;
    // Another attempt runs and completes.
    let worker =
        Worker::new(&pq).maintain_every(Duration::from_millis(20)).serve(child::handler(&pq, false)?);
    conn.batch_execute("CREATE TABLE go_on ()")?;
    let report = worker.run_jobs(1)?;
    assert_eq!((report.done, report.lost), (1, 0));
    assert_eq!(effects(&database)?, BTreeMap::from([(id.0, vec![1, 2])]));
    let before = pq.queue::<()>("work")?.counts()?;
    // The first attempt continues, ends, and its outcome is refused.
    child.go_on()?;
    until(&mut conn, "SELECT count(*) FROM effect WHERE attempt = -1")?;
    child.kill()?;
    assert_eq!(pq.queue::<()>("work")?.counts()?, before);
    assert_eq!((before.live(), before.dead, before.done), (0, 0, 0));
    Ok(())
}

/// The server ends a session that has a notifier lock and is idle. Otherwise no put of the channel would notify.
#[test]
fn a_stopped_process_loses_its_notifier_lock() -> Outcome {
    let (database, _pq) = setup()?;
    let child = Child::spawn(&database, true)?;
    let mut conn = database.connect()?;
    until(&mut conn, LISTENING)?;
    contend(&database, "work")?;
    child.stop()?;
    until_no_notifier(&mut conn)
}

#[test]
fn two_workers_never_run_jobs_of_one_key_at_once() -> Outcome {
    const JOBS: usize = 10_000;
    let (database, pq) = setup()?;
    let mut conn = database.connect()?;
    conn.batch_execute("CREATE TABLE counter AS SELECT 0 AS n")?;
    work_task(&pq)?.serialize_by(|_| "one".to_owned()).call_many(vec![Step::Count; JOBS])?;
    // Each handler reads the number and writes the next one in another statement. Two at the same time would lose one.
    let mut children = [Child::spawn(&database, true)?, Child::spawn(&database, false)?];
    let started = Instant::now();
    while pq.queue::<()>("work")?.counts()?.live() > 0 {
        assert!(started.elapsed() < 10 * PATIENCE, "{:?}", pq.queue::<()>("work")?.counts()?);
        std::thread::sleep(Duration::from_millis(200));
    }
    children.iter_mut().try_for_each(Child::kill)?;
    let n: i32 = diesel::dsl::sql::<Integer>("SELECT n FROM counter").get_result(&mut conn)?;
    assert_eq!((n as usize, pq.queue::<()>("work")?.counts()?.dead), (JOBS, 0));
    Ok(())
}

/// Runs jobs while `disturb` is called repeatedly, and checks the guarantees of each kind of handler.
fn run_disturbed(
    disturb: impl Fn() -> Outcome,
    database: &Database,
    pq: &Pq,
    transactional: bool,
) -> Outcome {
    const JOBS: usize = 3_000;
    let retries = CallOptions::new().max_retries(100).retry_in(Duration::from_millis(10));
    let task = work_task(pq)?.with_defaults(retries);
    let ids: Vec<i64> = task.call_many(vec![Step::Nothing; JOBS])?.into_iter().map(|put| put.id.0).collect();
    let worker = Worker::new(pq)
        .threads(4)
        .batch(1, 16)
        .lease(Duration::from_secs(2))
        .maintain_every(Duration::from_millis(50))
        .serve(child::handler(pq, transactional)?);
    let control = worker.control();
    std::thread::scope(|threads| -> Outcome {
        let working = threads.spawn(|| worker.run());
        let _abort = AbortOnDrop(&control);
        let queue = pq.queue::<()>("work")?;
        let (started, mut disturbed) = (Instant::now(), 0);
        loop {
            if disturbed < 20 {
                disturb()?;
                disturbed += 1;
            }
            std::thread::sleep(Duration::from_millis(50));
            assert!(started.elapsed() < 3 * PATIENCE, "jobs are left");
            // The query itself can fail.
            if queue.counts().is_ok_and(|counts| counts.live() == 0) {
                break;
            }
        }
        control.stop(StopMode::Drain);
        working.join().map_err(|_| "the worker panicked")??;
        Ok(())
    })?;
    let effects = effects(database)?;
    assert_eq!(effects.keys().copied().collect::<Vec<_>>(), ids, "every job had its effect");
    if transactional {
        assert!(effects.values().all(|attempts| attempts.len() == 1), "no effect is repeated");
    }
    let counts = pq.queue::<()>("work")?.counts()?;
    assert_eq!((counts.live(), counts.dead), (0, 0));
    Ok(())
}

#[test]
fn terminated_backends_lose_no_job() -> Outcome {
    for transactional in [true, false] {
        let (database, pq) = setup()?;
        let terminate = || {
            // A new connection each time, because the last one may have been terminated.
            database.connect()?.batch_execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )?;
            Ok(())
        };
        run_disturbed(terminate, &database, &pq, transactional)?;
    }
    Ok(())
}

#[test]
#[allow(clippy::print_stdout, reason = "the reader must know that nothing was tested")]
fn a_server_restart_under_load_loses_no_job() -> Outcome {
    let server = match Server::start(&Options::durable().kind(Kind::Binaries)) {
        Ok(server) => server,
        Err(error) => {
            println!("skipped, because no server can be restarted here: {error}");
            return Ok(());
        }
    };
    let database = server.database()?;
    Pq::detached().migrate_on(&mut database.connect()?)?;
    let pq = prepare(&database)?;
    let restarted = AtomicBool::new(false);
    let restart = || {
        if !restarted.swap(true, Ordering::SeqCst) {
            server.restart(Stop::Immediate)?;
        }
        Ok(())
    };
    run_disturbed(restart, &database, &pq, true)?;
    database.connect()?.batch_execute("TRUNCATE effect")?;
    restarted.store(false, Ordering::SeqCst);
    run_disturbed(restart, &database, &pq, false)
}

#[test]
fn ten_thousand_failing_jobs_use_all_attempts_and_never_run_early() -> Outcome {
    const JOBS: usize = 10_000;
    const DELAY: Duration = Duration::from_millis(300);
    let (_database, pq) = setup()?;
    let task = pq.queue("work")?.task::<()>("fail").max_retries(2).backoff(Backoff::fixed(DELAY));
    let ids = task.call_many(vec![(); JOBS])?;
    let seen = std::sync::Arc::new(std::sync::Mutex::new(BTreeMap::<i64, Vec<Instant>>::new()));
    let note = std::sync::Arc::clone(&seen);
    let handler = task.leased(move |_, job| {
        let mut seen = note.lock().map_err(|_| "poisoned")?;
        let attempts = seen.entry(job.id.0).or_default();
        attempts.push(Instant::now());
        if attempts.len() == job.attempt as usize {
            Err::<(), _>("on purpose")
        } else {
            Err("another attempt")
        }
    });
    let worker = Worker::new(&pq).threads(2).serve(handler);
    let control = worker.control();
    std::thread::scope(|threads| -> Outcome {
        let working = threads.spawn(|| worker.run());
        let _abort = AbortOnDrop(&control);
        let started = Instant::now();
        while control.status().report.dead < JOBS as u64 {
            assert!(started.elapsed() < 3 * PATIENCE, "{:?}", control.status());
            std::thread::sleep(Duration::from_millis(20));
        }
        control.stop(StopMode::Finish);
        let report = working.join().map_err(|_| "the worker panicked")??;
        assert_eq!((report.failed, report.dead), (3 * JOBS as u64, JOBS as u64));
        Ok(())
    })?;
    let seen = seen.lock().map_err(|_| "poisoned")?;
    assert_eq!(seen.len(), ids.len());
    for attempts in seen.values() {
        assert_eq!(attempts.len(), 3);
        assert!(attempts.windows(2).all(|pair| pair[1] - pair[0] >= DELAY), "an attempt was early");
    }
    let dead = pq.queue::<()>("work")?.archived(JobState::Dead, None, JOBS)?;
    assert!(dead.iter().all(|dead| dead.attempt == 3 && dead.error.as_deref() == Some("on purpose")));
    Ok(())
}

#[test]
fn stopping_under_load_loses_no_job_and_repeats_none() -> Outcome {
    const JOBS: usize = 4_000;
    for transactional in [true, false] {
        let (database, pq) = setup()?;
        work_task(&pq)?.call_many(vec![Step::Nothing; JOBS])?;
        let queue = pq.queue::<()>("work")?;
        for (n, mode) in [StopMode::Finish, StopMode::Abort].into_iter().cycle().take(12).enumerate() {
            let worker = Worker::new(&pq).threads(4).serve(child::handler(&pq, transactional)?);
            let control = worker.control();
            std::thread::scope(|threads| -> Outcome {
                let working = threads.spawn(|| worker.run());
                let _abort = AbortOnDrop(&control);
                std::thread::sleep(Duration::from_millis(7 * n as u64));
                control.stop(mode);
                working.join().map_err(|_| "the worker panicked")??;
                Ok(())
            })?;
            assert_eq!(queue.counts()?.running, 0, "the worker kept jobs");
        }
        let worker = Worker::new(&pq).threads(4).serve(child::handler(&pq, transactional)?);
        worker.control().stop(StopMode::Drain);
        worker.run()?;
        assert_eq!(queue.counts()?.live(), 0);
        let effects = effects(&database)?;
        assert_eq!(effects.len(), JOBS);
        assert!(
            effects.values().all(|attempts| attempts == &[1]),
            "each job runs once, in its first attempt"
        );
    }
    Ok(())
}

#[test]
fn maintenance_never_overwrites_an_outcome() -> Outcome {
    let (database, pq) = setup()?;
    let queue = pq.queue::<u32>("work")?;
    let store = pq.store();
    // Jobs are settled while their leases expire and maintenance requeues them. Each job is either done or back.
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| -> Outcome {
        let maintaining = threads.spawn(|| -> Result<(), pq_diesel::Error> {
            let mut conn = database.connect().map_err(|_| pq_core::Error::NoConnection)?;
            while !done.load(Ordering::SeqCst) {
                store.maintain(&mut conn, &pq_diesel::Retention::default())?;
            }
            Ok(())
        });
        let mut conn = database.connect()?;
        let stops = StopOnDrop(&done);
        for n in 0..300 {
            queue.put_many([n, n, n])?;
            let jobs = queue.lease(3, Duration::from_micros(500), pq_diesel::Wait::No)?;
            let accepted = conn
                .transaction(|conn| {
                    queue.on(conn).settle(&jobs[n as usize % 3], pq_diesel::Outcome::Complete)
                })
                .is_ok();
            let mut back = 0;
            let started = Instant::now();
            while queue.counts()?.running > 0 {
                assert!(started.elapsed() < PATIENCE);
            }
            while let Some(job) = queue.get(pq_diesel::Wait::No)? {
                assert_eq!(job.data, n);
                back += 1;
            }
            assert_eq!(back, if accepted { 2 } else { 3 });
        }
        drop(stops);
        maintaining.join().map_err(|_| "the maintenance thread panicked")??;
        Ok(())
    })
}
