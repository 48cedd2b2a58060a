//! Workflows and awaited calls of asynchronous handlers.

use std::time::Duration;

use diesel_async::{AsyncConnection, AsyncPgConnection};
use pq_diesel_async::{Error, JobResult, Outcome, Pq, Retention, Wait, Worker, Workflow};
use pq_testing::{Database, Server};

type TestResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

async fn fresh() -> Result<(Database, Pq), Box<dyn std::error::Error + Send + Sync>> {
    let database = Server::shared()?.database()?;
    let pq = Pq::builder().url(database.url()).build()?;
    pq.migrate().await?;
    Ok((database, pq))
}

#[tokio::test(flavor = "multi_thread")]
async fn asynchronous_handlers_read_results_of_their_workflow_and_of_their_calls() -> TestResult {
    let (database, pq) = fresh().await?;
    let queue = pq.queue("sums")?;
    let (add, double) = (queue.task::<u32>("add"), queue.task::<u32>("double"));
    let workflow = Workflow::new("sum").job("one", &add, &20).job("two", &add, &1).after(["one"]);
    let mut conn = AsyncPgConnection::establish(database.url()).await?;
    let id = conn
        .transaction::<_, Error, _>(async |conn| {
            let id = pq.put_workflow_on(conn, &workflow).await?;
            assert!(pq.workflow(id).await?.is_none(), "it is not committed");
            Ok(id)
        })
        .await?;
    let doubled = double.clone();
    let adds = add.leased_async(move |context, job| {
        let doubled = doubled.clone();
        async move {
            let one = match job.data {
                1 => context.result_of::<u32>("one").await?.done().unwrap_or_default(),
                _ => 0,
            };
            // It is called once, although the handler begins anew.
            let answer: JobResult<u32> = context.call_and_wait(&doubled, &(one + job.data)).await?;
            Ok::<_, Error>(Outcome::result(&answer.done().unwrap_or_default())?)
        }
    });
    let doubles = double.leased_async(|_, job| async move { Outcome::result(&(2 * job.data)) });
    let worker = Worker::new(&pq).serve(adds).serve(doubles);
    let report = tokio::time::timeout(Duration::from_secs(30), worker.run_jobs(6)).await??;
    assert_eq!((report.done, report.snoozed), (4, 2), "{report:?}");
    // 2 * (2 * 20 + 1)
    assert_eq!(pq.workflow_result::<u32>(id, "two").await?, JobResult::Done(82));
    let in_transaction = conn
        .transaction::<_, Error, _>(async |conn| pq.workflow_result_on::<u32>(conn, id, "one").await)
        .await?;
    assert_eq!(in_transaction, JobResult::Done(40));
    while pq.maintain(&Retention::default()).await?.is_none_or(|report| report.more) {}
    assert_eq!(pq.wait_for::<()>(id, Wait::For(Duration::from_secs(20))).await?, JobResult::Done(()));
    Ok(())
}
