//! Handlers on PostgreSQL: what each does on the connection stands or falls alone.

mod common;

use common::{Outcome, database};
use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use pq_diesel::{EndedAs, Error, Pq, Wait, Worker};
use pq_testing::Database;

/// A database with a table that handlers write to, and a handle on it.
fn with_notes() -> Result<(Database, Pq), Box<dyn std::error::Error>> {
    let database = database()?;
    database.connect()?.batch_execute("CREATE TABLE notes (note bigint PRIMARY KEY)")?;
    let pq = Pq::builder().url(database.url()).build()?;
    Ok((database, pq))
}

fn note(conn: &mut PgConnection, note: i64) -> Result<(), Error> {
    let insert = diesel::sql_query("INSERT INTO notes VALUES ($1)").bind::<BigInt, _>(note);
    insert.execute(conn).map(drop).map_err(Error::from)
}

fn notes(database: &Database) -> Result<Vec<i64>, Box<dyn std::error::Error>> {
    Ok(diesel::dsl::sql::<BigInt>("SELECT note FROM notes ORDER BY note").load(&mut database.connect()?)?)
}

#[test]
fn a_handler_that_overlooks_a_failed_statement_has_failed_alone() -> Outcome {
    let (database, pq) = with_notes()?;
    let task = pq.queue::<()>("apples")?.task::<i64>("note");
    task.call_many(&[1, 2, 3, 4])?;
    let handler = task.transactional(|conn, job| {
        note(conn, job.data)?;
        if job.data % 2 == 0 {
            let _ = note(conn, 1);
        }
        Ok::<_, Error>(())
    });
    let report = Worker::new(&pq).batch(4, 4).serve(handler).run_until_empty()?;
    assert_eq!((report.done, report.failed, report.dead), (2, 2, 2));
    assert_eq!(notes(&database)?, [1, 3]);
    for dead in pq.queue::<()>("apples")?.archived(EndedAs::Dead, None, 9)? {
        let error = dead.error.unwrap_or_default();
        assert!(error.contains("the handler's writes could not be kept"), "{error}");
    }
    Ok(())
}

#[test]
fn a_job_whose_work_overlooks_a_failed_statement_is_back_alone() -> Outcome {
    let (database, pq) = with_notes()?;
    let queue = pq.queue::<i64>("apples")?;
    queue.put_many(&[1, 2, 3])?;
    let done = queue.get_each_with(3, Wait::No, |conn, job| {
        note(conn, job.data)?;
        if job.data == 2 {
            let _ = note(conn, 1);
        }
        Ok::<_, Error>(())
    })?;
    assert_eq!(done.iter().map(|(_, done)| done.is_ok()).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(notes(&database)?, [1, 3]);
    assert_eq!(queue.get_many(9, Wait::No)?.iter().map(|job| job.data).collect::<Vec<_>>(), [2]);
    Ok(())
}

#[test]
fn a_transaction_that_a_handler_leaves_open_ends_with_it() -> Outcome {
    let (database, pq) = with_notes()?;
    let task = pq.queue::<()>("apples")?.task::<i64>("note");
    task.call_many(&[1, 2, 3, 4])?;
    let handler = task.transactional(|conn, job| {
        let status = AnsiTransactionManager::transaction_manager_status_mut(conn);
        assert_eq!(status.transaction_depth()?.map(u32::from), Some(1));
        for _ in 0..2 {
            AnsiTransactionManager::begin_transaction(conn)?;
        }
        note(conn, job.data)?;
        match job.data {
            2 => Err(Error::from(diesel::result::Error::RollbackTransaction)),
            3 => panic!("on purpose"),
            _ => Ok(()),
        }
    });
    let report = Worker::new(&pq).batch(4, 4).serve(handler).run_until_empty()?;
    assert_eq!((report.done, report.failed), (2, 2));
    assert_eq!(notes(&database)?, [1, 4]);
    Ok(())
}

#[test]
fn a_handlers_limit_is_not_that_of_the_next() -> Outcome {
    let (_database, pq) = with_notes()?;
    let queue = pq.queue::<()>("apples")?;
    let limited = queue.task::<bool>("limited").timeout(std::time::Duration::from_secs(60));
    let free = queue.task::<String>("free");
    let limit = |conn: &mut PgConnection| diesel::dsl::sql::<Text>("SHOW statement_timeout").get_result(conn);
    // The next after one that fails without a statement, and after one that fails with one.
    for touches in [false, true] {
        limited.call(&touches)?;
        free.call(&"0".to_owned())?;
    }
    let handlers = [
        limited.transactional(move |conn, job| {
            let limit: String = if job.data { limit(conn)? } else { "unknown".to_owned() };
            Err::<(), _>(Error::Unavailable(limit))
        }),
        free.transactional(move |conn, job| {
            let limit: String = limit(conn)?;
            assert_eq!(limit, job.data);
            Ok::<_, Error>(())
        }),
    ];
    let report = handlers.into_iter().fold(Worker::new(&pq).batch(4, 4), Worker::serve).run_until_empty()?;
    assert_eq!((report.done, report.dead), (2, 2), "{:?}", queue.archived(EndedAs::Dead, None, 9)?);
    let errors: Vec<_> =
        queue.archived(EndedAs::Dead, None, 9)?.into_iter().filter_map(|dead| dead.error).collect();
    assert!(errors[0].contains("1min") && errors[1].contains("unknown"), "{errors:?}");
    Ok(())
}
