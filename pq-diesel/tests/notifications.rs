//! Notifications: sent by the writer at commit, by the handle afterwards, or by a listener for contending writers.

mod common;

use std::error::Error as StdError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{
    LISTENING, NOTIFIERS, Outcome, PATIENCE, contend, contend_by, database, put, queue, until,
    until_no_notifier,
};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{Bool, Integer, Text};
use pq_diesel::{Error, Notify, Pq, PutOptions, Wait};
use pq_testing::{Database, Options, Server};
use serde_json::{Value, json};

/// Tries to acquire the notifier lock of a channel.
fn take_lock(conn: &mut PgConnection, channel: &str) -> QueryResult<bool> {
    diesel::dsl::sql::<Bool>(&format!(
        "SELECT pg_try_advisory_lock(hashtextextended('pq notifier {channel}', 'pq.queue'::regclass::oid::bigint))"
    ))
    .get_result(conn)
}

/// Returns the channels and payloads that a session receives until a notification on `end`. The session only listens,
/// like those of Python's pq.
fn received(listener: &mut PgConnection) -> Result<Vec<(String, String)>, Box<dyn StdError>> {
    let started = Instant::now();
    let mut all = Vec::new();
    while all.last().is_none_or(|(channel, _)| channel != "end") {
        assert!(started.elapsed() < PATIENCE, "received only {all:?}");
        listener.batch_execute("SELECT")?;
        for one in listener.notifications_iter() {
            let one = one?;
            all.push((one.channel, one.payload));
        }
    }
    all.pop();
    Ok(all)
}

/// Sends the notification with which [`received`] ends.
fn end(conn: &mut PgConnection) -> QueryResult<()> {
    conn.batch_execute("NOTIFY \"end\"")
}

#[test]
fn a_put_that_does_not_notify_can_be_prepared() -> Outcome {
    let server = Server::start(&Options::throwaway().setting("max_prepared_transactions", "2"))?;
    let database = server.database()?;
    let pq = Pq::connect(database.url())?;
    pq.migrate()?;
    let mut conn = database.connect()?;
    let queue = pq.queue::<Value>("mail")?;
    let mut put = |setting: &str| -> Result<(), Error> {
        conn.batch_execute(&format!("BEGIN; {setting}"))?;
        queue.on(&mut conn).put(&json!(1))?;
        Ok(conn.batch_execute("PREPARE TRANSACTION 'one'")?)
    };
    let refused = put("").map_err(|error| error.to_string());
    assert!(refused.is_err_and(|text| text.contains("SET LOCAL pq.notify TO 'off'")));
    put("SET LOCAL pq.notify TO 'off'")?;
    conn.batch_execute("COMMIT PREPARED 'one'")?;
    assert_eq!(queue.get(Wait::No)?.map(|job| job.data), Some(json!(1)));
    Ok(())
}

#[test]
fn a_put_does_not_notify_while_the_notifier_lock_is_taken() -> Outcome {
    let database = database()?;
    let (mut writer, mut listener, mut notifier) =
        (database.connect()?, database.connect()?, database.connect()?);
    // More than 63 bytes and fewer characters, so Python's pq listens on another channel.
    let long = "ж".repeat(40);
    let md5: String =
        diesel::dsl::sql::<Text>(&format!("SELECT 'pq_' || md5('{long}')")).get_result(&mut listener)?;
    let cut = "ж".repeat(31);
    listener.batch_execute(&format!(
        "LISTEN apples; LISTEN pears; LISTEN {md5}; LISTEN \"{cut}\"; LISTEN \"end\""
    ))?;
    let expected = |channels: &[&str]| -> Vec<(String, String)> {
        channels.iter().map(|channel| ((*channel).to_owned(), String::new())).collect()
    };
    for queue in ["apples", &long] {
        put(&mut writer, queue)?;
    }
    end(&mut writer)?;
    assert_eq!(received(&mut listener)?, expected(&["apples", &md5, &cut]));

    assert!(take_lock(&mut notifier, "apples")? && take_lock(&mut notifier, &md5)?);
    for queue in ["apples", &long] {
        put(&mut writer, queue)?;
    }
    // Each queue of a statement has its own lock, and so has each table.
    writer.batch_execute("INSERT INTO pq.queue (q_name, data) VALUES ('apples', '1'), ('pears', '1')")?;
    Pq::builder().table("other").build()?.migrate_on(&mut writer)?;
    writer.batch_execute("INSERT INTO pq.other (q_name, data) VALUES ('apples', '1'); NOTIFY \"end\"")?;
    assert_eq!(received(&mut listener)?, expected(&["pears", "apples"]));

    // The lock ends with the session of the listener.
    drop(notifier);
    until_no_notifier(&mut writer)?;
    put(&mut writer, "apples")?;
    end(&mut writer)?;
    assert_eq!(received(&mut listener)?, expected(&["apples"]));
    Ok(())
}

#[test]
fn releasing_a_key_does_not_notify_while_the_notifier_lock_is_taken() -> Outcome {
    let database = database()?;
    let (mut taker, mut listener, mut notifier) =
        (database.connect()?, database.connect()?, database.connect()?);
    let queue = Pq::builder().url(database.url()).build()?.queue::<i64>("apples")?;
    let keyed = PutOptions::new().serialization_key("key");
    for n in 0..2 {
        queue.put_with(&n, &keyed)?;
    }
    listener.batch_execute("LISTEN apples; LISTEN \"end\"")?;
    assert!(take_lock(&mut notifier, "apples")?);
    let take = |taker: &mut PgConnection| -> Result<Option<i64>, Error> {
        let job = queue.on(taker).transaction(|conn| queue.on(conn).get())?;
        end(taker)?;
        Ok(job.map(|job| job.data))
    };
    assert_eq!((take(&mut taker)?, received(&mut listener)?), (Some(0), vec![]));
    drop(notifier);
    until_no_notifier(&mut listener)?;
    let expected = vec![("apples".to_owned(), String::new())];
    assert_eq!((take(&mut taker)?, received(&mut listener)?), (Some(1), expected));
    Ok(())
}

/// Returns a handle that listens and practically never polls.
fn listening(database: &Database) -> Result<Pq, Error> {
    let hour = Duration::from_secs(3600);
    let pq = Pq::builder().url(database.url()).poll_interval(hour).build()?;
    pq.queue::<i64>("apples")?.get(Wait::For(Duration::from_millis(1)))?;
    Ok(pq)
}

/// Checks that a writer's put, which did not notify, is notified although the notifier lock is released before its
/// commit.
fn notifies_for_writer(database: &Database, mut writer: PgConnection) -> Outcome {
    let hour = Duration::from_secs(3600);
    let queue = Pq::builder().url(database.url()).poll_interval(hour).build()?.queue::<i64>("apples")?;
    // A session that only listens, like those of Python's pq.
    let mut plain = database.connect()?;
    plain.batch_execute("LISTEN apples")?;
    queue.clear()?;
    std::thread::scope(|threads| {
        let waiter = threads.spawn(|| queue.get(Wait::For(PATIENCE * 2)));
        until_no_notifier(&mut plain)?;
        plain.notifications_iter().for_each(drop);
        let (started, mut notified) = (Instant::now(), 0);
        while notified < 4 {
            assert!(started.elapsed() < PATIENCE, "no handle notifies for a writer that is left");
            plain.batch_execute("SELECT")?;
            notified += plain.notifications_iter().flatten().filter(|one| one.payload == "coalesced").count();
        }
        writer.batch_execute("COMMIT")?;
        let started = Instant::now();
        assert!(waiter.join().map_err(|_| "the waiter panicked")??.is_some());
        assert!(started.elapsed() < PATIENCE, "the job was found by the last poll of the wait");
        Ok(())
    })
}

#[test]
fn a_listener_notifies_for_contending_writers_and_for_those_that_commit_later() -> Outcome {
    let database = database()?;
    let _listener = listening(&database)?;
    let writer = contend(&database, "apples")?;
    notifies_for_writer(&database, writer)
}

#[test]
fn a_handle_that_puts_notifies_for_contending_writers_although_nobody_waits() -> Outcome {
    let database = database()?;
    // All writers put through handles, or all but one on connections of their own.
    for handles in [6, 1] {
        let handles = (0..handles).map(|_| Pq::builder().url(database.url()).pool_size(1).build());
        let queues = handles.map(|pq| pq?.queue::<i64>("apples")).collect::<Result<Vec<_>, Error>>()?;
        let writer = contend_by(&database, "apples", |n, stop| {
            let mut conn = database.connect()?;
            while !stop.load(Ordering::Relaxed) {
                match queues.get(n) {
                    Some(queue) => drop(queue.put(&1)?),
                    None => put(&mut conn, "apples")?,
                }
            }
            Ok(())
        })?;
        notifies_for_writer(&database, writer)?;
    }
    Ok(())
}

#[test]
fn writers_notify_again_after_the_notifier_dies() -> Outcome {
    let database = database()?;
    let pq = listening(&database)?;
    contend(&database, "apples")?;
    let mut conn = database.connect()?;
    conn.batch_execute("LISTEN apples; LISTEN \"end\"")?;
    let notifier: i32 = diesel::dsl::sql::<Integer>(NOTIFIERS).get_result(&mut conn)?;
    conn.batch_execute(&format!("SELECT pg_terminate_backend({notifier})"))?;
    until_no_notifier(&mut conn)?;
    let mut writer = database.connect()?;
    put(&mut writer, "apples")?;
    end(&mut writer)?;
    let all = received(&mut conn)?;
    assert_eq!(all.last(), Some(&("apples".to_owned(), String::new())), "{all:?}");
    drop(pq);
    Ok(())
}

#[test]
fn closing_a_handle_releases_its_notifier_lock() -> Outcome {
    let database = database()?;
    let pq = listening(&database)?;
    contend(&database, "apples")?;
    drop(pq);
    until_no_notifier(&mut database.connect()?)
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
    // The trigger does not notify for these connections.
    let silent = format!("{}{joint}options=-c%20pq.notify%3Doff", database.url());
    let pq = Pq::builder().url(&silent).poll_interval(PATIENCE * 2).build()?;
    let queue = pq.queue::<Value>("apples")?;
    std::thread::scope(|threads| {
        let waiter = threads.spawn(|| queue.get(Wait::For(PATIENCE)));
        // The wait polls once more when the server has confirmed LISTEN.
        let polled = "SELECT count(*) FROM pg_stat_activity AS poll, pg_stat_activity AS listener
            WHERE poll.datname = current_database() AND listener.datname = poll.datname
                AND listener.query LIKE 'LISTEN%' AND listener.state = 'idle' AND poll.state = 'idle'
                AND poll.query_start > listener.state_change";
        until(&mut database.connect()?, polled)?;
        let started = Instant::now();
        queue.put(&json!(1))?;
        assert!(waiter.join().map_err(|_| "the waiter panicked")??.is_some());
        assert!(started.elapsed() < PATIENCE / 2, "the job was found by the last poll of the wait");
        Ok(())
    })
}

#[test]
fn with_notify_after_commit_the_transaction_itself_does_not_notify() -> Outcome {
    let database = database()?;
    let (mut writer, mut listener) = (database.connect()?, database.connect()?);
    let pq = Pq::builder().url(database.url()).notify(Notify::AfterCommit).build()?;
    let queue = pq.queue::<i64>("apples")?;
    let process: i32 = diesel::dsl::sql::<Integer>("SELECT pg_backend_pid()").get_result(&mut writer)?;
    listener.batch_execute("LISTEN apples; LISTEN pears; LISTEN plums")?;
    queue.on(&mut writer).transaction(|conn| -> Result<(), Error> {
        let one = queue.on(conn).put(&1)?;
        let some = queue.on(conn).transaction(|conn| queue.on(conn).put_many([2, 3]))?;
        assert!(one.id < some[0].id && some[0].id < some[1].id, "{one:?} {some:?}");
        // A plain INSERT notifies at commit as usual.
        conn.batch_execute("INSERT INTO pq.queue (q_name, data) VALUES ('pears', '1')")?;
        Ok(())
    })?;
    // The handle does not commit this transaction and cannot know when it ends, so the trigger notifies.
    writer.transaction(|conn| pq.queue::<i64>("plums")?.on(conn).put(&1))?;
    let started = Instant::now();
    let mut all = Vec::new();
    while ["apples", "pears", "plums"].iter().any(|queue| !all.iter().any(|(channel, _)| channel == queue)) {
        assert!(started.elapsed() < PATIENCE, "received only {all:?}");
        listener.batch_execute("SELECT")?;
        for one in listener.notifications_iter() {
            let one = one?;
            all.push((one.channel, one.process_id == process));
        }
    }
    let by_the_writer = all.iter().filter(|(_, is_the_writers)| *is_the_writers);
    assert!(by_the_writer.map(|(channel, _)| channel.as_str()).eq(["pears", "plums"]), "{all:?}");
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
        // The waiter polls again when its subscription is confirmed, and then sleeps.
        until(
            &mut conn,
            "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND query LIKE '%COMMIT' AND state = 'idle'
                AND state_change < clock_timestamp() - interval '200 ms'
                AND NOT EXISTS (
                    SELECT FROM pg_stat_activity
                    WHERE datname = current_database() AND pid <> pg_backend_pid()
                        AND backend_type = 'client backend' AND xact_start IS NOT NULL)",
        )?;
        queue.on(&mut conn).put(&json!(1))?;
        assert!(waiter.join().map_err(|_| "the waiter panicked")??.is_some());
        Ok(())
    })
}
