//! Steps and signals beside other sessions, in other isolation levels and on other databases.

mod common;

use std::time::Duration;

use common::{Outcome, PATIENCE, database, queue, until};
use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use pq_core::store::{Jobs, Keeping, NewStep, Steps};
use pq_diesel::{
    Claim, Context, Error, Job, JobState, OnConflict, Outcome as Ending, Pq, PutOptions, PutOutcome, Queue,
    Settlement, StepKind, StepRecord, Wait, Worker,
};
use pq_testing::Database;
use serde_json::{Value, json};

type Tested<T> = Result<T, Box<dyn std::error::Error>>;

const HOUR: Duration = Duration::from_secs(3_600);

/// Counts the sessions that wait for a lock of another one.
const WAITING: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'";

fn step(position: u32, name: &str) -> NewStep<'_> {
    NewStep { position, kind: StepKind::Step, name, result: None, after: None }
}

fn wait(name: &str) -> NewStep<'_> {
    NewStep { position: 0, kind: StepKind::Waiting, name, result: None, after: Some(HOUR) }
}

/// Begins a transaction whose snapshot is taken at once, if it has only one.
fn begin(conn: &mut PgConnection, isolation: &str) -> Outcome {
    AnsiTransactionManager::begin_transaction(conn)?;
    Ok(conn.batch_execute(&format!(
        "SET TRANSACTION ISOLATION LEVEL {isolation}; SELECT FROM pg_class LIMIT 1"
    ))?)
}

fn number(conn: &mut PgConnection, sql: &str) -> QueryResult<i64> {
    diesel::dsl::sql::<BigInt>(sql).get_result(conn)
}

/// Returns a job that is leased together with another one, so that it is settled in the table of settled jobs.
fn leased(queue: &Queue<Value>) -> Tested<Vec<Job<Value>>> {
    queue.put_many([json!(0), json!(1)])?;
    let jobs = queue.lease(2, PATIENCE, Wait::No)?;
    assert_eq!(jobs.len(), 2);
    Ok(jobs)
}

fn sleep_for_signal(pq: &Pq, job: &Claim) -> Result<Keeping, Error> {
    pq.transaction(|conn| {
        let keeping = pq.store().await_signal(conn, job, &wait("approved"))?;
        if let Keeping::Waits(remaining) = keeping {
            let settlement = Settlement { job, outcome: Ending::snooze(remaining) };
            assert!(pq.store().settle(conn, &[settlement])?.all());
        }
        Ok(keeping)
    })
}

/// Without the lock on the job, the second holder of the job would not find the step of the first one, whose
/// transaction commits after it.
#[test]
fn nobody_settles_a_job_while_a_transaction_keeps_its_step() -> Outcome {
    let database = database()?;
    let queue = queue(&database)?;
    let jobs = leased(&queue)?;
    let (mut open, mut watcher) = (database.connect()?, database.connect()?);
    begin(&mut open, "READ COMMITTED")?;
    let store = Pq::detached();
    assert_eq!(store.store().keep_step(&mut open, &jobs[1], &step(0, "book"))?, Keeping::Kept(None));
    std::thread::scope(|threads| -> Outcome {
        let settling = threads.spawn(|| queue.settle(&jobs[1], Ending::GiveBack));
        until(&mut watcher, WAITING)?;
        AnsiTransactionManager::commit_transaction(&mut open)?;
        Ok(settling.join().map_err(|_| "panicked")??)
    })?;
    // The next holder sees the step. The first one cannot keep another.
    assert_eq!(store.store().keep_step(&mut open, &jobs[1], &step(1, "mail"))?, Keeping::LeaseLost);
    assert_eq!(number(&mut watcher, "SELECT count(*) FROM pq.queue_steps")?, 1);
    Ok(())
}

#[test]
fn a_step_that_waits_for_the_settle_of_its_job_is_refused() -> Outcome {
    let database = database()?;
    let queue = queue(&database)?;
    for isolation in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        let jobs = leased(&queue)?;
        let (mut open, mut late, mut watcher) =
            (database.connect()?, database.connect()?, database.connect()?);
        begin(&mut open, "READ COMMITTED")?;
        let settlement = Settlement { job: &jobs[1], outcome: Ending::snooze(HOUR) };
        assert!(Pq::detached().store().settle(&mut open, &[settlement])?.all());
        begin(&mut late, isolation)?;
        let kept = std::thread::scope(|threads| -> Tested<Result<Keeping, Error>> {
            let (job, late) = (&jobs[1], &mut late);
            let keeping =
                threads.spawn(move || Pq::detached().store().keep_step(late, job, &step(0, "charge")));
            until(&mut watcher, WAITING)?;
            AnsiTransactionManager::commit_transaction(&mut open)?;
            Ok(keeping.join().map_err(|_| "panicked")?)
        })?;
        match kept {
            Ok(kept) => assert_eq!(kept, Keeping::LeaseLost, "{isolation}"),
            Err(error) => {
                assert!(error.is_conflict() && isolation != "READ COMMITTED", "{isolation}: {error}")
            }
        }
        assert_eq!(number(&mut watcher, "SELECT count(*) FROM pq.queue_steps")?, 0, "{isolation}");
        AnsiTransactionManager::rollback_transaction(&mut late)?;
        queue.settle(&jobs[0], Ending::Complete)?;
    }
    Ok(())
}

#[test]
fn a_lease_is_extended_while_a_transaction_keeps_a_step() -> Outcome {
    let database = database()?;
    let queue = queue(&database)?;
    let jobs = leased(&queue)?;
    let mut open = database.connect()?;
    begin(&mut open, "REPEATABLE READ")?;
    queue.extend(&jobs[1], HOUR)?;
    assert_eq!(
        Pq::detached().store().keep_step(&mut open, &jobs[1], &step(0, "book"))?,
        Keeping::Kept(None),
        "a snapshot that is older than an extension"
    );
    queue.extend(&jobs[1], PATIENCE)?;
    // Other jobs of the lease are settled meanwhile.
    queue.settle(&jobs[0], Ending::Complete)?;
    AnsiTransactionManager::commit_transaction(&mut open)?;
    queue.settle(&jobs[1], Ending::Complete)?;
    assert_eq!(number(&mut open, "SELECT count(*) FROM pq.queue_leases")?, 0);
    Ok(())
}

/// The sender's snapshot is older than the job's sleep.
#[test]
fn a_sender_with_an_old_snapshot_conflicts_instead_of_losing_its_signal() -> Outcome {
    for isolation in ["REPEATABLE READ", "SERIALIZABLE"] {
        let database = database()?;
        let queue = queue(&database)?;
        let pq = Pq::connect(database.url())?;
        let id = queue.put(&json!(1))?.id;
        let mut sender = database.connect()?;
        begin(&mut sender, isolation)?;
        let job = queue.lease(1, PATIENCE, Wait::No)?.remove(0);
        assert!(matches!(sleep_for_signal(&pq, &job)?, Keeping::Waits(_)));
        let refused = pq.signal_on(&mut sender, id, "approved", &1).expect_err("a conflict");
        assert!(refused.is_conflict(), "{isolation}: {refused}");
        AnsiTransactionManager::rollback_transaction(&mut sender)?;
        // Again, with a new snapshot.
        begin(&mut sender, isolation)?;
        pq.signal_on(&mut sender, id, "approved", &1)?;
        AnsiTransactionManager::commit_transaction(&mut sender)?;
        assert_eq!(queue.find(id)?.map(|job| job.state), Some(JobState::Ready), "{isolation}");
        assert_eq!(number(&mut sender, "SELECT count(*) FROM pq.queue_steps WHERE position < 0")?, 0);
    }
    Ok(())
}

/// The job looks and sleeps while the sender's transaction is open, which has one snapshot.
#[test]
fn a_signal_of_an_open_transaction_is_not_lost_in_any_isolation_level() -> Outcome {
    for isolation in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        let database = database()?;
        let queue = queue(&database)?;
        let pq = Pq::connect(database.url())?;
        let id = queue.put(&json!(1))?.id;
        let job = queue.lease(1, PATIENCE, Wait::No)?.remove(0);
        let mut sender = database.connect()?;
        begin(&mut sender, isolation)?;
        pq.signal_on(&mut sender, id, "approved", &7)?;
        let Keeping::Waits(remaining) = sleep_for_signal(&pq, &job)? else {
            return Err("delivered early".into());
        };
        assert!(remaining <= Duration::from_secs(1), "{isolation}: {remaining:?}");
        AnsiTransactionManager::commit_transaction(&mut sender)?;
        let job = queue.lease(1, PATIENCE, Wait::For(PATIENCE))?.remove(0);
        let Keeping::Kept(Some(value)) = sleep_for_signal(&pq, &job)? else { return Err("lost".into()) };
        assert_eq!(value.as_str(), "7", "{isolation}");
    }
    Ok(())
}

/// A sender that meets a session which holds the row of the waiting job must wake the job all the same.
#[test]
fn a_sender_waits_for_a_session_that_changes_the_waiting_job() -> Outcome {
    let database = database()?;
    let queue = queue(&database)?;
    let pq = Pq::connect(database.url())?;
    let id = queue.put_with(&json!(1), &pq_diesel::PutOptions::new().unique("one"))?.id;
    let job = queue.lease(1, PATIENCE, Wait::No)?.remove(0);
    assert!(matches!(sleep_for_signal(&pq, &job)?, Keeping::Waits(_)));
    let mut other = database.connect()?;
    begin(&mut other, "READ COMMITTED")?;
    let later = pq_diesel::PutOptions::new()
        .unique_or("one", pq_diesel::OnConflict::Reschedule)
        .schedule_at(2 * HOUR);
    // Deletes the row and inserts another one.
    queue.on(&mut other).put_with(&json!(1), &later)?;
    let mut watcher = database.connect()?;
    std::thread::scope(|threads| -> Outcome {
        let sending = threads.spawn(|| pq.signal(id, "approved", &1));
        until(&mut watcher, WAITING)?;
        AnsiTransactionManager::commit_transaction(&mut other)?;
        Ok(sending.join().map_err(|_| "panicked")??)
    })?;
    assert_eq!(queue.find(id)?.map(|job| job.state), Some(JobState::Ready));
    Ok(())
}

#[test]
fn two_senders_do_not_wait_for_each_other() -> Outcome {
    let database = database()?;
    let queue = queue(&database)?;
    let pq = Pq::connect(database.url())?;
    let ids = [queue.put(&json!(1))?.id, queue.put(&json!(2))?.id];
    let (mut one, mut other) = (database.connect()?, database.connect()?);
    begin(&mut one, "READ COMMITTED")?;
    begin(&mut other, "READ COMMITTED")?;
    for (first, second) in [(0, 1), (1, 0)] {
        pq.signal_on(&mut one, ids[first], "approved", &1)?;
        pq.signal_on(&mut other, ids[second], "approved", &2)?;
    }
    AnsiTransactionManager::commit_transaction(&mut one)?;
    AnsiTransactionManager::commit_transaction(&mut other)?;
    assert_eq!(number(&mut one, "SELECT count(*) FROM pq.queue_signals")?, 4);
    Ok(())
}

/// Runs a step on this connection in a handler, and returns the error.
fn step_on(database: &Database, elsewhere: &Database) -> Tested<String> {
    let pq = Pq::connect(database.url())?;
    let queue = pq.queue::<Value>("apples")?;
    let id = queue.put(&json!(1))?.id;
    let url = elsewhere.url().to_owned();
    let handler = queue.leased(move |context: &Context, _job| {
        let mut conn = PgConnection::establish(&url)?;
        context.step_with(&mut conn, "book", |_| Ok::<_, Box<dyn std::error::Error>>(()))
    });
    Worker::new(&pq).serve(handler).run_until_empty()?;
    let job = queue.find(id)?.ok_or("the job has ended")?;
    assert!(pq.steps(&job)?.is_empty());
    Ok(job.error.ok_or("the job did not fail")?)
}

#[test]
fn a_step_on_another_database_is_refused() -> Outcome {
    let (queues, migrated) = (database()?, database()?);
    let error = step_on(&queues, &migrated)?;
    assert!(
        error.starts_with("cannot run step \"book\" of job 1: its connection does not see the lease"),
        "{error}"
    );
    let empty = pq_testing::Server::shared()?.database()?;
    let error = step_on(&queues, &empty)?;
    assert!(error.contains("it does not exist or is out of date"), "{error}");
    Ok(())
}

#[test]
fn a_job_that_got_the_id_of_another_one_has_none_of_its_steps() -> Outcome {
    let database = database()?;
    let queue = queue(&database)?;
    let pq = Pq::connect(database.url())?;
    let mut conn = database.connect()?;
    queue.put(&json!("old"))?;
    let old = queue.lease(1, PATIENCE, Wait::No)?.remove(0);
    assert_eq!(pq.store().keep_step(&mut conn, &old, &step(0, "charge"))?, Keeping::Kept(None));
    pq.signal(old.id, "approved", &1)?;
    conn.batch_execute("ALTER SEQUENCE pq.queue_id_seq RESTART")?;
    let new = queue.put(&json!("new"))?.id;
    assert_eq!(new, old.id);
    let new = queue.lease(1, PATIENCE, Wait::No)?.remove(0);
    assert!(pq.steps(&new)?.is_empty());
    assert_eq!(pq.store().keep_step(&mut conn, &new, &step(0, "load"))?, Keeping::Kept(None));
    queue.settle(&new, Ending::GiveBack)?;
    // The old one returns under a new id, with its step and its signal.
    queue.settle(&old, Ending::GiveBack)?;
    let jobs = queue.lease(2, PATIENCE, Wait::No)?;
    let labels = |job: &Job<Value>| -> Tested<Vec<String>> {
        Ok(pq.steps(job)?.iter().map(StepRecord::label).collect())
    };
    for job in &jobs {
        let (kept, is_old) = (labels(job)?, job.data == "old");
        assert_eq!(kept, if is_old { ["charge"] } else { ["load"] });
        let signals = format!("SELECT count(*) FROM pq.queue_signals WHERE job = {}", job.id);
        assert_eq!(number(&mut conn, &signals)?, i64::from(is_old));
    }
    assert_eq!(jobs.len(), 2);
    Ok(())
}

#[test]
fn a_job_of_five_steps_costs_six_commits() -> Outcome {
    let database = database()?;
    let pq = Pq::connect(database.url())?;
    let queue = pq.queue::<Value>("apples")?;
    let mut conn = database.connect()?;
    let mut commits = Vec::new();
    // On a slow machine a worker gives back what it has not begun, and takes smaller batches.
    while commits.len() < 10 && !commits.iter().any(|commits| (250..=300).contains(commits)) {
        queue.put_many((0..50).map(|n| json!(n)))?;
        let handler = queue.leased(|context: &Context, _job| {
            for _ in 0..5 {
                context.step("work", || Ok::<_, Error>(()))?;
            }
            Ok::<_, Error>(())
        });
        // Only transactions that write have an id.
        let next = "SELECT pg_current_xact_id()::text::bigint";
        let before = number(&mut conn, next)?;
        let worker = Worker::new(&pq).maintain_every(Duration::MAX).heartbeat_every(None);
        assert_eq!(worker.serve(handler).run_until_empty()?.done, 50);
        commits.push(number(&mut conn, next)? - before - 1);
    }
    assert!(
        commits.last().is_some_and(|commits| (250..=300).contains(commits)),
        "{commits:?} commits for 50 jobs"
    );
    Ok(())
}

#[test]
fn maintenance_goes_through_the_steps_of_many_jobs_in_parts() -> Outcome {
    let database = database()?;
    let pq = Pq::connect(database.url())?;
    let mut conn = database.connect()?;
    conn.batch_execute(
        "INSERT INTO pq.queue (id, q_name, data, enqueued_at) SELECT n, 'apples', '1', '2026-01-01' FROM generate_series(1, 12000) AS n;
         INSERT INTO pq.queue_steps (job, enqueued_at, position, kind, name)
         SELECT n, '2026-01-01', 0, 'step', 'a' FROM generate_series(1, 25000) AS n;
         INSERT INTO pq.queue_signals (job, enqueued_at, name, value)
         SELECT n, '2026-01-01', 'a', '1' FROM generate_series(1, 25000) AS n",
    )?;
    for left in [25_000, 17_000, 12_000] {
        pq.maintain(&pq_diesel::Retention::default())?;
        assert!(number(&mut conn, "SELECT count(*) FROM pq.queue_steps")? <= left);
    }
    let left = "SELECT count(*) FROM pq.queue_signals JOIN pq.queue_steps USING (job) WHERE job <= 12000";
    assert_eq!(number(&mut conn, left)?, 12_000);
    assert_eq!(number(&mut conn, "SELECT count(*) FROM pq.queue_signals")?, 12_000);
    Ok(())
}

/// The sender's transaction holds the row of the job, as one that runs it would. The new payload must not be dropped.
#[test]
fn a_put_that_replaces_a_signalled_job_waits_for_the_sender() -> Outcome {
    for end in ["COMMIT", "ROLLBACK"] {
        let database = database()?;
        let (queue, mut conn) = (queue(&database)?, database.connect()?);
        let pq = Pq::connect(database.url())?;
        let unique = PutOptions::new().unique_or("k", OnConflict::Replace);
        queue.put_with(&json!(1), &unique)?;
        let job = queue.lease(1, PATIENCE, Wait::No)?.remove(0);
        assert!(matches!(sleep_for_signal(&pq, &job)?, Keeping::Waits(_)));
        let put = std::thread::scope(|threads| -> Tested<_> {
            let mut sender = database.connect()?;
            sender.batch_execute("BEGIN")?;
            pq.signal_on(&mut sender, job.id, "approved", &true)?;
            let putting = threads.spawn(|| queue.put_with(&json!(2), &unique));
            while !putting.is_finished() && number(&mut conn, WAITING)? == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
            sender.batch_execute(end)?;
            Ok(putting.join().map_err(|_| "the put panicked")??)
        })?;
        assert_eq!((put.id, put.outcome), (job.id, PutOutcome::Replaced), "{end}");
        assert_eq!(queue.get(Wait::No)?.map(|job| job.data), Some(json!(2)), "{end}");
    }
    Ok(())
}
