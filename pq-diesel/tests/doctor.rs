//! `Pq::examine`: its findings, and what it leaves of the session.

#[path = "common/migrated.rs"]
mod migrated;

use std::error::Error;
use std::time::{Duration, SystemTime};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use pq_diesel::Pq;
use pq_diesel::doctor::{Examination, Finding, Level};
use pq_testing::{Database, Server};

type Outcome = Result<(), Box<dyn Error>>;

fn migrated() -> Result<(Database, Pq), Box<dyn Error>> {
    let database = migrated::migrated();
    let pq = Pq::connect(database.url())?;
    Ok((database, pq))
}

fn of<'f>(findings: &'f [Finding], check: &str) -> Vec<&'f Finding> {
    findings.iter().filter(|finding| finding.check == check).collect()
}

#[test]
fn examine_leaves_the_callers_session_and_transaction_unchanged() -> Outcome {
    const SESSION: &str =
        "SELECT concat_ws('; ', current_setting('search_path'), current_setting('lock_timeout'),
        current_setting('statement_timeout'), current_setting('plan_cache_mode'),
        nullif(current_setting('pq.doctor', true), ''), (SELECT count(*) FROM pg_listening_channels()),
        (SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'pq_doctor%'))";
    let (database, pq) = migrated()?;
    let mut conn = database.connect()?;
    let session = |conn: &mut PgConnection| diesel::dsl::sql::<Text>(SESSION).get_result::<String>(conn);
    let before = session(&mut conn)?;
    let findings = pq.examine_on(&mut conn, &Examination::new())?;
    assert_eq!(of(&findings, "pooler")[0].level, Level::Ok);
    assert_eq!(session(&mut conn)?, before);
    conn.transaction(|conn| {
        conn.batch_execute("CREATE TABLE mine (); SET LOCAL lock_timeout TO '7s'")?;
        let inside = session(conn)?;
        let findings = pq.examine_on(conn, &Examination::new())?;
        assert_eq!(of(&findings, "pooler")[0].level, Level::Skipped);
        assert_eq!(of(&findings, "catalog")[0].level, Level::Ok);
        assert_eq!(session(conn)?, inside);
        Ok::<_, pq_diesel::Error>(())
    })?;
    let mine: i64 = diesel::dsl::sql::<BigInt>("SELECT count(*) FROM mine").get_result(&mut conn)?;
    assert_eq!(mine, 0, "the caller's table was rolled back");
    Ok(())
}

#[test]
fn a_detached_handle_examines_on_the_callers_connection() -> Outcome {
    let (database, _) = migrated()?;
    let detached = Pq::detached();
    assert!(detached.examine(&Examination::new()).is_err());
    let findings = detached.examine_on(&mut database.connect()?, &Examination::new())?;
    assert!(findings.len() > 10);
    assert!(of(&findings, "clock").is_empty(), "no clock was given");
    Ok(())
}

#[test]
fn a_wrong_clock_is_reported() -> Outcome {
    let (_database, pq) = migrated()?;
    let an_hour_ahead: fn() -> SystemTime = || SystemTime::now() + Duration::from_secs(3600);
    let findings = pq.examine(&Examination::new().clock(an_hour_ahead))?;
    let clock = of(&findings, "clock")[0];
    assert_eq!(clock.level, Level::Warning);
    assert!(clock.message.contains("ahead of the server's"), "{}", clock.message);
    assert!(clock.advice.as_ref().is_some_and(|advice| advice.contains("only the database's clock decides")));
    Ok(())
}

#[test]
fn concurrent_examinations_do_not_disturb_each_other() -> Outcome {
    let (_database, pq) = migrated()?;
    std::thread::scope(|threads| {
        let examinations: Vec<_> =
            (0..4).map(|_| threads.spawn(|| pq.examine(&Examination::new()))).collect();
        for examination in examinations {
            let findings = examination.join().map_err(|_| "an examination panicked")??;
            assert_eq!(of(&findings, "catalog")[0].level, Level::Ok, "{:?}", of(&findings, "catalog"));
            assert_eq!(of(&findings, "pooler")[0].level, Level::Ok);
        }
        Ok(())
    })
}

#[test]
fn a_table_created_by_diesels_harness_passes() -> Outcome {
    use diesel_migrations::MigrationHarness;
    let database = Server::shared()?.database()?;
    let mut conn = database.connect()?;
    conn.run_pending_migrations(pq_diesel::admin::MIGRATIONS).map_err(|error| error.to_string())?;
    let findings = Pq::detached().examine_on(&mut conn, &Examination::new())?;
    assert_eq!(of(&findings, "migrations")[0].level, Level::Ok);
    let drift: Vec<_> =
        of(&findings, "catalog").into_iter().filter(|found| found.level > Level::Ok).collect();
    assert!(drift.is_empty(), "{drift:?}");
    Ok(())
}

#[test]
fn examine_does_not_wait_for_a_locked_table() -> Outcome {
    let (database, pq) = migrated()?;
    let mut locker = database.connect()?;
    locker.batch_execute("BEGIN; LOCK TABLE pq.queue IN ACCESS EXCLUSIVE MODE")?;
    let findings = pq.examine(&Examination::new())?;
    assert!(of(&findings, "plans").iter().any(|found| found.level == Level::Skipped), "{findings:?}");
    Ok(())
}

#[test]
fn a_changed_default_of_a_function_is_reported() -> Outcome {
    let (database, pq) = migrated()?;
    let mut conn = database.connect()?;
    let definition = "SELECT pg_get_functiondef('pq.queue_put'::regproc)";
    let definition: String = diesel::dsl::sql::<Text>(definition).get_result(&mut conn)?;
    conn.batch_execute(&definition.replace("priority integer DEFAULT 0", "priority integer DEFAULT 7"))?;
    conn.batch_execute("DROP FUNCTION pq.queue_call")?;
    let findings = pq.examine_on(&mut conn, &Examination::new())?;
    let drift: Vec<&str> = of(&findings, "catalog").iter().map(|found| found.message.as_str()).collect();
    assert_eq!(drift.len(), 2, "{drift:?}");
    assert!(drift[0].starts_with("function queue_call(") && drift[0].ends_with("is missing"), "{drift:?}");
    assert!(drift[1].starts_with("function queue_put(") && drift[1].ends_with("was changed"), "{drift:?}");
    Ok(())
}
