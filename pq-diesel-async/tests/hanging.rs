//! Calls of a worker with asynchronous handlers that hang, while the server and all other connections are healthy.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use diesel::sql_types::BigInt;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use pq_diesel_async::{Error, Pq, StopMode, Worker};
use pq_testing::{Database, Server};

type TestResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// The call timeout, after which a call that hangs is ended.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// The time within which what does not hang must be done on a busy machine.
const SOON: Duration = Duration::from_secs(6);

const LIMIT: Duration = Duration::from_secs(60);

async fn fresh() -> (Database, Pq, AsyncPgConnection) {
    let database = Server::shared().expect("a server").database().expect("a database");
    let builder = Pq::builder().url(database.url()).call_timeout(CALL_TIMEOUT);
    let pq = builder.poll_interval(Duration::from_millis(100)).build().expect("a handle");
    pq.migrate().await.expect("a table");
    let conn = AsyncPgConnection::establish(database.url()).await.expect("a connection");
    (database, pq, conn)
}

/// Waits until a query counts at least one, and returns how long that took.
async fn until(conn: &mut AsyncPgConnection, sql: &str) -> Duration {
    let begun = Instant::now();
    while diesel::dsl::sql::<BigInt>(sql).get_result::<i64>(conn).await.expect("a number") == 0 {
        assert!(begun.elapsed() < LIMIT, "still 0: {sql}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    begun.elapsed()
}

/// Waits until a statement waits at the gate.
async fn until_a_call_hangs(conn: &mut AsyncPgConnection) {
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'
        AND datname = current_database()";
    until(conn, waiting).await;
}

/// Waits until a handler has set the flag.
async fn until_set(flag: &AtomicBool, otherwise: &str) {
    let asked = Instant::now();
    while !AtomicBool::load(flag, Ordering::SeqCst) {
        assert!(asked.elapsed() < SOON, "{otherwise}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until no job waits or runs in a queue.
async fn until_empty(conn: &mut AsyncPgConnection, queue: &str) -> Duration {
    let none = |table: &str| format!("NOT EXISTS (SELECT FROM pq.{table} WHERE q_name = '{queue}')");
    until(conn, &format!("SELECT ({} AND {})::int::bigint", none("queue"), none("queue_leases"))).await
}

/// Makes statements that fire this trigger hang until the gate is opened or closed with its connection.
async fn close_gate(gate: &mut AsyncPgConnection, trigger: &str) -> TestResult {
    gate.batch_execute(&format!(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM pg_advisory_xact_lock_shared(1);
            RETURN NULL;
        END $$;
        SELECT pg_advisory_lock(1);
        CREATE TRIGGER wait {trigger} EXECUTE FUNCTION wait()"
    ))
    .await?;
    Ok(())
}

/// A call of the worker for one queue hangs. The jobs of another run, and handlers are asked to end.
#[tokio::test(flavor = "multi_thread")]
async fn a_take_and_a_settle_that_hang_stop_no_other_queue() -> TestResult {
    let triggers = [
        "AFTER INSERT ON pq.queue_leases FOR EACH ROW WHEN (NEW.q_name = 'stuck')",
        "AFTER DELETE ON pq.queue_leases FOR EACH ROW WHEN (OLD.q_name = 'stuck')",
    ];
    for trigger in triggers {
        let (database, pq, mut conn) = fresh().await;
        let mut gate = AsyncPgConnection::establish(database.url()).await?;
        close_gate(&mut gate, trigger).await?;
        let (stuck, other) =
            (pq.queue("stuck")?.task::<u32>("stuck"), pq.queue("other")?.task::<bool>("other"));
        stuck.call_many(0..3).await?;
        let [begun, told] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let (begins, tells) = (Arc::clone(&begun), Arc::clone(&told));
        let handler = other.leased_async(move |context, job| {
            let (begins, tells) = (Arc::clone(&begins), Arc::clone(&tells));
            async move {
                if job.data {
                    begins.store(true, Ordering::SeqCst);
                    context.cancelled().await;
                    tells.store(true, Ordering::SeqCst);
                }
                Ok::<_, Error>(())
            }
        });
        let worker = Worker::new(&pq)
            .serve(stuck.leased_async(|_context, _job| async { Ok::<_, Error>(()) }))
            .serve(handler);
        let control = worker.control();
        let run = tokio::spawn(worker.run());
        until_a_call_hangs(&mut conn).await;
        for _ in 0..5 {
            other.call(&false).await?;
            let took = until_empty(&mut conn, "other").await;
            assert!(took < SOON, "{trigger}: the job took {took:?}");
        }
        other.call(&true).await?;
        until_set(&begun, "the handler has not begun").await;
        control.stop(StopMode::Abort);
        until_set(&told, "the handler was not told to end").await;
        drop(gate);
        let report = tokio::time::timeout(LIMIT, run).await???;
        // What hung was taken or settled all the same, because it was never cut off.
        assert_eq!((report.failed, report.lost), (0, 0), "{trigger}: {report:?}");
        assert_eq!(report.done + pq.queue::<()>("stuck")?.counts().await?.ready, 9, "{trigger}: {report:?}");
    }
    Ok(())
}

/// Two takes of a queue hang. Together they may find as many jobs as the queue may run, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn takes_that_hang_count_against_the_limit_of_their_queue() -> TestResult {
    let (database, pq, mut conn) = fresh().await;
    let mut gate = AsyncPgConnection::establish(database.url()).await?;
    close_gate(&mut gate, "AFTER INSERT ON pq.queue_leases FOR EACH ROW WHEN (NEW.jobs[1] <= 1)").await?;
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, peak) = (Arc::clone(&running), Arc::clone(&most));
    let task = pq.queue("one")?.task::<u32>("one");
    task.call_many(0..4).await?;
    let handler = task.leased_async(move |_context, _job| {
        let (now, peak) = (Arc::clone(&now), Arc::clone(&peak));
        async move {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(300)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, Error>(())
        }
    });
    let worker = Worker::new(&pq).serve(handler).queue_concurrency("one", 1);
    let control = worker.control();
    let run = tokio::spawn(worker.run());
    until_a_call_hangs(&mut conn).await;
    // The dispatcher gives up its patience meanwhile, and takes again if it may.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    drop(gate);
    until_empty(&mut conn, "one").await;
    control.stop(StopMode::Drain);
    let report = tokio::time::timeout(LIMIT, run).await???;
    assert_eq!((report.done, AtomicUsize::load(&most, Ordering::SeqCst)), (4, 1), "{report:?}");
    Ok(())
}
