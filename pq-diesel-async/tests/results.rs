//! Waiting for results without a thread, and what asynchronous handlers note.

#[path = "../../pq-diesel/tests/common/migrated.rs"]
mod migrated;

use std::time::Duration;

use diesel_async::{AsyncConnection, AsyncPgConnection, SimpleAsyncConnection};
use pq_diesel_async::{
    CallOptions, Error, JobLogLayer, JobResult, LogLevel, Outcome, Pq, Progress, StopMode, Wait, Worker,
};
use pq_testing::Database;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::migrated::migrated;

type TestResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Longer than any test may take. A wait that misses a notification exceeds it.
const LONG: Duration = Duration::from_secs(120);
const TIMEOUT: Duration = Duration::from_secs(30);

async fn fresh() -> (Database, Pq) {
    let database = migrated();
    let pq = Pq::builder().url(database.url()).pool_size(2).poll_interval(LONG).build().expect("a handle");
    (database, pq)
}

#[tokio::test(flavor = "multi_thread")]
async fn more_calls_than_connections_are_answered() -> TestResult {
    let (_database, pq) = fresh().await;
    let double = pq.queue::<()>("sums")?.task::<i64>("double");
    let handler = double.leased_async(async |_, job| Outcome::result(&(job.data * 2)));
    let worker = Worker::new(&pq).serve(handler);
    let control = worker.control();
    let working = tokio::spawn(worker.run());
    let calls: Vec<_> = (0..20)
        .map(|number| {
            let double = double.clone();
            tokio::spawn(async move { double.call_and_wait::<i64>(&number, Wait::For(LONG)).await })
        })
        .collect();
    for (number, call) in (0..20).zip(calls) {
        let answer = tokio::time::timeout(TIMEOUT, call).await???;
        assert_eq!(answer.result, JobResult::Done(number * 2));
        assert_eq!(pq.result::<i64>(answer.id).await?, JobResult::Done(number * 2));
    }
    control.stop(StopMode::Finish);
    working.await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_can_be_dropped_and_begun_again() -> TestResult {
    let (_database, pq) = fresh().await;
    let task = pq.queue::<()>("sums")?.task::<i64>("double");
    let id = task.call(&21).await?.id;
    for millis in [0, 1, 2, 5, 10, 20, 50, 100] {
        let wait = pq.wait_for::<i64>(id, Wait::For(LONG));
        assert!(tokio::time::timeout(Duration::from_millis(millis), wait).await.is_err());
    }
    let waiting = tokio::spawn({
        let pq = pq.clone();
        async move { pq.wait_for::<i64>(id, Wait::For(LONG)).await }
    });
    let handler = task.leased_async(async |_, job| Outcome::result(&(job.data * 2)));
    Worker::new(&pq).serve(handler).run_until_empty().await?;
    assert_eq!(tokio::time::timeout(TIMEOUT, waiting).await???, JobResult::Done(42));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_in_a_transaction_is_awaited_after_the_commit() -> TestResult {
    let (database, pq) = fresh().await;
    let task = pq.queue::<()>("sums")?.task::<i64>("double");
    let mut conn = AsyncPgConnection::establish(database.url()).await?;
    conn.batch_execute("BEGIN").await?;
    let options = CallOptions::new().awaited();
    let id = task.on(&mut conn).call_with(&1, &options).await?.id;
    assert_eq!(pq.result_on::<i64>(&mut conn, id).await?, JobResult::Waiting);
    assert_eq!(pq.result::<i64>(id).await?, JobResult::Unknown);
    conn.batch_execute("COMMIT").await?;
    let handler = task.leased_async(async |_, _| Err::<(), _>("it fails"));
    Worker::new(&pq).serve(handler).run_until_empty().await?;
    let JobResult::Dead(failed) = pq.wait_for::<i64>(id, Wait::For(LONG)).await? else {
        return Err("the job is dead".into());
    };
    assert_eq!((failed.task.as_deref(), failed.error.as_deref()), (Some("double"), Some("it fails")));
    Ok(())
}

/// Two handlers take turns on the threads of the runtime, and each has its own log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_a_handler_are_lines_of_its_log() -> TestResult {
    tracing_subscriber::registry().with(JobLogLayer::new()).init();
    let (_database, pq) = fresh().await;
    let task = pq.queue::<()>("imports")?.task::<u32>("import").keep_history(true);
    let ids = [task.call(&1).await?.id, task.call(&2).await?.id];
    let handler = task.leased_async(async |context, job| {
        for step in 0..50 {
            tracing::info!(step, "job {}", job.data);
            tracing::debug!("not kept");
            tokio::task::yield_now().await;
        }
        context.log_at(LogLevel::Warn, "last");
        context.progress(50, 50, "steps");
        tracing::error!(target: "pq_core", "an event of the library is not kept");
        Ok::<_, Error>(())
    });
    let blocking = pq.queue::<()>("blocking")?.task::<u32>("import").keep_history(true);
    let third = blocking.call(&3).await?.id;
    let on_thread = blocking.blocking().leased(|_, job| {
        tracing::warn!("job {}", job.data);
        Ok::<_, String>(())
    });
    let report = Worker::new(&pq).serve(handler).serve(on_thread).run_until_empty().await?;
    assert_eq!(report.done, 3);
    for (number, id) in ids.into_iter().enumerate() {
        let lines = pq.log(id).await?;
        let texts: Vec<String> = lines.iter().map(|stored| stored.line.text.clone()).collect();
        let number = number + 1;
        let expected = (0..50).map(|step| format!("job {number} step={step}")).chain(["last".to_owned()]);
        assert_eq!(texts, expected.collect::<Vec<_>>());
        assert_eq!(lines[0].line.level, LogLevel::Info);
    }
    let noted = pq.progress(&ids).await?;
    let all = Progress { done: 50, total: 50, note: "steps".to_owned() };
    assert_eq!(noted.into_iter().map(|noted| noted.progress).collect::<Vec<_>>(), [all.clone(), all]);
    let lines = pq.log(third).await?;
    assert_eq!(lines.iter().map(|stored| stored.line.text.as_str()).collect::<Vec<_>>(), ["job 3"]);
    Ok(())
}
