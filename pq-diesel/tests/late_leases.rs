//! Leases whose answer arrives late or not at all. A trigger on the leases delays the server's answer.

mod common;

use std::sync::mpsc::channel;
use std::time::Duration;

use common::{Outcome, PATIENCE, close_gate, database, open_gate, until};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Bool;
use pq_diesel::{Error, Pq, StopMode, Worker};
use pq_testing::Database;

const LEASE: Duration = Duration::from_secs(1);

fn handle(database: &Database) -> Result<Pq, Error> {
    Pq::builder().url(database.url()).pool_size(6).build()
}

/// The lease begins when the server starts the take, and has expired when the answer arrives.
#[test]
fn a_job_does_not_begin_under_a_lease_that_expired_during_the_take() -> Outcome {
    let database = database()?;
    let pq = handle(&database)?;
    database.connect()?.batch_execute(
        "CREATE FUNCTION delay() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             PERFORM pg_sleep(1.5);
             RETURN NULL;
         END $$;
         CREATE TRIGGER delay AFTER INSERT ON pq.queue_leases FOR EACH ROW EXECUTE FUNCTION delay()",
    )?;
    let task = pq.queue::<()>("apples")?.task::<()>("eat");
    task.call(&())?;
    let (sees, seen) = channel();
    let handler = task.leased(move |context, _| {
        let is_valid: Result<bool, Error> = context.transaction(|conn| {
            let sql = "SELECT bool_and(lease_until > clock_timestamp()) FROM pq.queue_leases";
            Ok(diesel::dsl::sql::<Bool>(sql).get_result(conn)?)
        });
        sees.send((is_valid, context.is_lease_lost())).map_err(|error| error.to_string())
    });
    // No other worker returns the job, so that the handler can look.
    let worker = Worker::new(&pq).lease(LEASE).maintain_every(Duration::MAX).serve(handler);
    assert_eq!(worker.run_jobs(1)?.done, 1);
    let (is_valid, is_lost) = seen.recv()?;
    assert!(is_valid?, "the job was begun under a lease that had expired");
    assert!(!is_lost);
    Ok(())
}

/// Each call that extends the lease hangs before it locks the row, and the worker learns nothing.
#[test]
fn a_handler_learns_by_the_clock_that_its_lease_could_not_be_extended() -> Outcome {
    let database = database()?;
    let pq = handle(&database)?;
    let (mut gate, mut watcher) = (database.connect()?, database.connect()?);
    close_gate(&mut gate, &["CREATE TRIGGER wait BEFORE UPDATE ON pq.queue_leases FOR EACH STATEMENT"])?;
    let task = pq.queue::<()>("apples")?.task::<()>("eat");
    task.call(&())?;
    let (sees, seen) = channel();
    let handler = task.leased(move |context, _| {
        let begun = std::time::Instant::now();
        while !context.should_stop() {
            if begun.elapsed() > PATIENCE {
                return Err("the handler was not told".to_owned());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let told = (context.is_lease_lost(), context.is_aborting());
        sees.send(told).map_err(|error| error.to_string())
    });
    let worker =
        Worker::new(&pq).lease(LEASE).maintain_every(Duration::MAX).heartbeat_every(None).serve(handler);
    let control = worker.control();
    std::thread::scope(|threads| -> Outcome {
        // If this fails, the gate is closed, and the worker ends.
        let mut gate = gate;
        let works = threads.spawn(|| worker.run_jobs(1));
        let is_hanging = until(
            &mut watcher,
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND query LIKE '%lease_until%'
                AND datname = current_database()",
        );
        let told = seen.recv_timeout(PATIENCE);
        open_gate(&mut gate)?;
        control.stop(StopMode::Abort);
        let report = works.join().map_err(|_| "the worker panicked")??;
        is_hanging?;
        assert_eq!(told?, (true, false));
        // Nobody took the job meanwhile, so the outcome is accepted.
        assert_eq!(report.done, 1);
        Ok(())
    })
}

/// The transaction of the handler holds the only job of the lease for longer than the lease.
#[test]
fn a_handler_that_settles_its_job_in_a_long_transaction_does_not_lose_the_lease() -> Outcome {
    let database = database()?;
    let pq = handle(&database)?;
    let task = pq.queue::<()>("apples")?.task::<()>("eat");
    task.call(&())?;
    let (sees, seen) = channel();
    let handler = task.leased(move |context, _| {
        let told = context.transaction(|conn| {
            context.complete_with(conn)?;
            std::thread::sleep(LEASE * 5 / 2);
            Ok::<_, Error>(context.is_lease_lost())
        });
        sees.send(told).map_err(|error| error.to_string())
    });
    let report = Worker::new(&pq).lease(LEASE).serve(handler).run_jobs(1)?;
    assert!(!seen.recv()??, "the handler was told that its lease is lost while it settled the job");
    assert_eq!((report.done, report.lost), (1, 0));
    Ok(())
}
