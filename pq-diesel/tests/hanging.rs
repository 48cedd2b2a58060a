//! Connections that hang: their server process is stopped, while the server and all other connections are healthy.

mod common;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Outcome, database, put, until};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer};
use pq_diesel::{Error, Pq, Queue, StopMode, Wait, Worker};
use pq_testing::{Database, Server};
use rustix::process::{Pid, Signal, kill_process};

/// The call timeout of most tests. A call is stalled after a hundredth of it.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);

/// The time within which a call that does not hang must end on a busy machine. It is less than [`CALL_TIMEOUT`].
const SOON: Duration = Duration::from_secs(3);

/// Returns `false` if the processes of the server cannot be stopped from here.
#[allow(clippy::print_stdout, reason = "the reader must know that nothing was tested")]
fn can_stop_processes() -> Result<bool, Box<dyn std::error::Error>> {
    let is_local = Server::shared()?.pid().is_some();
    if !is_local {
        println!("skipped, because the processes of the server cannot be stopped here");
    }
    Ok(is_local)
}

/// Waits until every job has ended.
const NOTHING_LEFT: &str =
    "SELECT (NOT EXISTS (SELECT FROM pq.queue) AND NOT EXISTS (SELECT FROM pq.queue_leases))::int::bigint";

fn handle(database: &Database) -> Result<Pq, Error> {
    Pq::builder()
        .url(database.url())
        .call_timeout(CALL_TIMEOUT)
        .poll_interval(Duration::from_millis(100))
        .build()
}

/// A stopped server process, which continues when it is dropped.
struct Stopped(Pid);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// Stops the server processes that this query selects, other than those of the connection itself.
fn stop(conn: &mut PgConnection, which: &str) -> Result<Vec<Stopped>, Box<dyn std::error::Error>> {
    let sql = format!(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
            AND backend_type = 'client backend' AND ({which})"
    );
    let pids: Vec<i32> = diesel::dsl::sql::<Integer>(&sql).load(conn)?;
    let stop = |pid: i32| -> Result<Stopped, Box<dyn std::error::Error>> {
        let pid = Pid::from_raw(pid).ok_or("no process")?;
        kill_process(pid, Signal::STOP)?;
        Ok(Stopped(pid))
    };
    pids.into_iter().map(stop).collect()
}

/// Opens this many connections of the handle's pool and stops their server processes. The next calls get them.
fn hang_pool(
    pq: &Pq,
    database: &Database,
    connections: usize,
) -> Result<Vec<Stopped>, Box<dyn std::error::Error>> {
    let (mut conn, all) = (database.connect()?, Barrier::new(connections));
    let pids: Vec<i32> = std::thread::scope(|threads| {
        let own_pid = || {
            pq.transaction(|conn| -> Result<i32, Error> {
                let pid = diesel::dsl::sql::<Integer>("SELECT pg_backend_pid()").get_result(conn);
                all.wait();
                pid.map_err(Error::from)
            })
        };
        let calls: Vec<_> = (0..connections).map(|_| threads.spawn(own_pid)).collect();
        let pids =
            calls.into_iter().map(|call| call.join().map_err(|_| "a call panicked")?.map_err(Into::into));
        pids.collect::<Result<_, Box<dyn std::error::Error>>>()
    })?;
    let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
    stop(&mut conn, &format!("pid IN ({})", pids.join(",")))
}

/// Puts from two threads on connections that hang, and calls `meanwhile`. Returns the errors of the two puts and how
/// long they took.
fn beside_hung_puts(
    queue: &Queue<u32>,
    meanwhile: impl FnOnce() -> Outcome,
) -> Result<Vec<(Error, Duration)>, Box<dyn std::error::Error>> {
    let put = || {
        let begun = Instant::now();
        (queue.put(&0).err(), begun.elapsed())
    };
    std::thread::scope(|threads| {
        let puts = [threads.spawn(put), threads.spawn(put)];
        // Until both are inside of libpq.
        std::thread::sleep(CALL_TIMEOUT / 10);
        assert!(puts.iter().all(|put| !put.is_finished()), "a put does not hang");
        meanwhile()?;
        let hung = puts.into_iter().map(|put| {
            let (error, took) = put.join().map_err(|_| "a put panicked")?;
            Ok((error.ok_or("a put on a connection that hangs succeeded")?, took))
        });
        hung.collect()
    })
}

#[test]
fn puts_that_hang_stop_no_other_put_and_end_at_their_deadline() -> Outcome {
    if !can_stop_processes()? {
        return Ok(());
    }
    let database = database()?;
    let pq = handle(&database)?;
    let queue = pq.queue::<u32>("apples")?;
    let stopped = hang_pool(&pq, &database, 2)?;
    let hung = beside_hung_puts(&queue, || {
        let begun = Instant::now();
        for n in 0..10 {
            queue.put(&n)?;
        }
        assert!(begun.elapsed() < SOON, "the puts took {:?}", begun.elapsed());
        Ok(())
    })?;
    for (error, took) in hung {
        assert!(error.is_outcome_unknown(), "{error}");
        assert!(error.to_string().contains("did not answer within 4s"), "{error}");
        assert!((CALL_TIMEOUT..CALL_TIMEOUT + SOON).contains(&took), "it took {took:?}");
    }
    drop(stopped);
    assert!(queue.counts()?.ready >= 10);
    Ok(())
}

#[test]
fn a_wait_ends_in_time_beside_gets_that_hang() -> Outcome {
    if !can_stop_processes()? {
        return Ok(());
    }
    let database = database()?;
    let pq = handle(&database)?;
    let queue = pq.queue::<u32>("apples")?;
    let _stopped = hang_pool(&pq, &database, 2)?;
    std::thread::scope(|threads| {
        let gets: Vec<_> = (0..2).map(|_| threads.spawn(|| queue.get(Wait::No))).collect();
        std::thread::sleep(CALL_TIMEOUT / 10);
        assert!(gets.iter().all(|get| !get.is_finished()), "a get does not hang");
        let begun = Instant::now();
        assert_eq!(queue.get(Wait::For(Duration::from_secs(1)))?.map(|job| job.data), None);
        assert!(begun.elapsed() < SOON, "the wait took {:?}", begun.elapsed());
        for get in gets {
            let error = get.join().map_err(|_| "a get panicked")?.err().ok_or("it succeeded")?;
            assert!(error.is_unavailable() && error.to_string().contains("did not answer"), "{error}");
        }
        Ok(())
    })
}

/// A connection that has been idle is checked. If the check is not answered, the call gets another one, and the other
/// idle connections are not checked one after the other.
#[test]
fn idle_connections_that_hang_delay_a_call_for_one_check() -> Outcome {
    if !can_stop_processes()? {
        return Ok(());
    }
    let database = database()?;
    let pq = handle(&database)?;
    let queue = pq.queue::<u32>("apples")?;
    let _stopped = hang_pool(&pq, &database, 6)?;
    std::thread::sleep(Duration::from_millis(1_100));
    let begun = Instant::now();
    queue.put(&1)?;
    assert!(begun.elapsed() < Duration::from_secs(2) + SOON, "the put took {:?}", begun.elapsed());
    Ok(())
}

#[test]
fn a_listener_that_hangs_delays_no_queue_and_no_stop() -> Outcome {
    if !can_stop_processes()? {
        return Ok(());
    }
    let database = database()?;
    let pq = handle(&database)?;
    pq.queue::<u32>("first")?.get(Wait::For(Duration::from_millis(1)))?;
    let mut conn = database.connect()?;
    until(&mut conn, common::LISTENING)?;
    let stopped = stop(&mut conn, "query LIKE 'LISTEN%'")?;
    assert_eq!(stopped.len(), 1, "the handle does not listen");

    let begun = Instant::now();
    assert_eq!(
        pq.queue::<u32>("second")?.get(Wait::For(Duration::from_millis(500)))?.map(|job| job.data),
        None
    );
    assert!(begun.elapsed() < SOON, "the wait took {:?}", begun.elapsed());

    let queues: Vec<Queue<u32>> = (0..6).map(|n| pq.queue(format!("queue {n}"))).collect::<Result<_, _>>()?;
    let mut worker = Worker::new(&pq).threads(2);
    for queue in &queues {
        worker = worker.serve(queue.leased(|_, _| Ok::<_, Error>(())));
    }
    let control = worker.control();
    std::thread::scope(|threads| {
        let working = threads.spawn(|| worker.run());
        let _abort = AbortOnDrop(&control);
        let begun = Instant::now();
        for queue in &queues {
            queue.put(&1)?;
        }
        until(&mut conn, NOTHING_LEFT)?;
        assert!(begun.elapsed() < SOON, "the jobs took {:?}", begun.elapsed());
        let begun = Instant::now();
        control.stop(StopMode::Abort);
        working.join().map_err(|_| "the worker panicked")??;
        assert!(begun.elapsed() < SOON, "the stop took {:?}", begun.elapsed());
        Ok(())
    })
}

struct AbortOnDrop<'c>(&'c pq_diesel::Control);

impl Drop for AbortOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop(StopMode::Abort);
    }
}

/// The idle threads of a worker wait for the poll of one of them. If it hangs, another one polls.
#[test]
fn a_poll_that_hangs_stops_no_other_thread() -> Outcome {
    if !can_stop_processes()? {
        return Ok(());
    }
    let database = database()?;
    let timeout = Duration::from_secs(10);
    let pq = Pq::builder()
        .url(database.url())
        .call_timeout(timeout)
        .poll_interval(Duration::from_millis(100))
        .build()?;
    let queue = pq.queue::<u32>("apples")?;
    let worker = Worker::new(&pq)
        .threads(4)
        .heartbeat_every(None)
        .maintain_every(Duration::MAX)
        .serve(queue.transactional(|_, _| Ok::<_, Error>(())));
    let control = worker.control();
    let mut conn = database.connect()?;
    std::thread::scope(|threads| {
        let working = threads.spawn(|| worker.run());
        let _abort = AbortOnDrop(&control);
        put(&mut conn, "apples")?;
        until(&mut conn, NOTHING_LEFT)?;
        // Only the thread that has the turn to wait polls now. Each thread polls once for itself at its start.
        let one_polls = "SELECT (count(*) < 2)::int::bigint FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid() AND query NOT LIKE 'LISTEN%'
                AND state_change > clock_timestamp() - interval '1 s'";
        until(&mut conn, one_polls)?;
        let stopped = stop(&mut conn, "query NOT LIKE 'LISTEN%'")?;
        assert!(!stopped.is_empty());
        std::thread::sleep(Duration::from_millis(300));
        let begun = Instant::now();
        put(&mut conn, "apples")?;
        until(&mut conn, NOTHING_LEFT)?;
        assert!(begun.elapsed() < timeout / 2 + SOON / 3, "the job took {:?}", begun.elapsed());
        control.stop(StopMode::Abort);
        working.join().map_err(|_| "the worker panicked")??;
        assert!(begun.elapsed() < timeout + SOON, "the stop took {:?}", begun.elapsed());
        Ok(())
    })
}

/// A lock makes the maintenance of the worker hang. Its leases are extended all the same.
#[test]
fn maintenance_that_hangs_costs_no_lease() -> Outcome {
    const LEASE: Duration = Duration::from_secs(2);
    let database = database()?;
    let pq = Pq::builder().url(database.url()).build()?;
    let queue = pq.queue::<u32>("apples")?;
    queue.put(&1)?;
    static LOST: AtomicBool = AtomicBool::new(false);
    static GO_ON: AtomicBool = AtomicBool::new(false);
    let handler = queue.leased(|context, _| {
        while !GO_ON.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        LOST.store(context.is_lease_lost(), Ordering::SeqCst);
        Ok::<_, Error>(())
    });
    let worker = Worker::new(&pq).lease(LEASE).maintain_every(Duration::from_millis(20)).serve(handler);
    let control = worker.control();
    let (lock, mut conn) = (database.connect()?, database.connect()?);
    std::thread::scope(|threads| {
        let working = threads.spawn(|| worker.run_jobs(1));
        // Dropped if anything fails, which releases the lock and lets the worker end.
        let mut lock = lock;
        let _go_on = common::StopOnDrop(&GO_ON);
        let _abort = AbortOnDrop(&control);
        until(&mut conn, "SELECT count(*) FROM pq.queue_leases")?;
        lock.batch_execute("BEGIN; LOCK TABLE pq.queue_settled")?;
        until(
            &mut conn,
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )?;
        std::thread::sleep(LEASE + LEASE / 2);
        let live: i64 = diesel::dsl::sql::<BigInt>(
            "SELECT count(*) FROM pq.queue_leases WHERE lease_until > clock_timestamp()",
        )
        .get_result(&mut conn)?;
        assert_eq!(live, 1, "the lease was not extended");
        lock.batch_execute("ROLLBACK")?;
        GO_ON.store(true, Ordering::SeqCst);
        let report = working.join().map_err(|_| "the worker panicked")??;
        assert_eq!((report.done, report.lost, LOST.load(Ordering::SeqCst)), (1, 0, false));
        Ok(())
    })
}

/// The limit applies to the library's own statements and not to those of the application, and to the time that the
/// server takes and not to that of an iterator.
#[test]
fn an_application_may_take_its_time() -> Outcome {
    const LIMIT: Duration = Duration::from_millis(300);
    let database = database()?;
    let pq = Pq::builder().url(database.url()).listen(false).call_timeout(LIMIT).build()?;
    let queue = pq.queue::<u32>("apples")?;
    let sleep = |conn: &mut PgConnection| Ok::<_, Error>(conn.batch_execute("SELECT pg_sleep(1)")?);
    pq.transaction(sleep)?;
    queue.put(&1)?;
    assert!(queue.get_with(Wait::No, |conn, _| sleep(conn))?.is_some());
    queue.put(&2)?;
    let handler = queue.transactional(move |conn, _| sleep(conn));
    assert_eq!(Worker::new(&pq).serve(handler).run_until_empty()?.done, 1);
    let slow = (0..3_000).inspect(|n| {
        if n % 1_000 == 0 {
            std::thread::sleep(2 * LIMIT);
        }
    });
    assert_eq!(queue.put_all(slow)?, 3_000);

    let mut lock = database.connect()?;
    lock.batch_execute("BEGIN; LOCK TABLE pq.queue")?;
    let error = queue.put(&3).err().ok_or("a put waits without a limit")?;
    assert!(error.is_outcome_unknown(), "{error}");
    Ok(())
}
