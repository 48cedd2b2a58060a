//! A worker loop that takes a job and writes its result in one transaction.
//!
//! Two threads share one handle. The first attempt of one job fails: its result is rolled back, and the job is ready
//! again at once. The loops end when the main thread cancels their token.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example shows what it does")]

use std::sync::atomic::{AtomicBool, Ordering};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use pq_diesel::{CancellationToken, Error, Pq, Queue, Settings, Wait};

mod tables {
    diesel::table! {
        squares (number) {
            number -> BigInt,
            square -> BigInt,
        }
    }
}
use tables::squares;

static FAILED_ONCE: AtomicBool = AtomicBool::new(false);

/// Runs one job, on the connection whose transaction holds it.
fn square(conn: &mut PgConnection, number: i64) -> Result<(), Error> {
    diesel::insert_into(squares::table)
        .values((squares::number.eq(number), squares::square.eq(number * number)))
        .execute(conn)?;
    if number == 7 && !FAILED_ONCE.swap(true, Ordering::SeqCst) {
        return Err(diesel::result::Error::RollbackTransaction.into());
    }
    Ok(())
}

fn work(queue: &Queue<i64>) -> Result<(), Error> {
    loop {
        match queue.get_with(Wait::Forever, |conn, job| square(conn, job.data)) {
            Ok(_) => {}
            Err(error) if error.is_stopped() => return Ok(()),
            Err(error) => eprintln!("a job failed and was requeued: {error}"),
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pq = Pq::connect(Settings::from_env().conninfo())?;
    pq.migrate()?;
    let mut conn = PgConnection::establish(Settings::from_env().conninfo())?;
    // The number is not unique, so that a job that ran twice is noticed.
    conn.batch_execute(
        "DROP TABLE IF EXISTS squares; CREATE TABLE squares (number bigint NOT NULL, square bigint NOT NULL)",
    )?;

    let stop = CancellationToken::new();
    let queue = pq.queue::<i64>("numbers")?.with_cancellation_token(&stop);
    queue.clear()?;
    queue.put_many((1..=100).collect::<Vec<i64>>())?;

    let results = std::thread::scope(|threads| {
        let workers: Vec<_> = (0..2).map(|_| threads.spawn(|| work(&queue))).collect();
        while squares::table.count().get_result::<i64>(&mut conn)? < 100 {
            std::thread::yield_now();
        }
        stop.cancel();
        for worker in workers {
            worker.join().map_err(|_| "a worker panicked")??;
        }
        Ok::<i64, Box<dyn std::error::Error>>(squares::table.count().get_result(&mut conn)?)
    })?;
    println!("100 jobs, {results} results, {} jobs left", queue.counts()?.live());
    assert_eq!((results, queue.counts()?.live()), (100, 0));
    conn.batch_execute("DROP TABLE squares")?;
    Ok(())
}
