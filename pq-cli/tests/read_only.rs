//! Commands on a database that refuses changes, as a standby does.

mod common;

use common::{Outcome, migrated, put, run, status, stderr, stdout};
use diesel::connection::SimpleConnection;
use pq_testing::Database;

/// A database with one job, whose sessions are read-only from now on.
fn read_only() -> Result<Database, Box<dyn std::error::Error>> {
    let database = migrated()?;
    put(&database, "mail", "1")?;
    database.connect()?.batch_execute(
        "DO $$ BEGIN
            EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database());
        END $$",
    )?;
    Ok(database)
}

#[test]
fn a_worker_that_ends_when_its_queue_is_empty_ends_with_the_reason() -> Outcome {
    let database = read_only()?;
    let worked = run(&database, &["work", "mail", "--exec", "true", "--burst"])?;
    assert_ne!(status(&worked), 0);
    assert!(stderr(&worked).contains("read-only"), "{}", stderr(&worked));
    Ok(())
}

#[test]
fn the_doctor_reports_what_it_can() -> Outcome {
    let database = read_only()?;
    let examined = run(&database, &["doctor"])?;
    let (report, error) = (stdout(&examined), stderr(&examined));
    assert!(report.contains("read-only") && report.lines().count() > 10, "{report}{error}");
    assert_eq!(error, "");
    Ok(())
}
