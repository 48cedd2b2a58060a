//! Each future of the handle is dropped at every await. No job is lost, no lease outlives its time, and no connection
//! returns to the pool in a transaction.

#[path = "../../pq-diesel/tests/common/migrated.rs"]
mod migrated;

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use diesel::sql_types::BigInt;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use pq_diesel::Operation;
use pq_diesel_async::{Error, Filter, Job, Outcome, Pq, PutOptions, Queue, Retention, Task, Wait, Worker};
use pq_testing::Database;

use self::migrated::migrated;

type TestResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// More awaits than any future has.
const MAX_AWAITS: usize = 400;

struct Fixture {
    database: Database,
    pq: Pq,
    apples: Queue<String>,
    eat: Task<String>,
    conn: AsyncPgConnection,
}

impl Fixture {
    async fn new() -> Self {
        let database = migrated();
        // With one connection, one that was returned in a transaction or with an unread answer meets the next call.
        let pq = Pq::builder().url(database.url()).pool_size(1).build().expect("a handle");
        let conn = AsyncPgConnection::establish(database.url()).await.expect("a connection");
        let apples = pq.queue("apples").expect("a name");
        let eat = pq.queue("tasks").expect("a name").task("eat");
        Self { database, pq, apples, eat, conn }
    }

    async fn number(&mut self, sql: &str) -> i64 {
        diesel::dsl::sql::<BigInt>(sql).get_result(&mut self.conn).await.expect("a number")
    }

    /// Waits until the query returns this number.
    async fn expect(&mut self, sql: &str, wanted: i64, after: &str) {
        let begun = Instant::now();
        loop {
            let found = self.number(sql).await;
            if found == wanted {
                return;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(10),
                "{found} and not {wanted} after {after}: {sql}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until no session but that of the test is in a transaction or runs a statement.
    async fn expect_idle(&mut self, after: &str) {
        let busy = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
            AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND state <> 'idle'";
        self.expect(busy, 0, after).await;
    }
}

/// Polls the future, and drops it when it is pending for the `awaits`th time. Returns its result if it ended before.
async fn drop_after<F: Future>(future: F, awaits: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut pending = 0;
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending if pending == awaits => Poll::Ready(None),
        Poll::Pending => {
            pending += 1;
            Poll::Pending
        }
    })
    .await
}

/// Drops the future that `$call` makes at each of its awaits, and evaluates `$check` with its result after each.
/// Returns the number of awaits. On a busy machine an answer may be there before it is awaited.
macro_rules! at_every_await {
    ($fixture:ident, $name:literal, $call:expr, |$ended:ident| $check:expr) => {{
        let mut awaits = 0_usize;
        loop {
            let result = drop_after($call, awaits).await;
            let ended = result.is_some();
            $fixture.expect_idle(&format!("{} was dropped at await {awaits}", $name)).await;
            let $ended = result;
            $check;
            if ended {
                break awaits;
            }
            awaits += 1;
            assert!(awaits < MAX_AWAITS, "{} does not end", $name);
        }
    }};
}

const WAITING: &str = "SELECT count(*) FROM pq.queue WHERE q_name = 'apples' AND dequeued_at IS NULL";

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_get_loses_no_job() -> TestResult {
    let mut fixture = Fixture::new().await;
    let apples = fixture.apples.clone();
    apples.put("Granny Smith").await?;
    at_every_await!(fixture, "get", apples.get(Wait::No), |ended| match ended {
        Some(job) => assert_eq!(job?.expect("a job").data, "Granny Smith"),
        None => fixture.expect(WAITING, 1, "a dropped get").await,
    });
    fixture.expect(WAITING, 0, "a get").await;
    apples.put_many(["one", "two", "three"].map(str::to_owned)).await?;
    at_every_await!(fixture, "get_many", apples.get_many(3, Wait::default()), |ended| match ended {
        Some(jobs) => assert_eq!(jobs?.len(), 3),
        None => fixture.expect(WAITING, 3, "a dropped get_many").await,
    });
    apples.put("Braeburn").await?;
    at_every_await!(
        fixture,
        "get_with",
        apples.get_with(Wait::No, async |conn, job: Job<String>| {
            diesel::sql_query("SELECT 1").execute(conn).await?;
            Ok::<_, Error>(job.data)
        }),
        |ended| match ended {
            Some(data) => assert_eq!(data?.as_deref(), Some("Braeburn")),
            None if fixture.number(WAITING).await == 0 => {
                // Dropped while it committed: the handler's writes and the completion are both kept.
                apples.put("Braeburn").await?;
            }
            None => fixture.expect(WAITING, 1, "a dropped get_with").await,
        }
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_that_is_dropped_while_its_take_commits_puts_the_job_again() -> TestResult {
    let mut fixture = Fixture::new().await;
    fixture
        .conn
        .batch_execute(
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END $$;
            CREATE CONSTRAINT TRIGGER wait AFTER DELETE ON pq.queue DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION wait()",
        )
        .await?;
    let apples = fixture.apples.clone();
    let put = apples.put_with("Granny Smith", &PutOptions::new().priority(7)).await?;
    let dropped = tokio::spawn(async move { apples.get(Wait::No).await });
    let committing = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    fixture.expect(committing, 1, "a get").await;
    dropped.abort();
    fixture.expect_idle("a get was dropped while it committed").await;
    fixture.expect(WAITING, 1, "a get that was dropped while it committed").await;
    let again = fixture.apples.list(&Filter::default(), 2).await?.pop().expect("the job");
    assert_eq!((again.priority, again.payload.as_str()), (7, "\"Granny Smith\""));
    assert_ne!(again.id, put.id, "it was taken and put again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_that_is_dropped_when_its_job_has_arrived_puts_the_job_again() -> TestResult {
    let mut fixture = Fixture::new().await;
    let apples = fixture.apples.clone();
    apples.put("Granny Smith").await?;
    let mut get = Box::pin(apples.get(Wait::No));
    poll_fn(|context| {
        assert!(get.as_mut().poll(context).is_pending());
        Poll::Ready(())
    })
    .await;
    // The take commits, and its job waits to be received.
    fixture.expect(WAITING, 0, "a get").await;
    fixture.expect_idle("a get").await;
    drop(get);
    fixture.expect(WAITING, 1, "a get that was dropped when its job had arrived").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_lease_ends_at_its_time() -> TestResult {
    const LEASE: Duration = Duration::from_millis(50);
    let mut fixture = Fixture::new().await;
    let apples = fixture.apples.clone();
    apples.put("Granny Smith").await?;
    let retention = Retention::default();
    at_every_await!(fixture, "lease", apples.lease(1, LEASE, Wait::No), |ended| match ended {
        Some(jobs) => assert_eq!(jobs?.len(), 1),
        None => {
            tokio::time::sleep(LEASE).await;
            fixture.pq.maintain(&retention).await?;
            fixture.expect(WAITING, 1, "a dropped lease").await;
        }
    });
    tokio::time::sleep(LEASE).await;
    fixture.pq.maintain(&retention).await?;
    let long = Duration::from_secs(60);
    let mut job = apples.lease(1, long, Wait::No).await?.pop().expect("a job");
    at_every_await!(fixture, "extend", apples.extend(&job, long), |ended| if let Some(extended) = ended {
        extended?;
    });
    at_every_await!(fixture, "settle", apples.settle(&job, Outcome::GiveBack), |ended| match ended {
        Some(settled) => settled?,
        // Given back, or still leased.
        None if fixture.number(WAITING).await == 1 => {
            job = apples.lease(1, long, Wait::No).await?.pop().expect("the job was given back");
        }
        None => {}
    });
    fixture.expect(WAITING, 1, "a settle").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_put_adds_its_jobs_or_none() -> TestResult {
    let mut fixture = Fixture::new().await;
    let (apples, eat) = (fixture.apples.clone(), fixture.eat.clone());
    let three = ["one", "two", "three"].map(str::to_owned);
    let unique = PutOptions::new().unique("key");
    at_every_await!(fixture, "put", apples.put("Granny Smith"), |ended| {
        ended.transpose()?;
    });
    at_every_await!(fixture, "put_with", apples.put_with("Braeburn", &unique), |ended| {
        ended.transpose()?;
    });
    assert_eq!(fixture.number("SELECT count(*) FROM pq.queue WHERE unique_key IS NOT NULL").await, 1);
    apples.clear().await?;
    at_every_await!(fixture, "put_many", apples.put_many(&three), |ended| {
        ended.transpose()?;
    });
    assert_eq!(fixture.number(WAITING).await % 3, 0, "all three or none");
    at_every_await!(fixture, "call", eat.call(&three[0]), |ended| {
        ended.transpose()?;
    });
    at_every_await!(fixture, "call_many", eat.call_many(&three), |ended| {
        ended.transpose()?;
    });
    // A put that follows one that was dropped is answered.
    apples.put("Cox").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_transaction_rolls_back() -> TestResult {
    let mut fixture = Fixture::new().await;
    let (pq, apples) = (fixture.pq.clone(), fixture.apples.clone());
    let mut before = 0;
    at_every_await!(
        fixture,
        "transaction",
        pq.transaction(async |conn| {
            apples.on(conn).put("one").await?;
            apples.on(conn).put("two").await?;
            Ok::<_, Error>(())
        }),
        |ended| {
            ended.transpose()?;
            let found = fixture.number(WAITING).await;
            assert!(found == before || found == before + 2, "{found} jobs after {before}");
            before = found;
        }
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_call_of_administration_leaves_the_pool_usable() -> TestResult {
    let mut fixture = Fixture::new().await;
    let (pq, apples, filter) = (fixture.pq.clone(), fixture.apples.clone(), Filter::default());
    let id = apples.put("Granny Smith").await?.id;
    let retention = Retention::default();
    macro_rules! each {
        ($($name:literal: $call:expr,)*) => {
            0 $(+ at_every_await!(fixture, $name, $call, |ended| { ended.transpose()?; }))*
        };
    }
    let awaits = each! {
        "now": pq.now(),
        "overview": pq.overview(),
        "list of all": pq.list(&filter, 10),
        "find of all": pq.find(id),
        "explain": pq.explain(id),
        "audit": pq.audit(None, 10),
        "preview": pq.preview(&Operation::Cancel, &filter, 10),
        "operate": pq.operate(&Operation::Retry, &filter, |_| ()),
        "change": pq.change(id, &Operation::Retry),
        "workers": pq.workers(),
        "stop_worker": pq.stop_worker(pq_core::WorkerId(1), pq_diesel_async::StopMode::Drain),
        "maintain": pq.maintain(&retention),
        "counts": apples.counts(),
        "list": apples.list(&filter, 10),
        "find": apples.find(id),
        "archived": apples.archived(pq_diesel_async::JobState::Dead, 10),
        "requeue": apples.requeue(None),
        "pause": apples.pause(),
        "resume": apples.resume(),
        "cancel": apples.cancel(id),
        "clear": apples.clear(),
        "migrate": pq.migrate(),
        "connect": Pq::connect(fixture.database.url()),
    };
    assert!(awaits > 10, "the futures awaited nothing");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_call_on_the_callers_connection_commits_nothing_of_the_transaction() -> TestResult {
    let mut fixture = Fixture::new().await;
    let apples = fixture.apples.clone();
    apples.put("Granny Smith").await?;
    let url = fixture.database.url().to_owned();
    at_every_await!(
        fixture,
        "a transaction of the caller's",
        async {
            let mut conn = AsyncPgConnection::establish(&url).await?;
            let undone = conn.transaction::<(), Error, _>(async |conn| {
                let mut queue = apples.on(conn);
                queue.put("another").await?;
                let mut job = queue.get().await?.expect("a job");
                queue.update(&mut job, "eaten in part".to_owned()).await?;
                queue.give_back(&job).await?;
                queue.counts().await?;
                Err(pq_core::Error::Stopped.into())
            });
            assert!(undone.await.is_err_and(|error| error.is_stopped()));
            Ok::<_, diesel::ConnectionError>(())
        },
        |ended| {
            drop(ended);
            fixture.expect(WAITING, 1, "a transaction of the caller's that was dropped").await;
        }
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_futures_of_a_context_can_be_dropped_and_the_job_is_done() -> TestResult {
    let fixture = Fixture::new().await;
    let url = fixture.database.url().to_owned();
    fixture.eat.call(&"first".to_owned()).await?;
    let handler = fixture.eat.leased_async(move |context, _job| {
        let url = url.clone();
        async move {
            for awaits in 0.. {
                let ended = [
                    drop_after(context.extend_lease(), awaits).await.transpose()?.is_some(),
                    drop_after(context.checkpoint(&"later"), awaits).await.transpose()?.is_some(),
                    drop_after(context.cancelled(), 0).await.is_none(),
                    // The connection is dropped with the future, so the job is not completed.
                    drop_after(
                        async {
                            let mut conn = AsyncPgConnection::establish(&url)
                                .await
                                .map_err(|_| pq_core::Error::Stopped)?;
                            let undone = conn.transaction::<(), Error, _>(async |conn| {
                                context.complete_with(conn).await?;
                                Err(pq_core::Error::Stopped.into())
                            });
                            assert!(undone.await.is_err_and(|error| error.is_stopped()));
                            Ok::<_, Error>(())
                        },
                        awaits,
                    )
                    .await
                    .transpose()?
                    .is_some(),
                ];
                if ended.iter().all(|ended| *ended) {
                    return Ok::<_, Error>(());
                }
            }
            Ok(())
        }
    });
    let report = pq_diesel_async::Worker::new(&fixture.pq).serve(handler).run_until_empty().await?;
    assert_eq!((report.done, report.failed, report.lost), (1, 0, 0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_run_tells_its_handlers_to_end_and_gives_their_jobs_back() -> TestResult {
    let mut fixture = Fixture::new().await;
    fixture.eat.call(&"first".to_owned()).await?;
    let started = std::sync::Arc::new(tokio::sync::Notify::new());
    let notify = std::sync::Arc::clone(&started);
    let handler = fixture.eat.leased_async(move |context, _job| {
        notify.notify_one();
        async move {
            context.cancelled().await;
            Err::<(), _>("told to end")
        }
    });
    let running = tokio::spawn(pq_diesel_async::Worker::new(&fixture.pq).serve(handler).run());
    started.notified().await;
    running.abort();
    let ready =
        "SELECT count(*) FROM pq.queue WHERE q_name = 'tasks' AND dequeued_at IS NULL AND attempt = 0";
    fixture.expect(ready, 1, "a run").await;
    Ok(())
}

/// A step that is dropped is kept whole or not at all, and the next one finds out which.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_step_is_kept_or_runs_again() -> TestResult {
    let mut fixture = Fixture::new().await;
    let apples = fixture.apples.clone();
    for awaits in 0..MAX_AWAITS {
        apples.put("Granny Smith").await?;
        let (sender, mut answers) = tokio::sync::mpsc::unbounded_channel();
        let handler = apples.leased_async(move |context, _job| {
            let sender = sender.clone();
            async move {
                let first = drop_after(context.step("charge", async || Ok::<_, Error>(7_i64)), awaits).await;
                let kept = match &first {
                    Some(_) => 7,
                    None => context.step("charge", async || Ok::<_, Error>(8_i64)).await?,
                };
                let _ = sender.send((first.is_some(), kept));
                Ok::<_, Error>(())
            }
        });
        Worker::new(&fixture.pq).serve(handler).run_until_empty().await?;
        let (ended, kept) = answers.recv().await.ok_or("the handler failed")?;
        let steps = "SELECT count(*) FROM pq.queue_steps";
        assert_eq!(fixture.number(steps).await, 1, "dropped at await {awaits}");
        let result =
            "SELECT max(result::text::bigint) FROM pq.queue_steps WHERE name = 'charge' AND position = 0";
        assert_eq!(fixture.number(result).await, kept, "dropped at await {awaits}");
        fixture.conn.batch_execute("TRUNCATE pq.queue_steps").await?;
        if ended {
            return Ok(());
        }
    }
    Err("the step does not end".into())
}
