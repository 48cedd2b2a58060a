//! Who tells of a put: the writer in its commit, or a listener for a crowd of them.

mod common;

use std::error::Error as StdError;
use std::time::{Duration, Instant};

use common::{Outcome, PATIENCE, TELLERS, crowd, database, put, until_nobody_tells};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{Bool, Integer, Text};
use pq_diesel::{Error, Pq, PutOptions, Wait};
use pq_testing::Database;

/// Takes a lock that stands for a channel, as the table's trigger knows it, if it is free.
fn take_lock(conn: &mut PgConnection, what: &str, channel: &str) -> QueryResult<bool> {
    diesel::dsl::sql::<Bool>(&format!(
        "SELECT pg_try_advisory_lock(hashtextextended('pq {what} {channel}', 'pq.queue'::regclass::oid::bigint))"
    ))
    .get_result(conn)
}

/// What a session that only listens, as those of Python's pq, has heard until it is told on `end`: channels, and
/// what was told with them.
fn heard(listener: &mut PgConnection) -> Result<Vec<(String, String)>, Box<dyn StdError>> {
    let begun = Instant::now();
    let mut all = Vec::new();
    while all.last().is_none_or(|(channel, _)| channel != "end") {
        assert!(begun.elapsed() < PATIENCE, "no more is told than {all:?}");
        listener.batch_execute("SELECT")?;
        for one in listener.notifications_iter() {
            let one = one?;
            all.push((one.channel, one.payload));
        }
    }
    all.pop();
    Ok(all)
}

/// Tells what [`heard`] ends with.
fn end(conn: &mut PgConnection) -> QueryResult<()> {
    conn.batch_execute("NOTIFY \"end\"")
}

#[test]
fn while_somebody_tells_for_all_a_put_tells_nobody() -> Outcome {
    let database = database()?;
    let (mut writer, mut listener, mut teller) =
        (database.connect()?, database.connect()?, database.connect()?);
    // Of more than 63 bytes and fewer characters, so that Python's pq listens on another channel than we do.
    let long = "ж".repeat(40);
    let md5: String =
        diesel::dsl::sql::<Text>(&format!("SELECT 'pq_' || md5('{long}')")).get_result(&mut listener)?;
    let cut = "ж".repeat(31);
    listener.batch_execute(&format!(
        "LISTEN apples; LISTEN pears; LISTEN {md5}; LISTEN \"{cut}\"; LISTEN \"end\""
    ))?;
    let told = |channels: &[&str]| -> Vec<(String, String)> {
        channels.iter().map(|channel| ((*channel).to_owned(), String::new())).collect()
    };
    for queue in ["apples", &long] {
        put(&mut writer, queue)?;
    }
    end(&mut writer)?;
    assert_eq!(heard(&mut listener)?, told(&["apples", &md5, &cut]));

    assert!(take_lock(&mut teller, "notifier", "apples")? && take_lock(&mut teller, "notifier", &md5)?);
    for queue in ["apples", &long] {
        put(&mut writer, queue)?;
    }
    // Of several queues each is asked about for itself, and another table's are nobody's business.
    writer.batch_execute("INSERT INTO pq.queue (q_name, data) VALUES ('apples', '1'), ('pears', '1')")?;
    Pq::builder().table("other").build()?.migrate_on(&mut writer)?;
    writer.batch_execute("INSERT INTO pq.other (q_name, data) VALUES ('apples', '1'); NOTIFY \"end\"")?;
    assert_eq!(heard(&mut listener)?, told(&["pears", "apples"]));

    // Whoever tells can see that somebody is in the middle of a put.
    writer.batch_execute("BEGIN")?;
    put(&mut writer, "apples")?;
    assert!(!take_lock(&mut teller, "writers", "apples")?);
    writer.batch_execute("COMMIT")?;
    assert!(take_lock(&mut teller, "writers", "apples")?);

    // The lock is its session's, so that whoever tells may die.
    drop(teller);
    until_nobody_tells(&mut writer)?;
    put(&mut writer, "apples")?;
    end(&mut writer)?;
    assert_eq!(heard(&mut listener)?, told(&["apples"]));
    Ok(())
}

#[test]
fn a_key_that_comes_free_is_left_to_whoever_tells_for_all() -> Outcome {
    let database = database()?;
    let (mut taker, mut listener, mut teller) =
        (database.connect()?, database.connect()?, database.connect()?);
    let queue = Pq::builder().url(database.url()).build()?.queue::<i64>("apples")?;
    let keyed = PutOptions::new().serialization_key("key");
    for n in 0..2 {
        queue.put_with(&n, &keyed)?;
    }
    listener.batch_execute("LISTEN apples; LISTEN \"end\"")?;
    assert!(take_lock(&mut teller, "notifier", "apples")?);
    let take = |taker: &mut PgConnection| -> Result<Option<i64>, Error> {
        let job = queue.on(taker).transaction(|conn| queue.on(conn).get())?;
        end(taker)?;
        Ok(job.map(|job| job.data))
    };
    assert_eq!((take(&mut taker)?, heard(&mut listener)?), (Some(0), vec![]));
    drop(teller);
    until_nobody_tells(&mut listener)?;
    let told = vec![("apples".to_owned(), String::new())];
    assert_eq!((take(&mut taker)?, heard(&mut listener)?), (Some(1), told));
    Ok(())
}

/// A handle that would find nothing without being told, and that listens.
fn listening(database: &Database) -> Result<Pq, Error> {
    let hour = Duration::from_secs(3600);
    let pq = Pq::builder().url(database.url()).poll_interval(hour).build()?;
    pq.queue::<i64>("apples")?.get(Wait::For(Duration::from_millis(1)))?;
    Ok(pq)
}

#[test]
fn a_listener_tells_for_a_crowd_and_for_whoever_commits_after_it_has_ended() -> Outcome {
    let database = database()?;
    let pq = listening(&database)?;
    let queue = pq.queue::<i64>("apples")?;
    let mut plain = database.connect()?;
    plain.batch_execute("LISTEN apples")?;
    crowd(&database, "apples")?;

    // Python's waiters, which know nothing of it, are told too.
    let begun = Instant::now();
    let mut is_told = false;
    while !is_told {
        assert!(begun.elapsed() < PATIENCE, "nobody tells");
        plain.batch_execute("SELECT")?;
        is_told = plain.notifications_iter().filter_map(Result::ok).any(|one| one.payload == "coalesced");
    }

    let mut writer = database.connect()?;
    queue.clear()?;
    writer.batch_execute("BEGIN")?;
    put(&mut writer, "apples")?;
    std::thread::scope(|threads| {
        let waiter = threads.spawn(|| queue.get(Wait::For(PATIENCE * 2)));
        until_nobody_tells(&mut plain)?;
        writer.batch_execute("COMMIT")?;
        let begun = Instant::now();
        assert!(waiter.join().map_err(|_| "the waiter panicked")??.is_some());
        assert!(begun.elapsed() < PATIENCE, "it was found by the last look of the wait");
        Ok(())
    })
}

#[test]
fn where_the_one_who_tells_dies_the_writers_tell_again() -> Outcome {
    let database = database()?;
    let pq = listening(&database)?;
    crowd(&database, "apples")?;
    let mut conn = database.connect()?;
    conn.batch_execute("LISTEN apples; LISTEN \"end\"")?;
    let teller: i32 = diesel::dsl::sql::<Integer>(TELLERS).get_result(&mut conn)?;
    conn.batch_execute(&format!("SELECT pg_terminate_backend({teller})"))?;
    until_nobody_tells(&mut conn)?;
    let mut writer = database.connect()?;
    put(&mut writer, "apples")?;
    end(&mut writer)?;
    let told = heard(&mut conn)?;
    assert_eq!(told.last(), Some(&("apples".to_owned(), String::new())), "{told:?}");
    drop(pq);
    Ok(())
}

#[test]
fn a_handle_that_is_closed_tells_no_longer() -> Outcome {
    let database = database()?;
    let pq = listening(&database)?;
    crowd(&database, "apples")?;
    drop(pq);
    until_nobody_tells(&mut database.connect()?)
}
