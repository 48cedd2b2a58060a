//! That calls do go together, and what each is told when they fail.

use std::error::Error as StdError;
use std::panic::resume_unwind;
use std::time::{Duration, Instant};

use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use pq_core::{QueueName, Wait};
use pq_testing::{Database, Server};
use serde_json::{Value, json};

use super::{ABREAST, Fate, Together, Turn};
use crate::{Error, Pq, Queue};

type Outcome = Result<(), Box<dyn StdError>>;

const PATIENCE: Duration = Duration::from_secs(30);

const THREADS: usize = 16;

/// A table that notes each statement that adds or removes jobs, a handle, and a queue.
fn scene() -> Result<(Database, Pq, Queue<Value>), Box<dyn StdError>> {
    let database = Server::shared()?.database()?;
    let pq = Pq::builder().url(database.url()).listen(false).build()?;
    pq.migrate()?;
    database.connect()?.batch_execute(
        "CREATE TABLE statements (what text);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN INSERT INTO public.statements VALUES (TG_OP); RETURN NULL; END';
         CREATE TRIGGER note AFTER INSERT OR DELETE ON pq.queue FOR EACH STATEMENT EXECUTE FUNCTION note()",
    )?;
    let queue = pq.queue("apples")?;
    Ok((database, pq, queue))
}

/// Has so many threads make their calls while the table is locked against them, does `meanwhile` when all are under
/// way or in line, and gives what they did.
fn behind_a_lock<R: Send>(
    database: &Database,
    waiting: impl Fn() -> usize,
    call: impl Fn(usize) -> R + Sync,
    meanwhile: impl FnOnce(&mut PgConnection, &dyn Fn() -> bool) -> Outcome,
) -> Result<Vec<R>, Box<dyn StdError>> {
    let (mut lock, mut conn) = (database.connect()?, database.connect()?);
    lock.batch_execute("BEGIN; LOCK TABLE pq.queue IN SHARE MODE")?;
    std::thread::scope(|threads| {
        // Whatever fails, the calls can end, for the lock goes with this.
        let mut lock = lock;
        let call = &call;
        let calls: Vec<_> = (0..THREADS).map(|n| threads.spawn(move || call(n))).collect();
        until(|| waiting() == THREADS - ABREAST);
        let blocked = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'";
        until(|| count(&mut conn, blocked) == ABREAST as i64);
        meanwhile(&mut conn, &|| calls.iter().all(|call| call.is_finished()))?;
        lock.batch_execute("COMMIT")?;
        Ok(calls.into_iter().filter_map(|call| call.join().ok()).collect())
    })
}

fn until(is: impl FnMut() -> bool) {
    let (begun, mut is) = (Instant::now(), is);
    while !is() {
        assert!(begun.elapsed() < PATIENCE, "it never came to that");
        std::thread::yield_now();
    }
}

fn count(conn: &mut PgConnection, sql: &str) -> i64 {
    diesel::dsl::sql::<BigInt>(sql).get_result(conn).unwrap_or(-1)
}

fn noted(database: &Database, what: &str) -> Result<i64, Box<dyn StdError>> {
    let sql = format!("SELECT count(*) FROM statements WHERE what = '{what}'");
    Ok(count(&mut database.connect()?, &sql))
}

#[test]
fn puts_that_wait_share_a_statement() -> Outcome {
    let (database, pq, queue) = scene()?;
    let waiting = || pq.store().puts.waiting(queue.name());
    let put = |n| queue.put(&json!(n)).map(|id| (id, json!(n)));
    let put = behind_a_lock(&database, waiting, put, |_, _| Ok(()))?;
    let mut put = put.into_iter().collect::<Result<Vec<_>, _>>()?;
    put.sort_by_key(|(id, _)| *id);
    // Those that were under way, and as many for all others at most.
    let statements = noted(&database, "INSERT")?;
    assert!((ABREAST as i64 + 1..=2 * ABREAST as i64).contains(&statements), "{statements}");
    let there: Vec<_> = queue.get_many(100, Wait::No)?.into_iter().map(|job| (job.id, job.data)).collect();
    assert_eq!(there, put);
    assert_eq!(put.len(), THREADS);
    Ok(())
}

#[test]
fn gets_that_wait_share_statements() -> Outcome {
    let (database, pq, queue) = scene()?;
    let numbers: Vec<Value> = (0..THREADS).map(|n| json!(n)).collect();
    let ids = queue.put_many(&numbers)?;
    let waiting = || pq.store().gets.waiting(queue.name());
    let got = behind_a_lock(&database, waiting, |_| queue.get(Wait::No), |_, _| Ok(()))?;
    let got = got.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut got: Vec<_> = got.into_iter().flatten().map(|job| job.id).collect();
    got.sort();
    assert_eq!(got, ids);
    // Those that were under way, and as many for all others at most.
    let statements = noted(&database, "DELETE")?;
    assert!((ABREAST as i64 + 1..=2 * ABREAST as i64).contains(&statements), "{statements}");
    Ok(())
}

#[test]
fn a_job_that_the_database_refuses_spoils_none_beside_it() -> Outcome {
    let (database, pq, queue) = scene()?;
    database.connect()?.batch_execute("ALTER TABLE pq.queue ADD CHECK (data::text <> '5')")?;
    let waiting = || pq.store().puts.waiting(queue.name());
    let put = behind_a_lock(&database, waiting, |n| (n, queue.put(&json!(n))), |_, _| Ok(()))?;
    for (n, put) in &put {
        assert_eq!(matches!(put, Err(Error::Database(_))), *n == 5, "{n}: {put:?}");
    }
    let mut there: Vec<_> =
        queue.get_many(100, Wait::No)?.into_iter().map(|job| (job.id, job.data)).collect();
    there.sort_by_key(|(id, _)| *id);
    let mut put: Vec<_> = put.into_iter().filter_map(|(n, put)| put.ok().map(|id| (id, json!(n)))).collect();
    put.sort_by_key(|(id, _)| *id);
    assert_eq!(there, put);
    Ok(())
}

/// Ends every session that waits for the lock, until no call is left, and says how many those were.
fn cut(conn: &mut PgConnection, over: &dyn Fn() -> bool) -> i64 {
    let mut cut = 0;
    until(|| {
        cut += count(
            conn,
            "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock'",
        );
        over()
    });
    cut
}

#[test]
fn puts_whose_connection_is_lost_are_all_told_that_the_outcome_is_unknown() -> Outcome {
    let (database, pq, queue) = scene()?;
    let waiting = || pq.store().puts.waiting(queue.name());
    let mut lost = 0;
    let put = behind_a_lock(
        &database,
        waiting,
        |n| queue.put(&json!(n)),
        |conn, over| {
            lost = cut(conn, over);
            Ok(())
        },
    )?;
    assert_eq!(put.len(), THREADS);
    assert!(put.iter().all(|put| matches!(put, Err(Error::OutcomeUnknown(_)))), "{put:?}");
    assert_eq!(queue.on(&mut database.connect()?).counts()?.ready, 0);
    assert!(lost <= 2 * ABREAST as i64, "{lost} statements were cut, so calls were tried again");
    Ok(())
}

#[test]
fn gets_whose_connection_is_lost_are_all_told_and_no_job_is_gone() -> Outcome {
    let (database, pq, queue) = scene()?;
    queue.put_many(&(0..THREADS).map(|n| json!(n)).collect::<Vec<_>>())?;
    let waiting = || pq.store().gets.waiting(queue.name());
    let got = behind_a_lock(
        &database,
        waiting,
        |_| queue.get(Wait::No),
        |conn, over| {
            cut(conn, over);
            Ok(())
        },
    )?;
    assert_eq!(got.len(), THREADS);
    assert!(got.iter().all(|got| matches!(got, Err(Error::Unavailable(_)))), "{got:?}");
    assert_eq!(queue.on(&mut database.connect()?).counts()?.ready, THREADS as u64);
    Ok(())
}

/// Once the first calls have ended, after so long, two more go in one group.
fn then_one_is_under_way_at_a_time(together: &Together<(), ()>, took: Duration) -> Outcome {
    let queue = QueueName::new("apples")?;
    let turn = || together.turn(&queue, || (), |line| line.count());
    let mut leads = Vec::new();
    for _ in 0..ABREAST {
        let Turn::Lead(mut lead) = turn() else { return Err("it waits for nobody".into()) };
        lead.begun -= took;
        leads.push(lead);
    }
    std::thread::scope(|threads| {
        let calls: Vec<_> = (1..=2)
            .map(|n| {
                let call = threads.spawn(|| matches!(turn(), Turn::Lead(lead) if lead.asks().count() == 1));
                until(|| together.waiting(&queue) == n);
                call
            })
            .collect();
        while leads.len() > 1 {
            drop(leads.pop());
            assert_eq!(together.waiting(&queue), 2, "others are under way");
        }
        drop(leads.pop());
        let led: Vec<_> = calls.into_iter().filter_map(|call| call.join().ok()).collect();
        assert_eq!(led, [true, false], "the first in line takes the other along");
    });
    Ok(())
}

#[test]
fn where_calls_are_slow_one_is_under_way_at_a_time() -> Outcome {
    let slow = Duration::from_secs(60);
    then_one_is_under_way_at_a_time(&Together { slow, crowd: usize::MAX, ..Together::default() }, slow)
}

#[test]
fn where_many_call_one_is_under_way_at_a_time() -> Outcome {
    let took = Duration::from_secs(60);
    then_one_is_under_way_at_a_time(&Together { slow: Duration::MAX, crowd: 4, ..Together::default() }, took)
}

#[test]
fn those_who_were_served_are_waited_for_and_the_last_of_them_leads() -> Outcome {
    let together = Together::<(), ()> { crowd: ABREAST, moment: PATIENCE, ..Together::default() };
    let queue = QueueName::new("apples")?;
    let turn = || together.turn(&queue, || (), |line| line.count());
    let mut leads: Vec<_> = (0..ABREAST).map(|_| turn()).collect();
    std::thread::scope(|threads| {
        let first = threads.spawn(|| matches!(turn(), Turn::Done(())));
        until(|| together.waiting(&queue) == 1);
        for lead in &mut leads {
            if let Turn::Lead(lead) = lead {
                lead.begun -= 10 * PATIENCE;
            }
        }
        drop(leads);
        // Who waits for nobody would have gone by now.
        for _ in 0..10_000 {
            std::thread::yield_now();
        }
        assert_eq!(together.waiting(&queue), 1, "it went without who comes again");
        let Turn::Lead(last) = turn() else { return Err("the last does not lead".into()) };
        assert_eq!(last.asks().count(), 1);
        last.tell([Fate::Done(())]);
        assert!(first.join().is_ok_and(|done| done), "the first is not served");
        Ok(())
    })
}

#[test]
fn who_waits_for_those_who_were_served_leads_when_they_do_not_come() -> Outcome {
    let together = Together::<(), ()> { crowd: 1, moment: PATIENCE, ..Together::default() };
    let queue = QueueName::new("apples")?;
    let turn = || together.turn(&queue, || (), |line| line.count());
    let Turn::Lead(mut lead) = turn() else { return Err("it waits for nobody".into()) };
    lead.begun -= PATIENCE;
    drop(lead);
    let mut lead = turn();
    std::thread::scope(|threads| {
        // One who waited while another was under way, and so is told until when.
        let second = threads.spawn(|| match turn() {
            Turn::Lead(lead) => Some(lead.is_alone()),
            _ => None,
        });
        until(|| together.waiting(&queue) == 1);
        if let Turn::Lead(lead) = &mut lead {
            lead.begun -= Duration::from_millis(20);
        }
        drop(lead);
        assert!(second.join().is_ok_and(|alone| alone == Some(true)), "it waits on, or is not alone");
    });
    // And one who comes when nobody is under way, where two were served.
    let Turn::Lead(mut lead) = turn() else { return Err("nobody else calls".into()) };
    (lead.served, lead.begun) = (2, lead.begun - Duration::from_millis(20));
    together.lanes()[0].served = 2;
    drop(lead);
    assert!(matches!(turn(), Turn::Lead(lead) if lead.is_alone()));
    Ok(())
}

#[test]
fn who_goes_again_is_waited_for_once() -> Outcome {
    let together = Together::<(), ()> { crowd: ABREAST, moment: 2 * PATIENCE, ..Together::default() };
    let queue = QueueName::new("apples")?;
    let turn = || together.turn(&queue, || (), |line| line.count());
    let company = || match turn() {
        Turn::Lead(lead) => Some(lead.asks().count()),
        _ => None,
    };
    let leads: Vec<_> = (0..ABREAST).map(|_| turn()).collect();
    std::thread::scope(|threads| {
        let first = threads.spawn(|| {
            let Turn::Lead(mut lead) = turn() else { return };
            lead.begun -= 100 * PATIENCE;
            lead.tell([Fate::Done(()), Fate::Again]);
        });
        until(|| together.waiting(&queue) == 1);
        threads.spawn(|| drop(turn()));
        until(|| together.waiting(&queue) == 2);
        let again = threads.spawn(company);
        until(|| together.waiting(&queue) == 3);
        drop(leads);
        until(|| first.is_finished());
        assert_eq!(together.waiting(&queue), 1, "it went without those who were served");
        // The two who were served come again, and then all are there.
        let served: Vec<_> = (0..2).map(|_| threads.spawn(company)).collect();
        until(|| served.iter().all(|served| served.is_finished()));
        let mut led: Vec<_> = served.into_iter().chain([again]).filter_map(|call| call.join().ok()).collect();
        led.sort();
        assert_eq!(led, [None, None, Some(2)]);
    });
    Ok(())
}

#[test]
fn many_who_have_all_been_served_are_still_many_when_they_come_again() -> Outcome {
    let together = Together::<(), ()> { crowd: ABREAST, moment: Duration::ZERO, ..Together::default() };
    let queue = QueueName::new("apples")?;
    let turn = || together.turn(&queue, || (), |line| line.count());
    let mut leads: Vec<_> = (0..ABREAST).map(|_| turn()).collect();
    for lead in &mut leads {
        if let Turn::Lead(lead) = lead {
            lead.begun -= PATIENCE;
        }
    }
    drop(leads);
    let lead = turn();
    std::thread::scope(|threads| {
        let next = threads.spawn(|| matches!(turn(), Turn::Lead(lead) if lead.is_alone()));
        until(|| together.waiting(&queue) == 1);
        drop(lead);
        assert!(next.join().is_ok_and(|leads| leads), "it does not lead");
    });
    Ok(())
}

/// Where one is under way until the end of a test, nobody may wait for it.
fn never_alone<A, R>() -> Together<A, R> {
    Together { slow: Duration::MAX, crowd: usize::MAX, ..Together::default() }
}

#[test]
fn calls_whose_leader_panics_are_lost_and_the_next_goes() -> Outcome {
    let (together, queue) = (never_alone::<(), ()>(), QueueName::new("apples")?);
    let turn = || together.turn(&queue, || (), |line| line.count());
    let mut leads: Vec<_> = (0..ABREAST).map(|_| turn()).collect();
    std::thread::scope(|threads| {
        let first = threads.spawn(|| match turn() {
            Turn::Lead(lead) if lead.asks().count() == 2 => resume_unwind(Box::new("on purpose")),
            _ => (),
        });
        until(|| together.waiting(&queue) == 1);
        let others: Vec<_> = (0..2).map(|_| threads.spawn(|| matches!(turn(), Turn::Lost))).collect();
        until(|| together.waiting(&queue) == 3);
        drop(leads.pop());
        assert!(first.join().is_err(), "it did not lead");
        let lost: Vec<_> = others.into_iter().map(|other| other.join().ok()).collect();
        assert_eq!(lost, [Some(true), Some(true)]);
    });
    drop(leads);
    assert!(together.lanes().is_empty(), "somebody is still under way");
    assert!(matches!(turn(), Turn::Lead(lead) if lead.is_alone()));
    Ok(())
}

#[test]
fn who_goes_again_goes_before_those_who_came_later() -> Outcome {
    let (together, queue) = (never_alone::<u8, u8>(), QueueName::new("apples")?);
    let lead = |ask| match together.turn(&queue, || ask, |line| line.take(2).count()) {
        Turn::Lead(lead) => Ok(lead),
        Turn::Done(answer) => Err(answer),
        Turn::Alone | Turn::Lost => Err(0),
    };
    let leads: Vec<_> = (0..ABREAST).map(|_| lead(0)).collect();
    std::thread::scope(|threads| {
        let (led, all) = std::sync::mpsc::channel();
        for n in 1..=4 {
            let (lead, led) = (&lead, led.clone());
            threads.spawn(move || match lead(n) {
                Ok(lead) => {
                    let _ = led.send((n, lead.asks().copied().collect::<Vec<_>>()));
                    lead.tell([Fate::Done(n), Fate::Again]);
                }
                Err(by) => drop(led.send((n, vec![by + 100]))),
            });
            until(|| together.waiting(&queue) == usize::from(n));
        }
        drop(led);
        // One place stays taken, so that the others go one after the other.
        let mut leads = leads;
        drop(leads.pop());
        let mut said: Vec<_> = all.iter().collect();
        said.sort();
        assert_eq!(said, [(1, vec![2, 3]), (2, vec![101]), (3, vec![4]), (4, vec![103])]);
    });
    Ok(())
}
