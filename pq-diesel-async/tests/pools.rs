//! Pools of the application, errors, and connections that fail.

use std::time::Duration;

use diesel_async::pooled_connection::{AsyncDieselConnectionManager, bb8, deadpool};
use diesel_async::{AsyncConnection, AsyncPgConnection, SimpleAsyncConnection};
use pq_diesel_async::{Builder, Error, Pq, Wait, Worker};
use pq_testing::{Database, Server};

type TestResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

async fn database() -> Database {
    let database = Server::shared().expect("a server").database().expect("a database");
    let pq = Pq::builder().url(database.url()).build().expect("a handle");
    pq.migrate().await.expect("a table");
    database
}

fn manager(url: &str) -> AsyncDieselConnectionManager<AsyncPgConnection> {
    AsyncDieselConnectionManager::new(url)
}

/// Returns a handle on a pool of each kind, of one connection.
async fn on_each_pool(url: &str) -> [(&'static str, Builder); 3] {
    let of_deadpool = deadpool::Pool::builder(manager(url)).max_size(1).build().expect("a pool");
    let of_bb8 = bb8::Pool::builder().max_size(1).build(manager(url)).await.expect("a pool");
    let of_mobc = ::mobc::Pool::builder().max_open(1).build(manager(url));
    [
        ("deadpool", Pq::builder().deadpool(of_deadpool)),
        ("bb8", Pq::builder().bb8(of_bb8)),
        ("mobc", Pq::builder().mobc(of_mobc)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_pool_works_and_closes_what_was_not_finished() -> TestResult {
    let database = database().await;
    for (name, builder) in on_each_pool(database.url()).await {
        let pq = builder.url(database.url()).build()?;
        let apples = pq.queue::<String>(name)?;
        apples.put("Granny Smith").await?;
        // The transaction is dropped while it is open, and there is only this connection.
        let stuck = pq.transaction(async |conn| {
            apples.on(conn).get().await?;
            std::future::pending::<Result<(), Error>>().await
        });
        assert!(tokio::time::timeout(Duration::from_millis(300), stuck).await.is_err(), "{name}");
        let job =
            tokio::time::timeout(Duration::from_secs(20), apples.get(Wait::For(Duration::from_secs(15))));
        assert_eq!(job.await??.expect("the job is back").data, "Granny Smith", "{name}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_url_a_pool_serves_everything_but_a_worker() -> TestResult {
    let database = database().await;
    for (name, builder) in on_each_pool(database.url()).await {
        let pq = builder.listen(false).build()?;
        let greet = pq.queue(name)?.task::<String>("greet");
        greet.call(&"world".to_owned()).await?;
        assert_eq!(greet.queue().counts().await?.waiting(), 1, "{name}");
        let handler = greet.leased_async(|_context, _job| async { Ok::<_, Error>(()) });
        let refused = Worker::new(&pq).serve(handler).run_until_empty().await;
        assert!(matches!(refused, Err(Error::Refused(pq_core::Error::NoConnection))), "{refused:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_whose_connections_are_all_in_use_says_so() -> TestResult {
    let database = database().await;
    let pq =
        Pq::builder().url(database.url()).pool_size(1).connect_timeout(Duration::from_secs(2)).build()?;
    let refused: Result<(), Error> = pq
        .transaction(async |_conn| match pq.now().await {
            Err(error @ Error::PoolExhausted { .. }) => Err(error),
            other => panic!("{other:?}"),
        })
        .await;
    let error = refused.expect_err("the pool has one connection");
    assert!(error.is_unavailable() && error.to_string().contains("all 1 connections"), "{error}");
    Ok(())
}

/// The trigger raises the SQLSTATE that is the payload. diesel-async does not expose it, so this also tests that it
/// is read from where diesel-async keeps it.
#[tokio::test(flavor = "multi_thread")]
async fn the_sqlstate_decides_whether_an_error_is_passing() -> TestResult {
    let database = database().await;
    let pq = Pq::builder().url(database.url()).build()?;
    let queue = pq.queue::<String>("apples")?;
    let mut conn = AsyncPgConnection::establish(database.url()).await?;
    conn.batch_execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE 'no' USING ERRCODE = (SELECT data #>> '{}' FROM added LIMIT 1); END $$;
        CREATE TRIGGER refuse AFTER INSERT ON pq.queue REFERENCING NEW TABLE AS added
            FOR EACH STATEMENT EXECUTE FUNCTION refuse()",
    )
    .await?;
    let passing = ["40001", "40P01", "55P03", "57014", "53100", "53200", "57P01", "57P03"];
    let permanent = ["22021", "23514", "42501", "54000", "XX000"];
    for sqlstate in passing.into_iter().chain(permanent) {
        let refused = queue.put(sqlstate).await.expect_err(sqlstate);
        assert_eq!(refused.sqlstate(), Some(sqlstate), "{refused}");
        assert_eq!(refused.is_passing(), passing.contains(&sqlstate), "{sqlstate}");
        assert_eq!(refused.is_conflict(), sqlstate.starts_with("40"), "{sqlstate}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_does_not_exist_and_a_server_that_does_not_answer_are_named() -> TestResult {
    let database = database().await;
    let missing = Pq::builder().url(database.url()).table("missing").build()?;
    let error = missing.queue::<String>("apples")?.put("one").await.expect_err("no such table");
    assert!(error.is_not_migrated(), "{error}");
    let down = Pq::builder().url("postgres://nobody:secret@127.0.0.1:1/nowhere").build()?;
    let error = down.now().await.expect_err("nobody listens there");
    assert!(error.is_unavailable() && !error.to_string().contains("secret"), "{error}");
    let error = Pq::builder().url("postgres://host:port:secret/").build().expect_err("no URL");
    assert!(!error.to_string().contains("secret"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_was_lost_while_idle_is_replaced() -> TestResult {
    let database = database().await;
    let pq = Pq::builder().url(database.url()).pool_size(1).listen(false).build()?;
    pq.now().await?;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let mut conn = AsyncPgConnection::establish(database.url()).await?;
    conn.batch_execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    .await?;
    pq.now().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_hangs_ends_at_the_call_timeout() -> TestResult {
    let database = database().await;
    let timeout = Duration::from_millis(300);
    let pq = Pq::builder().url(database.url()).call_timeout(timeout).listen(false).build()?;
    let apples = pq.queue::<String>("apples")?;
    let mut conn = AsyncPgConnection::establish(database.url()).await?;
    conn.batch_execute("BEGIN; LOCK TABLE pq.queue IN ACCESS EXCLUSIVE MODE").await?;
    let error = apples.put("one").await.expect_err("the table is locked");
    assert!(error.is_outcome_unknown(), "{error}");
    let error = apples.counts().await.expect_err("the table is locked");
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    conn.batch_execute("ROLLBACK").await?;
    apples.put("two").await?;
    assert_eq!(
        apples.get(Wait::No).await?.expect("a job").data,
        "two",
        "the statement of the first put was cancelled"
    );
    Ok(())
}
