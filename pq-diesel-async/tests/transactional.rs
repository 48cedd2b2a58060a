//! Asynchronous handlers that take, write and complete in one transaction.

#[path = "../../pq-diesel/tests/common/migrated.rs"]
mod migrated;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use diesel::sql_types::{BigInt, Text};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use pq_core::{Codec, CodecError, Isolation};
use pq_diesel_async::{Backoff, Error, JobState, Outcome, Pq, StopMode, Worker};
use pq_testing::Database;
use tokio::sync::{Notify, Semaphore};

use self::migrated::migrated;

type TestResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

const LIMIT: Duration = Duration::from_secs(30);

async fn fresh() -> (Database, Pq, AsyncPgConnection) {
    let database = migrated();
    let pq = Pq::builder().url(database.url()).build().expect("a handle");
    let mut conn = AsyncPgConnection::establish(database.url()).await.expect("a connection");
    conn.batch_execute("CREATE TABLE seen (what text, jobs bigint, leases bigint)").await.expect("a table");
    (database, pq, conn)
}

async fn number(conn: &mut AsyncPgConnection, sql: &str) -> i64 {
    diesel::dsl::sql::<BigInt>(sql).get_result(conn).await.expect("a number")
}

/// Writes how many jobs wait, and how many leases there are, as the handler's transaction sees them.
async fn see(conn: &mut AsyncPgConnection, what: &str) -> Result<(), diesel::result::Error> {
    let insert =
        "INSERT INTO seen SELECT $1, (SELECT count(*) FROM pq.queue), (SELECT count(*) FROM pq.queue_leases)";
    diesel::sql_query(insert).bind::<Text, _>(what).execute(conn).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_take_the_writes_and_the_completion_are_one_commit() -> TestResult {
    let (_database, pq, mut conn) = fresh().await;
    let task = pq.queue("work")?.task::<()>("see");
    task.call(&()).await?;
    let (wrote, go_on) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
    let (notify, wait) = (Arc::clone(&wrote), Arc::clone(&go_on));
    let handler = task.transactional_async(async move |conn, _job| {
        see(conn, "one").await?;
        notify.notify_one();
        drop(wait.acquire().await);
        Ok::<_, diesel::result::Error>(())
    });
    let run = tokio::spawn(Worker::new(&pq).serve(handler).run_until_empty());
    tokio::time::timeout(LIMIT, wrote.notified()).await?;
    assert_eq!(number(&mut conn, "SELECT count(*) FROM pq.queue").await, 1, "the take is not committed");
    go_on.add_permits(1);
    let report = tokio::time::timeout(LIMIT, run).await???;
    assert_eq!(report.done, 1);
    assert_eq!(number(&mut conn, "SELECT count(*) FROM pq.queue").await, 0);
    let in_one = "SELECT count(*) FROM seen WHERE jobs = 0 AND leases = 0";
    assert_eq!(
        number(&mut conn, in_one).await,
        1,
        "the handler's transaction has taken the job, without a lease"
    );
    Ok(())
}

/// A codec that counts how often payloads are decoded.
#[derive(Default)]
struct Counting(AtomicUsize);

impl Codec for Counting {
    fn encode(&self, json: String) -> Result<String, CodecError> {
        Ok(json)
    }

    fn decode<'a>(&self, stored: &'a str) -> Result<Cow<'a, str>, CodecError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(Cow::Borrowed(stored))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_decoded_once_for_the_worker_and_once_for_the_handler() -> TestResult {
    let (_database, pq, _conn) = fresh().await;
    let codec = Arc::new(Counting::default());
    let task = pq.queue::<()>("work")?.with_codec(codec.clone()).task::<u8>("count");
    task.call(&7).await?;
    let handler = task.transactional_async(async |_conn, _job| Ok::<_, Error>(()));
    let report = Worker::new(&pq).serve(handler).run_until_empty().await?;
    assert_eq!((report.done, AtomicUsize::load(&codec.0, Ordering::Relaxed)), (1, 2));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_the_job_is_ready_at_once_and_runs_under_a_lease() -> TestResult {
    let (_database, pq, mut conn) = fresh().await;
    let task = pq.queue("work")?.task::<()>("see");
    task.call(&()).await?;
    let began = Arc::new(Notify::new());
    let notify = Arc::clone(&began);
    let handler = task.transactional_async(async move |conn, _job| {
        see(conn, "lost").await?;
        notify.notify_one();
        std::future::pending::<()>().await;
        Ok::<_, diesel::result::Error>(())
    });
    let run = tokio::spawn(Worker::new(&pq).serve(handler).run());
    tokio::time::timeout(LIMIT, began.notified()).await?;
    // As if the process had died: nothing more is sent on its connection.
    number(&mut conn, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND state = 'idle in transaction'
        AND datname = current_database()").await;
    run.abort();
    let seen = task.transactional_async(async |conn, _job| see(conn, "kept").await);
    let began = Instant::now();
    let report = tokio::time::timeout(LIMIT, Worker::new(&pq).serve(seen).run_until_empty()).await??;
    assert!(began.elapsed() < Duration::from_secs(10), "it waited for a lease: {:?}", began.elapsed());
    assert_eq!((report.done, report.failed), (1, 0), "{report:?}");
    let rows = "SELECT count(*) FROM seen WHERE what = 'kept' AND leases = 1";
    assert_eq!(
        number(&mut conn, rows).await,
        1,
        "a job whose transaction was rolled back runs under a lease"
    );
    assert_eq!(number(&mut conn, "SELECT count(*) FROM seen").await, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_rolled_back_counted_and_bounded() -> TestResult {
    let (_database, pq, mut conn) = fresh().await;
    let queue = pq.queue("work")?;
    let task = queue.task::<String>("fail").max_retries(2).backoff(Backoff::fixed(Duration::ZERO));
    task.call_many(["error", "panic", "undo", "second"].map(str::to_owned)).await?;
    let handler = task.transactional_async(async |conn, job| {
        see(conn, &job.data).await.map_err(|error| error.to_string())?;
        match job.data.as_str() {
            "panic" => panic!("planned"),
            "undo" => Ok(Outcome::Complete.rolled_back()),
            "second" if job.attempt > 1 => Ok(Outcome::Complete),
            _ => Err("planned".to_owned()),
        }
    });
    let run = Worker::new(&pq).serve(handler).run_until_empty();
    let report = tokio::time::timeout(LIMIT, run).await??;
    assert_eq!((report.done, report.dead, report.failed), (2, 2, 7), "{report:?}");
    let dead = queue.archived(JobState::Dead, 9).await?;
    assert!(dead.iter().all(|job| job.attempt == 3), "{dead:?}");
    assert_eq!(
        number(&mut conn, "SELECT count(*) FROM seen").await,
        1,
        "only what the last attempt wrote is kept"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_ends_the_statement_and_the_attempt() -> TestResult {
    let (_database, pq, mut conn) = fresh().await;
    let queue = pq.queue("work")?;
    let task = queue.task::<()>("sleep").timeout(Duration::from_millis(200));
    task.call(&()).await?;
    let handler = task.transactional_async(async |conn, _job| {
        see(conn, "timeout").await?;
        diesel::sql_query("SELECT pg_sleep(60)").execute(conn).await.map(drop)
    });
    let run = Worker::new(&pq).serve(handler).run_until_empty();
    let report = tokio::time::timeout(LIMIT, run).await??;
    assert_eq!(report.dead, 1, "{report:?}");
    let dead = queue.archived(JobState::Dead, 9).await?;
    assert!(dead[0].error.as_deref().is_some_and(|error| error.contains("longer than 200ms")), "{dead:?}");
    assert_eq!(number(&mut conn, "SELECT count(*) FROM seen").await, 0);
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)' AND state = 'active' AND pid <> pg_backend_pid()";
    assert_eq!(number(&mut conn, sleeping).await, 0, "the statement goes on");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_isolation_level_is_the_tasks() -> TestResult {
    let (_database, pq, mut conn) = fresh().await;
    let task = pq.queue("work")?.task::<()>("level").with(|task| task.isolation(Isolation::Serializable));
    task.call_many([(), ()]).await?;
    let handler = task.transactional_async(async |conn, _job| {
        let insert = "INSERT INTO seen VALUES (current_setting('transaction_isolation'))";
        diesel::sql_query(insert).execute(conn).await.map(drop)
    });
    let run = Worker::new(&pq).serve(handler).run_until_empty();
    let report = tokio::time::timeout(LIMIT, run).await??;
    assert_eq!(report.done, 2, "{report:?}");
    assert_eq!(number(&mut conn, "SELECT count(*) FROM seen WHERE what = 'serializable'").await, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_numbers_of_jobs_are_kept() -> TestResult {
    let (_database, pq, _conn) = fresh().await;
    let task = pq.queue("work")?.task::<u32>("count");
    task.call_many(0..50).await?;
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (running, highest) = (Arc::clone(&now), Arc::clone(&most));
    let handler = task.transactional_async(async move |conn, _job| {
        highest.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let slept = diesel::sql_query("SELECT pg_sleep(0.01)").execute(conn).await;
        running.fetch_sub(1, Ordering::SeqCst);
        slept.map(drop)
    });
    let run = Worker::new(&pq).serve(handler.concurrency(3)).run_jobs(20);
    let report = tokio::time::timeout(LIMIT, run).await??;
    assert_eq!(report.done, 20, "{report:?}");
    assert_eq!(task.queue().counts().await?.ready, 30);
    assert_eq!(AtomicUsize::load(&most, Ordering::SeqCst), 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_wakes_an_idle_worker_and_a_stop_waits_for_its_handler() -> TestResult {
    let (_database, pq, mut conn) = fresh().await;
    let task = pq.queue("work")?.task::<()>("see");
    let began = Arc::new(Notify::new());
    let notify = Arc::clone(&began);
    let handler = task.transactional_async(async move |conn, _job| {
        notify.notify_one();
        diesel::sql_query("SELECT pg_sleep(0.3)").execute(conn).await?;
        see(conn, "slow").await
    });
    let worker = Worker::new(&pq).serve(handler);
    let control = worker.control();
    let run = tokio::spawn(worker.run());
    tokio::time::sleep(Duration::from_millis(500)).await;
    let put_at = Instant::now();
    task.call(&()).await?;
    tokio::time::timeout(LIMIT, began.notified()).await?;
    assert!(put_at.elapsed() < Duration::from_secs(1), "it waited for a poll: {:?}", put_at.elapsed());
    task.call(&()).await?;
    control.stop(StopMode::Finish);
    let report = tokio::time::timeout(LIMIT, run).await???;
    assert!(report.done >= 1, "{report:?}");
    assert_eq!(number(&mut conn, "SELECT count(*) FROM seen").await, report.done as i64);
    assert_eq!(task.queue().counts().await?.ready, 2 - report.done);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_unknown_tasks_are_left_to_other_workers() -> TestResult {
    let (_database, pq, _conn) = fresh().await;
    let queue = pq.queue("work")?;
    queue.task::<()>("other").call(&()).await?;
    let handler = queue.task::<()>("known").transactional_async(async |_conn, _job| Ok::<_, Error>(()));
    let run = Worker::new(&pq).serve(handler).run_until_empty();
    let report = tokio::time::timeout(LIMIT, run).await??;
    assert_eq!((report.done, report.dead), (0, 0), "{report:?}");
    assert_eq!(queue.counts().await?.scheduled, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_are_counted_by_task() -> TestResult {
    let (_database, pq, _conn) = fresh().await;
    let (one, two) = (pq.queue("one")?.task::<u8>("write"), pq.queue("two")?.task::<u8>("wait"));
    one.call_many([0, 0, 1]).await?;
    two.call_many([0, 1]).await?;
    fn fail(number: u8) -> Result<(), &'static str> {
        if number == 0 { Ok(()) } else { Err("planned") }
    }
    let write = one.transactional_async(async |_conn, job| fail(job.data));
    let wait = two.leased_async(|_context, job| async move { fail(job.data) });
    Worker::new(&pq).serve(write).serve(wait).run_until_empty().await?;
    let counters = pq.blocking().counters()?;
    let counts = counters.iter().map(|one| (one.task.as_str(), one.counters)).map(|(task, counters)| {
        (task, counters.tried, counters.done, counters.dead, counters.run.count(), counters.wait.count())
    });
    assert_eq!(counts.collect::<Vec<_>>(), [("write", 3, 2, 1, 3, 3), ("wait", 2, 1, 1, 2, 2)]);
    Ok(())
}
