//! Who tells of a put: the writer in its commit, or a listener for a crowd of them.

mod common;

use std::error::Error as StdError;
use std::time::{Duration, Instant};

use common::{LISTENING, Outcome, PATIENCE, TELLERS, crowd, database, put, queue, until, until_nobody_tells};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Integer, Text};
use pq_diesel::{Error, Notify, Pq, PutOptions, Wait};
use pq_testing::Database;
use serde_json::{Value, json};

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
fn a_put_does_not_notify_while_the_notifier_lock_is_taken() -> Outcome {
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
fn releasing_a_key_does_not_notify_while_the_notifier_lock_is_taken() -> Outcome {
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
fn a_listener_notifies_for_contending_writers_and_for_those_that_commit_later() -> Outcome {
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
fn writers_notify_again_after_the_notifier_dies() -> Outcome {
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
fn closing_a_handle_releases_its_notifier_lock() -> Outcome {
    let database = database()?;
    let pq = listening(&database)?;
    crowd(&database, "apples")?;
    drop(pq);
    until_nobody_tells(&mut database.connect()?)
}

#[test]
fn puts_without_notification_are_found_by_polling() -> Outcome {
    let database = database()?;
    let poll = Duration::from_millis(50);
    let pq = Pq::builder().url(database.url()).notify(Notify::Off).poll_interval(poll).build()?;
    let queue = pq.queue::<Value>("apples")?;
    std::thread::scope(|threads| {
        let waiter = threads.spawn(|| queue.get(Wait::For(PATIENCE)));
        until(&mut database.connect()?, LISTENING)?;
        queue.put(&json!(1))?;
        assert!(waiter.join().map_err(|_| "the waiter panicked")??.is_some());
        Ok(())
    })
}

#[test]
fn a_put_wakes_waiters_of_its_own_handle_without_the_server() -> Outcome {
    let database = database()?;
    let joint = if database.url().contains('?') { '&' } else { '?' };
    // The trigger tells nobody of what is put on these connections.
    let silent = format!("{}{joint}options=-c%20pq.notify%3Doff", database.url());
    let pq = Pq::builder().url(&silent).poll_interval(PATIENCE * 2).build()?;
    let queue = pq.queue::<Value>("apples")?;
    std::thread::scope(|threads| {
        let waiter = threads.spawn(|| queue.get(Wait::For(PATIENCE)));
        let looked = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND query LIKE '%SKIP LOCKED%' AND state = 'idle'";
        until(&mut database.connect()?, looked)?;
        let begun = Instant::now();
        queue.put(&json!(1))?;
        assert!(waiter.join().map_err(|_| "the waiter panicked")??.is_some());
        assert!(begun.elapsed() < PATIENCE / 2, "it was found by the last look of the wait");
        Ok(())
    })
}

#[test]
fn with_notify_after_commit_the_transaction_itself_does_not_notify() -> Outcome {
    let database = database()?;
    let (mut writer, mut heard) = (database.connect()?, database.connect()?);
    let pq = Pq::builder().url(database.url()).notify(Notify::AfterCommit).build()?;
    let queue = pq.queue::<i64>("apples")?;
    let process: i32 = diesel::dsl::sql::<Integer>("SELECT pg_backend_pid()").get_result(&mut writer)?;
    heard.batch_execute("LISTEN apples; LISTEN pears; LISTEN plums")?;
    queue.on(&mut writer).transaction(|conn| -> Result<(), Error> {
        let one = queue.on(conn).put(&1)?;
        let some = queue.on(conn).transaction(|conn| queue.on(conn).put_many(&[2, 3]))?;
        assert!(one.id < some[0].id && some[0].id < some[1].id, "{one:?} {some:?}");
        // What others put is none of the handle's business.
        conn.batch_execute("INSERT INTO pq.queue (q_name, data) VALUES ('pears', '1')")?;
        Ok(())
    })?;
    // Of a transaction that it does not commit it cannot know when it is over.
    writer.transaction(|conn| pq.queue::<i64>("plums")?.on(conn).put(&1))?;
    let begun = Instant::now();
    let mut told = Vec::new();
    while ["apples", "pears", "plums"].iter().any(|queue| !told.iter().any(|(channel, _)| channel == queue)) {
        assert!(begun.elapsed() < PATIENCE, "no more is told than {told:?}");
        heard.batch_execute("SELECT")?;
        for one in heard.notifications_iter() {
            let one = one?;
            told.push((one.channel, one.process_id == process));
        }
    }
    let by_the_writer = told.iter().filter(|(_, is_the_writers)| *is_the_writers);
    assert!(by_the_writer.map(|(channel, _)| channel.as_str()).eq(["pears", "plums"]), "{told:?}");
    let got = queue.get_many(9, Wait::No)?.into_iter().map(|job| job.data);
    assert!(got.eq([1, 2, 3]));
    Ok(())
}

#[test]
fn one_listener_serves_all_waiting_threads_of_a_handle() -> Outcome {
    let database = database()?;
    let pq = Pq::builder().url(database.url()).pool_size(4).build()?;
    std::thread::scope(|threads| {
        for n in 0..6 {
            let queue = pq.queue::<Value>(format!("queue {}", n % 3))?;
            threads.spawn(move || queue.get(Wait::For(PATIENCE)));
        }
        let mut conn = database.connect()?;
        until(&mut conn, LISTENING)?;
        for n in 0..6 {
            pq.queue::<Value>(format!("queue {}", n % 3))?.put(&json!(n))?;
        }
        let listeners: i32 = diesel::dsl::sql::<Integer>(
            "SELECT count(*)::integer FROM pg_stat_activity
             WHERE datname = current_database() AND query LIKE 'LISTEN%'",
        )
        .get_result(&mut conn)?;
        assert_eq!(listeners, 1);
        Ok(())
    })
}

#[test]
fn no_transaction_is_open_while_a_wait_sleeps() -> Outcome {
    let database = database()?;
    let queue = queue(&database)?;
    let mut conn = database.connect()?;
    std::thread::scope(|threads| {
        let waiter = threads.spawn(|| queue.get_with(Wait::For(PATIENCE), |_, job| Ok::<_, Error>(job.data)));
        until(&mut conn, LISTENING)?;
        until(
            &mut conn,
            "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND query LIKE '%COMMIT' AND state = 'idle'",
        )?;
        let open: i64 = diesel::dsl::sql::<BigInt>(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL",
        )
        .get_result(&mut conn)?;
        queue.on(&mut conn).put(&json!(1))?;
        assert!(waiter.join().map_err(|_| "the waiter panicked")??.is_some());
        assert_eq!(open, 0);
        Ok(())
    })
}
