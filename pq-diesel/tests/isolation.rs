//! The library's own statements run at READ COMMITTED on a database whose default is another level.

mod common;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::{Outcome, database};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::r2d2::ConnectionManager;
use diesel::sql_types::Text;
use pq_diesel::{Error, Isolation, Pq, Wait, Worker};
use pq_testing::Database;

/// A database whose sessions are at SERIALIZABLE by default, and which notes the level of each change of the queue.
fn serializable() -> Result<Database, Box<dyn std::error::Error>> {
    let database = database()?;
    database.connect()?.batch_execute(
        "CREATE TABLE levels (level text, change text);
        CREATE FUNCTION note_level() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO public.levels VALUES (current_setting('transaction_isolation'), TG_OP || ' ' || TG_TABLE_NAME);
            RETURN NULL;
        END $$;
        DO $$ DECLARE name text; BEGIN
            FOR name IN SELECT relname FROM pg_class WHERE relnamespace = 'pq'::regnamespace AND relkind = 'r' LOOP
                EXECUTE format('CREATE TRIGGER note_level AFTER INSERT OR UPDATE OR DELETE ON pq.%I
                    EXECUTE FUNCTION note_level()', name);
            END LOOP;
            EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation TO serializable', current_database());
        END $$",
    )?;
    Ok(database)
}

/// Returns the changes at another level than READ COMMITTED, and the number of all.
fn levels(database: &Database) -> Result<(Vec<String>, usize), Box<dyn std::error::Error>> {
    let all: Vec<String> = diesel::dsl::sql::<Text>("SELECT level || ': ' || change FROM levels")
        .load(&mut database.connect()?)?;
    let count = all.len();
    Ok((all.into_iter().filter(|change| !change.starts_with("read committed")).collect(), count))
}

/// Without prepared statements, as behind a pooler, single statements are sent in another way.
#[test]
fn every_change_of_a_handle_is_at_read_committed() -> Outcome {
    for prepare in [true, false] {
        let database = serializable()?;
        let pq = Pq::builder().url(database.url()).prepare(prepare).build()?;
        change_at_read_committed(&database, &pq)?;
    }
    Ok(())
}

fn change_at_read_committed(database: &Database, pq: &Pq) -> Outcome {
    let queue = pq.queue::<i64>("apples")?;
    queue.put(&1)?;
    queue.put_many([2, 3])?;
    queue.put_many(0..3_000)?;
    queue.put_all(0..10)?;
    queue.get(Wait::No)?.ok_or("no job")?;
    let leased = queue.lease(2, Duration::from_secs(60), Wait::No)?;
    queue.extend(&leased[0], Duration::from_secs(60))?;
    queue.settle(&leased[0], pq_diesel::Outcome::Complete)?;
    queue.settle(&leased[1], pq_diesel::Outcome::dead("broken"))?;
    queue.pause()?;
    queue.resume()?;
    pq.transaction(|conn| queue.on(conn).put(&4).map(drop))?;
    pq.maintain(&pq_diesel::Retention::default())?;
    let seen = Arc::new(Mutex::new(Vec::new()));
    for isolation in [Isolation::ReadCommitted, Isolation::RepeatableRead] {
        let note = Arc::clone(&seen);
        let handler = queue.transactional(move |conn, _| {
            let level: String = diesel::dsl::sql::<Text>("SHOW transaction_isolation").get_result(conn)?;
            note.lock().unwrap_or_else(PoisonError::into_inner).push(level);
            Ok::<_, Error>(())
        });
        Worker::new(pq).serve(handler.isolation(isolation)).run_jobs(1)?;
        if isolation == Isolation::ReadCommitted {
            let (others, all) = levels(database)?;
            assert_eq!(others, <[String; 0]>::default());
            assert!(all > 20, "{all} changes were noted");
        }
    }
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(*seen, ["read committed", "repeatable read"]);
    Ok(())
}

/// Gets and leases each job once, from many threads, without an error.
#[test]
fn concurrent_calls_do_not_conflict() -> Outcome {
    const JOBS: usize = 400;
    let database = serializable()?;
    database.connect()?.batch_execute("DROP FUNCTION note_level CASCADE")?;
    let manager = ConnectionManager::<PgConnection>::new(database.url());
    let applications = r2d2::Pool::builder().max_size(8).min_idle(Some(0)).build(manager)?;
    for pq in [
        Pq::builder().url(database.url()).listen(false).build()?,
        Pq::builder().pool(applications).listen(false).build()?,
    ] {
        let queue = pq.queue::<usize>("apples")?;
        let seen = Mutex::new(Vec::new());
        std::thread::scope(|threads| -> Outcome {
            let work = |thread: usize| -> Result<(), Error> {
                for n in (thread..JOBS).step_by(8) {
                    queue.put(&n)?;
                    let got = if n % 2 == 0 {
                        queue.get(Wait::No)?
                    } else {
                        let leased = queue.lease(1, Duration::from_secs(60), Wait::No)?.pop();
                        leased.iter().try_for_each(|job| queue.settle(job, pq_diesel::Outcome::Complete))?;
                        leased
                    };
                    seen.lock().unwrap_or_else(PoisonError::into_inner).extend(got.map(|job| job.data));
                }
                Ok(())
            };
            let all: Vec<_> = (0..8).map(|thread| threads.spawn(move || work(thread))).collect();
            for thread in all {
                thread.join().map_err(|_| "a thread panicked")??;
            }
            Ok(())
        })?;
        let mut seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
        // A take may have skipped jobs that others had locked at that moment.
        seen.extend(queue.get_many(JOBS, Wait::No)?.into_iter().map(|job| job.data));
        seen.sort_unstable();
        assert_eq!(seen, (0..JOBS).collect::<Vec<_>>());
    }
    Ok(())
}

/// A worker extends the lease of a long handler meanwhile, so each run of the handler would conflict with it.
#[test]
fn a_lease_that_was_extended_can_be_settled_in_an_older_snapshot() -> Outcome {
    let database = database()?;
    let queue = Pq::builder().url(database.url()).build()?.queue::<i64>("apples")?;
    let mut conn = database.connect()?;
    let again = pq_diesel::Outcome::Retry { after: Duration::ZERO, error: "again".to_owned(), payload: None };
    for isolation in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        for (outcome, ready) in
            [(pq_diesel::Outcome::Complete, 0), (pq_diesel::Outcome::dead("broken"), 0), (again.clone(), 1)]
        {
            queue.put(&1)?;
            let leased = queue.lease(1, Duration::from_secs(60), Wait::No)?;
            conn.build_transaction().run(|conn| -> Outcome {
                let begin =
                    format!("SET TRANSACTION ISOLATION LEVEL {isolation}; SELECT FROM pq.queue_leases");
                conn.batch_execute(&begin)?;
                queue.extend(&leased[0], Duration::from_secs(60))?;
                Ok(queue.on(conn).settle(&leased[0], outcome)?)
            })?;
            let counts = queue.counts()?;
            assert_eq!((counts.running, counts.ready), (0, ready), "{isolation}");
            queue.clear()?;
        }
    }
    Ok(())
}
