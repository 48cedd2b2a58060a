//! What becomes of the jobs of asynchronous handlers: outcomes, lost leases, and transactions that are not ended.

#[path = "../../pq-diesel/tests/common/migrated.rs"]
mod migrated;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use diesel::sql_types::BigInt;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use pq_diesel_async::{Backoff, Error, Failure, JobState, Outcome, Pq, Retention, Wait, Worker};
use pq_testing::Database;
use tokio::sync::Notify;

use self::migrated::migrated;

type TestResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

async fn fresh() -> (Database, Pq, AsyncPgConnection) {
    let database = migrated();
    let pq = Pq::builder().url(database.url()).build().expect("a handle");
    let conn = AsyncPgConnection::establish(database.url()).await.expect("a connection");
    (database, pq, conn)
}

async fn number(conn: &mut AsyncPgConnection, sql: &str) -> i64 {
    diesel::dsl::sql::<BigInt>(sql).get_result(conn).await.expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transactional_handler_follows_the_rules_of_its_task() -> TestResult {
    let (_database, pq, mut conn) = fresh().await;
    conn.batch_execute("CREATE TABLE written (what text)").await?;
    let queue = pq.queue("work")?;
    let task = queue
        .task::<String>("write")
        .keep_history(true)
        .max_retries(1)
        .backoff(Backoff::fixed(Duration::ZERO));
    task.call_many(["complete", "undo", "retry"].map(str::to_owned)).await?;
    let handler = task.transactional_async(async |conn, job| {
        diesel::sql_query("INSERT INTO written VALUES ($1)")
            .bind::<diesel::sql_types::Text, _>(&job.data)
            .execute(conn)
            .await?;
        Ok::<_, diesel::result::Error>(match job.data.as_str() {
            "undo" => Outcome::cancel("undone").rolled_back(),
            "retry" => Outcome::retry(Duration::ZERO, "not yet"),
            _ => Outcome::Complete,
        })
    });
    let run = Worker::new(&pq).serve(handler).run_until_empty();
    let report = tokio::time::timeout(Duration::from_secs(30), run).await??;
    assert_eq!((report.done, report.cancelled, report.dead), (1, 1, 1), "{report:?}");
    assert_eq!(queue.archived(JobState::Done, 9).await?.len(), 1, "the history of completed jobs is kept");
    assert_eq!(queue.archived(JobState::Dead, 9).await?.len(), 1, "a retry is bounded by the task's retries");
    assert_eq!(number(&mut conn, "SELECT count(*) FROM written WHERE what = 'undo'").await, 0);
    assert_eq!(number(&mut conn, "SELECT count(*) FROM written WHERE what = 'complete'").await, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_a_lost_lease_run_beside_no_other() -> TestResult {
    const JOBS: usize = 4;
    let (_database, pq, _conn) = fresh().await;
    let task = pq.queue("work")?.task::<usize>("run");
    task.call_many(0..JOBS).await?;
    // The worker that took all of them has died.
    let taken =
        pq.queue::<serde_json::Value>("work")?.lease(JOBS, Duration::from_millis(20), Wait::No).await?;
    assert_eq!(taken.len(), JOBS);
    tokio::time::sleep(Duration::from_millis(50)).await;
    pq.maintain(&Retention::default()).await?;
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let handler = task.leased_async(move |_context, _job| {
        let (running, most) = (Arc::clone(&running), Arc::clone(&most));
        async move {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(100)).await;
            running.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, Error>(())
        }
    });
    let run = Worker::new(&pq).serve(handler).concurrency(50).run_until_empty();
    let report = tokio::time::timeout(Duration::from_secs(30), run).await??;
    assert_eq!(report.done, JOBS as u64, "{report:?}");
    assert_eq!(
        seen.as_ref().load(Ordering::SeqCst),
        1,
        "a job that may kill the worker runs beside no other"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_is_reported_when_the_next_attempt_begins() -> TestResult {
    let (_database, pq, _conn) = fresh().await;
    let queue = pq.queue("work")?;
    for transactional in [false, true] {
        let task = queue.task::<u8>("run");
        task.call(&1).await?;
        let calls = pq.queue::<serde_json::Value>("work")?;
        assert_eq!(calls.lease(1, Duration::ZERO, Wait::No).await?.len(), 1);
        pq.maintain(&Retention::default()).await?;
        let handler = if transactional {
            task.transactional_async(async |_conn, _job| Ok::<_, Error>(()))
        } else {
            task.leased_async(async |_context, _job| Ok::<_, Error>(()))
        };
        let (sender, receiver) = std::sync::mpsc::channel();
        let worker = Worker::new(&pq).serve(handler).with(|worker| {
            worker.on_failure(move |_, failure, is_last| {
                let _ = sender.send((failure.clone(), is_last));
            })
        });
        let report = tokio::time::timeout(Duration::from_secs(30), worker.run_until_empty()).await??;
        assert_eq!(report.done, 1, "{report:?}");
        let reported: Vec<_> = receiver.iter().collect();
        assert!(matches!(&reported[..], [(Failure::Crashed { times: 1 }, false)]), "{reported:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_writes_of_a_nested_transaction_that_was_dropped_are_not_committed() -> TestResult {
    let (_database, pq, mut conn) = fresh().await;
    conn.batch_execute("CREATE TABLE written (what text)").await?;
    let ended = pq
        .transaction(async |conn| {
            let nested = conn.transaction::<(), diesel::result::Error, _>(async |conn| {
                conn.batch_execute("INSERT INTO written VALUES ('in part')").await?;
                std::future::pending().await
            });
            assert!(tokio::time::timeout(Duration::from_millis(300), nested).await.is_err());
            Ok::<_, Error>(())
        })
        .await;
    assert!(ended.is_err(), "the transaction cannot be committed");
    assert_eq!(number(&mut conn, "SELECT count(*) FROM written").await, 0);
    pq.now().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_function_that_makes_a_future_runs_in_the_runtime() -> TestResult {
    let (_database, pq, _conn) = fresh().await;
    let task = pq.queue("work")?.task::<()>("sleep");
    task.call(&()).await?;
    let woken = Arc::new(Notify::new());
    let wake = Arc::clone(&woken);
    let handler = task.leased_async(move |_context, _job| {
        let sleep = tokio::time::sleep(Duration::from_millis(10));
        let wake = Arc::clone(&wake);
        async move {
            sleep.await;
            wake.notify_one();
            Ok::<_, Error>(())
        }
    });
    assert_eq!(Worker::new(&pq).serve(handler).run_until_empty().await?.done, 1);
    woken.notified().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_at_its_limit_does_not_hold_up_other_queues() -> TestResult {
    let (_database, pq, _conn) = fresh().await;
    let (slow, quick) = (pq.queue("slow")?.task::<usize>("slow"), pq.queue("quick")?.task::<usize>("quick"));
    slow.call_many(0..60).await?;
    let done = Arc::new(Notify::new());
    let notify = Arc::clone(&done);
    let slow_handler = slow.leased_async(|_context, _job| async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        Ok::<_, Error>(())
    });
    let quick_handler = quick.leased_async(move |_context, _job| {
        let notify = Arc::clone(&notify);
        async move {
            notify.notify_one();
            Ok::<_, Error>(())
        }
    });
    let worker = Worker::new(&pq).serve(slow_handler.concurrency(1)).serve(quick_handler).concurrency(20);
    let control = worker.control();
    let run = tokio::spawn(worker.run());
    tokio::time::sleep(Duration::from_millis(300)).await;
    quick.call(&1).await?;
    tokio::time::timeout(Duration::from_secs(3), done.notified()).await?;
    control.stop(pq_diesel_async::StopMode::Finish);
    run.await??;
    Ok(())
}
