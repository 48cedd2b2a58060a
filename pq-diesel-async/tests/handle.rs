//! The handle, its queues and its tasks, from asynchronous tasks that may move between threads.

#[path = "../../pq-diesel/tests/common/migrated.rs"]
mod migrated;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use diesel::sql_types::BigInt;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use futures_core::Stream;
use pq_diesel_async::{Error, Job, Outcome, Pq, PutOptions, Wait, Worker};
use pq_testing::Database;

use self::migrated::migrated;

type TestResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

async fn fresh() -> (Database, Pq) {
    let database = migrated();
    let pq = Pq::builder().url(database.url()).build().expect("a handle");
    (database, pq)
}

async fn connect(database: &Database) -> AsyncPgConnection {
    AsyncPgConnection::establish(database.url()).await.expect("a connection")
}

async fn count(conn: &mut AsyncPgConnection, sql: &str) -> i64 {
    diesel::dsl::sql::<BigInt>(sql).get_result(conn).await.expect("a count")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_commits_and_rolls_back_with_the_callers_transaction() -> TestResult {
    let (database, pq) = fresh().await;
    let apples = pq.queue::<String>("apples")?;
    let mut conn = connect(&database).await;
    conn.batch_execute("CREATE TABLE eaten (name text)").await?;
    let queue = apples.clone();
    // In a task of its own, so that the future must be `Send`.
    let conn = tokio::spawn(async move {
        conn.transaction::<_, Error, _>(async |conn| {
            queue.on(conn).put("Granny Smith").await?;
            diesel::sql_query("INSERT INTO eaten VALUES ('Granny Smith')").execute(conn).await?;
            Ok(())
        })
        .await?;
        let undone: Result<(), Error> = conn
            .transaction(async |conn| {
                queue.on(conn).put("Braeburn").await?;
                Err(pq_core::Error::Stopped.into())
            })
            .await;
        assert!(undone.is_err_and(|error| error.is_stopped()));
        Ok::<_, Error>(conn)
    });
    let mut conn = conn.await??;
    assert_eq!(apples.counts().await?.waiting(), 1);
    assert_eq!(count(&mut conn, "SELECT count(*) FROM eaten").await, 1);
    let job = apples.get(Wait::No).await?.expect("the job of the committed transaction");
    assert_eq!(job.data, "Granny Smith");
    assert!(apples.get(Wait::No).await?.is_none());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_concurrent_puts_are_a_few_commits() -> TestResult {
    let (database, pq) = fresh().await;
    let numbers = pq.queue::<usize>("numbers")?;
    numbers.put(&0).await?;
    let mut conn = connect(&database).await;
    let commits = "SELECT count(DISTINCT xmin::text) FROM pq.queue";
    let puts: Vec<_> = (1..1_000)
        .map(|number| {
            let numbers = numbers.clone();
            tokio::spawn(async move { numbers.put(&number).await })
        })
        .collect();
    let mut ids = Vec::new();
    for put in puts {
        ids.push(put.await??.id);
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 999, "each put has an id of its own");
    let transactions = count(&mut conn, commits).await;
    assert!(transactions < 100, "{transactions} commits");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_counts_of_puts_are_stored_with_the_counters() -> TestResult {
    let (database, pq) = fresh().await;
    let queue = pq.queue::<u32>("apples")?;
    queue.put(&1).await?;
    queue.on(&mut connect(&database).await).put(&2).await?;
    assert_eq!(pq.blocking().counters()?, []);
    pq.store_put_counts().await?;
    pq.store_put_counts().await?;
    let counted = pq.blocking().counters()?;
    let counted: Vec<_> = counted.iter().map(|one| (one.queue.as_str(), one.counters.put)).collect();
    assert_eq!(counted, [("apples", 2)]);
    let jobs = serde_json::json!([{ "name": "one", "queue": "pears", "data": 1 }]);
    pq.put_workflow_json(&serde_json::json!({ "name": "fruit", "jobs": jobs }).to_string()).await?;
    pq.store_put_counts().await?;
    let counted = pq.blocking().counters()?;
    let counted: Vec<_> = counted.iter().map(|one| (one.queue.as_str(), one.counters.put)).collect();
    assert_eq!(counted, [("apples", 2), ("pears", 1), ("pq.workflows", 1)]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_when_a_job_is_put() -> TestResult {
    let (_database, pq) = fresh().await;
    let apples = pq.queue::<String>("apples")?;
    let waiting = apples.clone();
    let waiter = tokio::spawn(async move { waiting.get(Wait::For(Duration::from_secs(20))).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let put = Instant::now();
    apples.put("Granny Smith").await?;
    assert_eq!(waiter.await??.expect("a job").data, "Granny Smith");
    assert!(put.elapsed() < Duration::from_secs(4), "found by a notification, not by the poll after 5 s");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn get_with_commits_the_take_with_the_writes() -> TestResult {
    let (database, pq) = fresh().await;
    let apples = pq.queue::<String>("apples")?;
    let mut conn = connect(&database).await;
    conn.batch_execute("CREATE TABLE eaten (name text)").await?;
    apples.put("Granny Smith").await?;
    let queue = apples.clone();
    tokio::spawn(async move {
        let failed: Result<Option<()>, Error> = queue
            .get_with(Wait::No, async |conn, job: Job<String>| {
                diesel::sql_query("INSERT INTO eaten VALUES ('half')").execute(conn).await?;
                Err(pq_core::Error::lease_lost(job.id).into())
            })
            .await;
        assert!(failed.is_err());
        let done = queue
            .get_with(Wait::No, async |conn, job: Job<String>| {
                diesel::sql_query("INSERT INTO eaten VALUES ('whole')").execute(conn).await?;
                Ok::<_, Error>(job.data)
            })
            .await;
        assert_eq!(done.expect("done").as_deref(), Some("Granny Smith"));
    })
    .await?;
    assert_eq!(apples.counts().await?.waiting(), 0);
    assert_eq!(count(&mut conn, "SELECT count(*) FROM eaten WHERE name = 'whole'").await, 1);
    assert_eq!(count(&mut conn, "SELECT count(*) FROM eaten").await, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn asynchronous_handlers_run_concurrently() -> TestResult {
    const JOBS: usize = 300;
    let (_database, pq) = fresh().await;
    let nap = pq.queue("naps")?.task::<usize>("nap");
    nap.call_many(0..JOBS).await?;
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let highest = Arc::clone(&most);
    let handler = nap.leased_async(move |_context, _job| {
        let (running, most) = (Arc::clone(&running), Arc::clone(&most));
        async move {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(100)).await;
            running.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, Error>(())
        }
    });
    let report = Worker::new(&pq).serve(handler).concurrency(50).run_until_empty().await?;
    assert_eq!(report.done, JOBS as u64);
    assert_eq!(highest.as_ref().load(Ordering::SeqCst), 50, "the limit is reached and not exceeded");
    assert_eq!(pq.queue::<()>("naps")?.counts().await?.waiting(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_panics_and_timeouts_of_asynchronous_handlers_are_counted() -> TestResult {
    let (_database, pq) = fresh().await;
    let queue = pq.queue("work")?;
    let fails = queue.task::<String>("fails").keep_history(true);
    let slow = queue.task::<String>("slow").timeout(Duration::from_millis(50));
    fails.call_many(["error", "panic", "fine"].map(str::to_owned)).await?;
    slow.call(&"sleep".to_owned()).await?;
    let handler = fails.leased_async(|_context, job| async move {
        match job.data.as_str() {
            "panic" => panic!("this is a test"),
            "error" => Err("an error".to_owned()),
            _ => Ok(()),
        }
    });
    let dropped = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&dropped);
    let sleeps = slow.leased_async(move |_context, _job| {
        let guard = CountDrop(Arc::clone(&count));
        async move {
            tokio::time::sleep(Duration::from_secs(60)).await;
            drop(guard);
            Ok::<_, Error>(())
        }
    });
    let begun = Instant::now();
    let report = Worker::new(&pq).serve(handler).serve(sleeps).run_until_empty().await?;
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_eq!((report.done, report.failed, report.dead), (1, 3, 3));
    assert_eq!(dropped.as_ref().load(Ordering::SeqCst), 1, "the future of the slow handler was dropped");
    let dead = queue.archived(pq_diesel_async::JobState::Dead, 10).await?;
    let mut errors: Vec<_> = dead.into_iter().filter_map(|job| job.error).collect();
    errors.sort_unstable();
    assert_eq!(
        errors,
        ["an error", "the handler panicked: this is a test", "the handler took longer than 50ms"]
    );
    Ok(())
}

struct CountDrop(Arc<AtomicUsize>);

impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transactional_handler_commits_its_writes_with_its_job() -> TestResult {
    let (database, pq) = fresh().await;
    let mut conn = connect(&database).await;
    conn.batch_execute("CREATE TABLE paid (id bigint PRIMARY KEY)").await?;
    let pay = pq.queue("orders")?.task::<i64>("pay");
    pay.call_many(1..=20).await?;
    let handler = pay.transactional_async(async |conn, job| {
        diesel::sql_query("INSERT INTO paid VALUES ($1)").bind::<BigInt, _>(job.data).execute(conn).await?;
        if job.data % 10 == 0 {
            return Err(diesel::result::Error::RollbackTransaction);
        }
        Ok(())
    });
    let report = Worker::new(&pq).serve(handler.concurrency(4)).run_until_empty().await?;
    assert_eq!((report.done, report.dead), (18, 2));
    assert_eq!(count(&mut conn, "SELECT count(*) FROM paid").await, 18);
    assert_eq!(count(&mut conn, "SELECT count(*) FROM paid WHERE id % 10 = 0").await, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_cancels_the_token_and_gives_the_job_back_uncounted() -> TestResult {
    let (_database, pq) = fresh().await;
    let long = pq.queue("long")?.task::<()>("wait");
    long.call(&()).await?;
    let started = Arc::new(tokio::sync::Notify::new());
    let notify = Arc::clone(&started);
    let handler = long.leased_async(move |context, _job| {
        notify.notify_one();
        async move {
            context.cancelled().await;
            Err::<(), _>("cancelled")
        }
    });
    let worker = Worker::new(&pq).serve(handler);
    let control = worker.control();
    let run = tokio::spawn(worker.run());
    started.notified().await;
    control.stop(pq_diesel_async::StopMode::Abort);
    let report = tokio::time::timeout(Duration::from_secs(10), run).await???;
    assert_eq!((report.given_back, report.failed), (1, 0));
    let waiting = pq.queue::<()>("long")?.counts().await?;
    assert_eq!(waiting.waiting(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_of_both_kinds_serve_in_one_worker() -> TestResult {
    let (_database, pq) = fresh().await;
    let blocking = pq.queue("blocking")?.task::<u32>("count");
    let asynchronous = pq.queue("asynchronous")?.task::<u32>("count");
    blocking.call_many(0..30).await?;
    asynchronous.call_many(0..30).await?;
    let report = Worker::new(&pq)
        .serve(blocking.blocking().leased(|_context, _job| Ok::<_, Error>(())))
        .serve(asynchronous.leased_async(|_context, _job| async { Ok::<_, Error>(Outcome::Complete) }))
        .run_jobs(60)
        .await?;
    assert_eq!(report.done, 60);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unique_key_and_a_priority_work_as_on_the_blocking_queue() -> TestResult {
    let (_database, pq) = fresh().await;
    let apples = pq.queue::<String>("apples")?;
    let low = apples.put_with("low", &PutOptions::new().unique("one")).await?;
    let again = apples.put_with("again", &PutOptions::new().unique("one")).await?;
    assert_eq!(low.id, again.id);
    apples.put_with("high", &PutOptions::new().priority(5)).await?;
    let jobs = apples.get_many(10, Wait::No).await?;
    assert_eq!(jobs.iter().map(|job| job.data.as_str()).collect::<Vec<_>>(), ["high", "low"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_of_a_queue_and_of_a_task_hold_beside_that_of_the_worker() -> TestResult {
    let (_database, pq) = fresh().await;
    let (first, second) = (pq.queue("first")?, pq.queue("second")?);
    let tasks = [first.task::<u32>("few"), first.task("many"), second.task("some")];
    for task in &tasks {
        task.call_many(0..40).await?;
    }
    let most: [Arc<AtomicUsize>; 3] = Default::default();
    let mut worker = Worker::new(&pq).concurrency(30).queue_concurrency("second", 5);
    for (task, most) in tasks.iter().zip(&most) {
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::clone(most));
        let handler = task.leased_async(move |_context, _job| {
            let (running, most) = (Arc::clone(&running), Arc::clone(&most));
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, Error>(())
            }
        });
        worker = worker.serve(if task.name() == "few" { handler.concurrency(2) } else { handler });
    }
    let report = tokio::time::timeout(Duration::from_secs(60), worker.run_until_empty()).await??;
    assert_eq!(report.done, 120);
    let most = most.map(|most| most.as_ref().load(Ordering::SeqCst));
    assert!(most[0] <= 2 && most[1] > 2 && most[1] <= 30 && most[2] <= 5, "{most:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_with_a_deadline_drops_the_futures_that_have_not_ended() -> TestResult {
    let (_database, pq) = fresh().await;
    let long = pq.queue("long")?.task::<()>("sleep");
    long.call(&()).await?;
    let (started, dropped) = (Arc::new(tokio::sync::Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (notify, count) = (Arc::clone(&started), Arc::clone(&dropped));
    let handler = long.leased_async(move |_context, _job| {
        let guard = CountDrop(Arc::clone(&count));
        notify.notify_one();
        async move {
            tokio::time::sleep(Duration::from_secs(3_600)).await;
            drop(guard);
            Ok::<_, Error>(())
        }
    });
    let worker = Worker::new(&pq).serve(handler).stop_within(Duration::from_millis(500));
    let control = worker.control();
    let run = tokio::spawn(worker.run());
    started.notified().await;
    control.stop(pq_diesel_async::StopMode::Finish);
    tokio::time::timeout(Duration::from_secs(20), run).await???;
    let begun = Instant::now();
    while dropped.as_ref().load(Ordering::SeqCst) == 0 && begun.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(dropped.as_ref().load(Ordering::SeqCst), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_token_is_cancelled() -> TestResult {
    let (_database, pq) = fresh().await;
    let token = pq_diesel_async::CancellationToken::new();
    let apples = pq.queue::<String>("apples")?.with_cancellation_token(&token);
    apples.put_many(["one", "two"].map(str::to_owned)).await?;
    let mut stream = apples.stream();
    let mut next =
        async || std::future::poll_fn(|context| Stream::poll_next(Pin::new(&mut stream), context)).await;
    for wanted in ["one", "two"] {
        assert_eq!(next().await.expect("a job")?.data, wanted);
    }
    let canceller = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        token.cancel();
    });
    assert!(tokio::time::timeout(Duration::from_secs(10), next()).await?.is_none());
    canceller.await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_of_a_transactional_handler_is_not_a_failed_attempt() -> TestResult {
    let (_database, pq) = fresh().await;
    let task = pq.queue("work")?.task::<bool>("lose");
    task.call_many([true, false]).await?;
    let handler = task.transactional_async(async |conn, job| {
        let lost = diesel::sql_query("SELECT pg_terminate_backend(pg_backend_pid())").execute(conn).await;
        // Both a handler that notices and one that does not.
        if job.data { lost.map(drop) } else { Ok(()) }
    });
    let report = Worker::new(&pq).serve(handler).run_until_empty().await?;
    // On a slow machine the second has passed after which the jobs run again.
    assert!(report.snoozed >= 2 && (report.failed, report.done) == (0, 0), "{report:?}");
    assert_eq!(task.queue().counts().await?.waiting(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_with_too_few_connections_fails_no_attempt() -> TestResult {
    const JOBS: u64 = 4;
    let (database, pq) = fresh().await;
    pq.queue("work")?.task::<u64>("nap").call_many(0..JOBS).await?;
    let small = Pq::builder().url(database.url()).pool_size(1).connect_timeout(Duration::from_millis(100));
    let handler = small.build()?.queue("work")?.task::<u64>("nap").transactional_async(async |conn, _job| {
        diesel::sql_query("SELECT pg_sleep(0.5)").execute(conn).await.map(drop)
    });
    // The worker's own connections are those of a larger handle. Three attempts are without one of the small pool.
    let report = Worker::new(&pq).serve(handler.concurrency(4)).run_until_empty().await?;
    assert_eq!((report.failed, report.done + report.snoozed), (0, JOBS), "{report:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_put_whole_and_calls_its_task_when_its_jobs_have_ended() -> TestResult {
    let (_database, pq) = fresh().await;
    let queue = pq.queue::<()>("apples")?;
    let (eat, report) = (queue.task::<u32>("eat"), queue.task::<String>("report"));
    let eats = eat.clone();
    // In a task of its own, so that the future must be `Send`.
    let put = tokio::spawn({
        let report = report.clone();
        async move {
            let name = "all".to_owned();
            let fails = report
                .batch(&name, async |conn, batch| {
                    eats.on(conn).call_with(&0, &batch.call_options()).await?;
                    Err::<(), Error>(pq_core::Error::Stopped.into())
                })
                .await;
            assert!(fails.is_err_and(|error| error.is_stopped()));
            let (id, puts) = report
                .batch(&name, async |conn, batch| {
                    let calls = (0..3_u32).map(|n| (n, batch.call_options()));
                    eats.on(conn).call_many_with(calls).await
                })
                .await?;
            let (empty, ()) = report.batch(&name, async |_, _| Ok::<_, Error>(())).await?;
            Ok::<_, Error>((id, puts.len(), empty))
        }
    });
    let (id, jobs, empty) = put.await??;
    assert_eq!((jobs, queue.counts().await?.waiting()), (3, 5));
    let waits = pq.predecessors(id, 10).await?;
    assert!(waits.len() == 3 && waits.iter().all(|one| one.outcome.is_none()), "{waits:?}");
    queue.blocking().pq().change(empty, &pq_core::Operation::Delete)?;
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&seen);
    let reports = report.leased_async(move |_, job| {
        let counted = Arc::clone(&counted);
        async move {
            let ended = job.annotations.ended().map_or(0, |ended| ended.done);
            counted.fetch_add(usize::try_from(ended).unwrap_or_default(), Ordering::SeqCst);
            Ok::<_, Error>(())
        }
    });
    let eaten = eat.leased_async(async |_, _| Ok::<_, Error>(()));
    let done = Worker::new(&pq).serve(eaten).serve(reports).run_jobs(4).await?;
    assert_eq!((done.done, AtomicUsize::load(&seen, Ordering::SeqCst)), (4, 3));
    Ok(())
}
