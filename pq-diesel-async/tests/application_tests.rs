//! What pq-testing gives to the tests of an asynchronous application.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use diesel_async::{AsyncConnection, AsyncPgConnection};
use pq_diesel_async::{CallOptions, Error, Filter, Pq, Task, Worker};
use pq_testing::{Calls, Expected, Server, advance, assert_called, assert_not_called};

type TestResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

fn greet(pq: &Pq) -> Result<Task<String>, Error> {
    Ok(pq.queue::<()>("greetings")?.task("greet"))
}

/// Lists the calls that the transaction of the connection sees.
async fn calls_on(conn: &mut AsyncPgConnection, task: &Task<String>) -> Result<Calls<String>, Error> {
    let jobs = task.queue().on(conn).list(&Filter::default(), usize::MAX).await?;
    Ok(Calls::read(task.blocking(), jobs))
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_asserted_in_the_transaction_of_the_test() -> TestResult {
    let database = Server::shared()?.database()?;
    let pq = Pq::builder().url(database.url()).build()?;
    pq.migrate().await?;
    let task = greet(&pq)?;
    let mut conn = AsyncPgConnection::establish(database.url()).await?;
    conn.begin_test_transaction().await?;
    let (world, moon) = ("world".to_owned(), "moon".to_owned());
    task.on(&mut conn).call_with(&world, &CallOptions::new().priority(3)).await?;

    let calls = calls_on(&mut conn, &task).await?;
    calls.assert_called(Expected::arguments(&world).priority(3));
    calls.assert_not_called(&moon);
    let failed = catch_unwind(AssertUnwindSafe(|| {
        calls.assert_called(&moon);
    }));
    let message = failed.err().and_then(|panic| panic.downcast::<String>().ok()).ok_or("it was called")?;
    assert_eq!(
        *message,
        "task \"greet\" was not called with \"moon\"\nit was called with\n  job 1, ready: \"world\", priority 3\n"
    );
    assert_not_called(task.blocking(), Expected::any());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn time_passes_for_asynchronous_handlers() -> TestResult {
    let database = Server::shared()?.database()?;
    let pq = Pq::builder().url(database.url()).build()?;
    pq.migrate().await?;
    let task = greet(&pq)?;
    let worker = || Worker::new(&pq).serve(task.leased_async(|_, _| async { Ok::<_, Error>(()) }));
    task.call_with(&"world".to_owned(), &CallOptions::new().schedule_at("1h")).await?;
    assert_called(task.blocking(), Expected::any().schedule_at("1h"));
    assert_eq!(worker().run_until_empty().await?.done, 0);
    advance(pq.blocking(), Duration::from_secs(3_600))?;
    assert_eq!(worker().run_until_empty().await?.done, 1);
    Ok(())
}
