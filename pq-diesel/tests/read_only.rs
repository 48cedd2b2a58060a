//! A server that refuses changes.

mod common;

use std::time::Duration;

use diesel::connection::SimpleConnection;
use pq_diesel::doctor::{Examination, Level};
use pq_diesel::{Error, Pq, PutOptions, Queue, StopMode, Wait, Worker};
use serde_json::{Value, json};

use self::common::*;

/// Makes the transactions of new connections read-only, as they are on a standby.
fn read_only() -> Result<(pq_testing::Database, Pq, Queue<Value>), Box<dyn std::error::Error>> {
    let database = database()?;
    let name = database.name();
    database
        .connect()?
        .batch_execute(&format!("ALTER DATABASE {name} SET default_transaction_read_only TO on"))?;
    let pq = Pq::builder().url(database.url()).build()?;
    let queue = pq.queue("apples")?;
    Ok((database, pq, queue))
}

#[test]
fn changes_are_refused_and_their_outcome_is_known() -> Outcome {
    let (_database, pq, queue) = read_only()?;
    let unique = PutOptions::new().unique("one");
    let many = vec![json!(1); 3_000];
    let refused = [
        queue.put(&json!(1)).map(drop),
        queue.put_many(&many).map(drop),
        queue.put_with(&json!(1), &unique).map(drop),
        queue.get(Wait::No).map(drop),
        queue.lease(1, PATIENCE, Wait::No).map(drop),
        queue.transaction(|conn| queue.on(conn).put(&json!(1)).map(drop)),
        queue.pause().map(drop),
    ];
    for (call, refused) in refused.iter().enumerate() {
        assert!(matches!(refused, Err(Error::ReadOnly(_))), "call {call}: {refused:?}");
    }
    assert_eq!(queue.counts()?.ready, 0, "reading works");
    assert!(pq.workers()?.is_empty());
    Ok(())
}

#[test]
fn a_burst_ends_with_the_error_and_another_worker_waits() -> Outcome {
    let (_database, pq, queue) = read_only()?;
    let worker =
        |queue: &Queue<Value>| Worker::new(&pq).threads(2).serve(queue.leased(|_, _| Ok::<_, Error>(())));
    let ended = worker(&queue).run_until_empty();
    assert!(matches!(ended, Err(Error::ReadOnly(_))), "{ended:?}");
    let waits = worker(&queue);
    let control = waits.control();
    std::thread::scope(|threads| -> Outcome {
        let runs = threads.spawn(move || waits.run());
        std::thread::sleep(Duration::from_millis(100));
        assert!(!runs.is_finished(), "the server may become the primary");
        control.stop(StopMode::Finish);
        runs.join().map_err(|_| "the worker panicked")??;
        Ok(())
    })
}

#[test]
fn the_doctor_reports_what_can_be_read() -> Outcome {
    let (_database, pq, _queue) = read_only()?;
    let findings = pq.examine(&Examination::new())?;
    let made = findings.iter().filter(|finding| finding.level != Level::Skipped).count();
    let skipped: Vec<_> = findings
        .iter()
        .filter(|finding| finding.level == Level::Skipped)
        .map(|finding| finding.check)
        .collect();
    assert!(made >= 8 && skipped.contains(&"catalog"), "{findings:?}");
    Ok(())
}
