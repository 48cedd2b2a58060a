//! Steps and signals at a shell.

mod common;

use pq_testing::Database;

use self::common::*;

/// Stores steps of the only job of a database, as a handler keeps them.
fn keep(database: &Database, steps: &str) -> Outcome {
    let sql = format!(
        "INSERT INTO pq.queue_steps (job, enqueued_at, position, kind, name, wait_until, result)
         SELECT id, enqueued_at, step.* FROM pq.queue, (VALUES {steps})
             AS step (position, kind, name, wait_until, result)"
    );
    Ok(diesel::connection::SimpleConnection::batch_execute(&mut database.connect()?, &sql)?)
}

const STEPS: &str =
    "(0, 'step', 'charge', NULL::timestamptz, '{\"receipt\": 7}'::json), (1, 'step', 'mail', NULL, 'null'),
    (2, 'step', 'mail', NULL, '\"\\u001b\"'), (3, 'waiting', 'approved', now() + interval '1 hour', NULL)";

#[test]
fn show_lists_the_steps_of_a_job_and_what_it_waits_for() -> Outcome {
    let database = migrated()?;
    feed(on(&database, &["put", "mail", "--schedule-at", "1h"]), "1")?;
    keep(&database, STEPS)?;
    let shown = on(&database, &["show", "1"]).output()?;
    assert_eq!(status(&shown), 0, "{}", printed(&shown));
    let text = stdout(&shown);
    let lines = text.lines().filter(|line| line.starts_with("step "));
    let words = lines.map(|line| line.split_whitespace().filter(|word| !word.starts_with("20")).collect());
    let lines: Vec<Vec<&str>> = words.collect();
    assert_eq!(lines[0], ["step", "charge", "done", "{\"receipt\":", "7}"]);
    assert_eq!(lines[1], ["step", "mail", "done", "null"]);
    assert_eq!(lines[2], ["step", "mail#2", "done", "\"\\u001b\""]);
    assert_eq!(lines[3], ["step", "approved", "waits", "for", "a", "signal", "until"]);
    assert_eq!(lines.len(), 4);
    assert!(text.contains("it waits for the signal \"approved\" until "), "{text}");
    let json = on(&database, &["show", "1", "--json"]).output()?;
    let job: serde_json::Value = serde_json::from_str(&stdout(&json))?;
    assert_eq!(job["steps"][0]["result"]["receipt"], 7);
    assert_eq!(job["steps"][2]["index"], 2);
    assert_eq!(job["reasons"][0]["reason"], "waits_for_signal");
    Ok(())
}

#[test]
fn a_signal_is_sent_from_a_shell() -> Outcome {
    let database = migrated()?;
    feed(on(&database, &["put", "mail", "--schedule-at", "1h"]), "1")?;
    keep(&database, "(0, 'waiting', 'approved', now() + interval '1 hour', NULL::json)")?;
    let wrong = on(&database, &["signal", "1", "approved", "{"]).output()?;
    assert_eq!(status(&wrong), 2, "{}", printed(&wrong));
    assert!(stderr(&wrong).contains("expected JSON"), "{}", printed(&wrong));
    let sent = on(&database, &["signal", "1", "approved", "{\"by\": \"Ann\"}"]).output()?;
    assert_eq!((status(&sent), stdout(&sent).as_str()), (0, "1: signalled\n"), "{}", printed(&sent));
    let due = on(&database, &["jobs", "mail", "--state", "ready", "--json"]).output()?;
    assert!(stdout(&due).contains("\"id\":1"), "{}", printed(&due));
    let shown = on(&database, &["show", "1"]).output()?;
    assert!(stdout(&shown).contains("approved is not delivered: {\"by\": \"Ann\"}"), "{}", printed(&shown));
    let shown = on(&database, &["show", "1", "--json"]).output()?;
    let job: serde_json::Value = serde_json::from_str(&stdout(&shown))?;
    assert_eq!(job["signals"][0]["value"]["by"], "Ann");
    let unknown = on(&database, &["signal", "99", "approved"]).output()?;
    assert_eq!(status(&unknown), 1);
    assert!(stderr(&unknown).contains("no job with this id waits or runs"), "{}", printed(&unknown));
    let named = on(&database, &["signal", "1", "a#b"]).output()?;
    assert_eq!(status(&named), 2, "{}", printed(&named));
    Ok(())
}

#[test]
fn a_job_is_retried_from_a_step() -> Outcome {
    let database = migrated()?;
    feed(on(&database, &["put", "mail", "--schedule-at", "1h"]), "1")?;
    keep(&database, STEPS)?;
    let unknown = on(&database, &["retry", "1", "--from-step", "mail#3"]).output()?;
    assert_eq!(status(&unknown), 2, "{}", printed(&unknown));
    assert!(stderr(&unknown).contains("expected charge, mail, mail#2, approved"), "{}", printed(&unknown));
    let retried = on(&database, &["retry", "1", "--from-step", "mail#2"]).output()?;
    assert_eq!((status(&retried), stdout(&retried).as_str()), (0, "1: requeued\n"), "{}", printed(&retried));
    let shown = stdout(&on(&database, &["show", "1"]).output()?);
    assert!(shown.contains("state              ready"), "{shown}");
    assert_eq!(shown.lines().filter(|line| line.starts_with("step ")).count(), 2, "{shown}");
    let missing = on(&database, &["retry", "99", "--from-step", "mail"]).output()?;
    assert_eq!(status(&missing), 1, "{}", printed(&missing));
    let both = on(&database, &["retry", "--queue", "mail", "--from-step", "mail"]).output()?;
    assert_eq!(status(&both), 2, "{}", printed(&both));
    Ok(())
}
