//! Row-level security on the tables of the queue.

mod common;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use pq_diesel::Pq;
use pq_diesel::admin::Role;
use pq_diesel::doctor::{Examination, Level};
use pq_testing::Database;
use serde_json::json;

use self::common::*;

/// Returns a connection of a role that may run workers.
fn consumer(database: &Database, role: &str) -> Result<PgConnection, Box<dyn std::error::Error>> {
    let mut conn = database.connect()?;
    // A role belongs to the server, which other tests use as well.
    conn.batch_execute(&format!("DROP ROLE IF EXISTS {role}; CREATE ROLE {role}"))?;
    Pq::detached().grant_on(&mut conn, Role::Consumer, role)?;
    conn.batch_execute(&format!("SET ROLE {role}"))?;
    Ok(conn)
}

#[test]
fn a_role_from_which_a_pause_may_be_hidden_takes_nothing() -> Outcome {
    let database = database()?;
    let (queue, mut owner) = (queue(&database)?, database.connect()?);
    let name = format!("sees_part_{}", database.name());
    let mut conn = consumer(&database, &name)?;
    queue.put_many(&[json!(1), json!(2), json!(3)])?;
    assert!(queue.on(&mut conn).get()?.is_some());
    queue.pause()?;
    assert!(queue.on(&mut conn).get()?.is_none());

    owner.batch_execute("ALTER TABLE pq.queue_controls ENABLE ROW LEVEL SECURITY")?;
    for take in [false, true] {
        let taken = match take {
            true => queue.on(&mut conn).get().map(drop),
            false => queue.on(&mut conn).lease(1, PATIENCE).map(drop),
        };
        let refused = taken.map_err(|error| error.to_string());
        assert!(refused.clone().is_err_and(|error| error.contains("row-level security")), "{refused:?}");
    }
    let findings = Pq::detached().examine_on(&mut conn, &Examination::new())?;
    let found = findings.iter().find(|finding| finding.check == "row-level security").ok_or("a finding")?;
    assert_eq!(found.level, Level::Failure, "{found:?}");

    // The owner is exempt, and so is a role that may bypass policies.
    queue.resume()?;
    assert!(queue.on(&mut owner).get()?.is_some());
    owner.batch_execute(&format!("ALTER ROLE {name} BYPASSRLS"))?;
    assert!(queue.on(&mut conn).get()?.is_some());
    drop(conn);
    owner.batch_execute(&format!("DROP OWNED BY {name}; DROP ROLE {name}"))?;
    Ok(())
}

#[test]
fn the_doctor_finds_tables_whose_rows_may_be_hidden() -> Outcome {
    let database = database()?;
    let mut owner = database.connect()?;
    let name = format!("sees_none_{}", database.name());
    let mut conn = consumer(&database, &name)?;
    let levels = |conn: &mut PgConnection| -> Result<Vec<Level>, pq_diesel::Error> {
        let findings = Pq::detached().examine_on(conn, &Examination::new())?;
        let of_check = findings.iter().filter(|finding| finding.check == "row-level security");
        Ok(of_check.map(|finding| finding.level).collect())
    };
    assert_eq!(levels(&mut conn)?, [Level::Ok]);
    owner.batch_execute("ALTER TABLE pq.queue ENABLE ROW LEVEL SECURITY")?;
    assert_eq!(levels(&mut conn)?, [Level::Failure], "no policy shows a row");
    owner.batch_execute("CREATE POLICY part ON pq.queue USING (q_name = 'apples')")?;
    assert_eq!(levels(&mut conn)?, [Level::Warning]);
    owner.batch_execute("CREATE POLICY everything ON pq.queue USING (true)")?;
    assert_eq!(levels(&mut conn)?, [Level::Ok]);
    assert_eq!(levels(&mut owner)?, [Level::Ok]);
    drop(conn);
    owner.batch_execute(&format!("DROP OWNED BY {name}; DROP ROLE {name}"))?;
    Ok(())
}
