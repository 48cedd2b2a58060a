//! Operations on many jobs, and the audit log of what operators did.

mod common;

use std::collections::BTreeSet;

use common::*;
use insta::assert_snapshot;
use pq_core::{Outcome as Settlement, PutOptions, Wait};
use pq_testing::Database;
use serde_json::{Value, json};

const HOUR: std::time::Duration = std::time::Duration::from_secs(3_600);

/// A database with 2,500 scheduled calls of the task `mail`, and a running job.
fn many_jobs() -> Result<Database, Box<dyn std::error::Error>> {
    let database = migrated()?;
    let pq = handle(&database)?;
    let later = PutOptions::new().schedule_at("1h");
    let call = |n| json!({ "function": "mail", "args": [n], "kwargs": {} });
    pq.queue::<Value>("mail")?.put_many_with((0..2_500).map(|n| (call(n), &later)))?;
    let bills = pq.queue::<Value>("bills")?;
    bills.put(&json!(1))?;
    let dead = bills.lease(1, HOUR, Wait::No)?.remove(0);
    bills.settle(&dead, Settlement::Dead { error: "connection refused".to_owned() })?;
    bills.put(&json!(2))?;
    bills.lease(1, HOUR, Wait::No)?;
    Ok(database)
}

#[test]
fn operations_on_many_jobs_print_one_line() -> Outcome {
    let database = many_jobs()?;
    assert_snapshot!(
        transcript(&database, &[
            &["cancel", "--queue", "mail", "--task", "bill", "--yes"],
            &["cancel", "--queue", "mail", "--task", "mail"],
            &["cancel", "--queue", "mail", "--task", "mail", "--older-than", "1h", "--yes"],
            &["cancel", "--queue", "mail", "--task", "mail", "--yes"],
            &["cancel", "--queue", "bills", "--yes"],
            &["retry", "--queue", "mail", "--yes"],
            &["retry", "--queue", "mail", "--state", "cancelled", "--yes"],
            &["move", "mail", "bills", "--state", "ready", "--yes"],
            &["jobs", "bills", "--task", "mail", "--error", "timeout"],
            &["retry", "--queue", "bills", "--error", "timeout", "--yes"],
            &["retry", "--queue", "bills", "--error", "refused", "--yes"],
            &["delete", "--queue", "bills", "--state", "ready", "--task", "mail", "--yes"],
            &["run-now", "--queue", "bills", "--yes"],
            &["delete", "1", "2502", "--yes"],
            &["run-now", "2502"],
        ])?, @r#"
    $ pq cancel --queue mail --task bill --yes
    0 jobs cancelled
    $ pq cancel --queue mail --task mail
    ! pq: not confirmed: this cancels 2500 jobs of "mail" with task "mail"; pass --yes to confirm
    [2]
    $ pq cancel --queue mail --task mail --older-than 1h --yes
    0 jobs cancelled
    $ pq cancel --queue mail --task mail --yes
    2500 jobs cancelled
    $ pq cancel --queue bills --yes
    1 job cancelled
    $ pq retry --queue mail --yes
    0 dead jobs requeued
    $ pq retry --queue mail --state cancelled --yes
    2500 jobs requeued
    $ pq move mail bills --state ready --yes
    2500 jobs moved
    $ pq jobs bills --task mail --error timeout
    ID  STATE  PRIORITY  ATTEMPT  PUT  DUE  KEY  TAGS  PAYLOAD  ERROR
    $ pq retry --queue bills --error timeout --yes
    0 dead jobs requeued
    $ pq retry --queue bills --error refused --yes
    1 dead job requeued
    $ pq delete --queue bills --state ready --task mail --yes
    2500 jobs deleted
    $ pq run-now --queue bills --yes
    0 jobs due now
    $ pq delete 1 2502 --yes
    ! pq: cannot delete job 1: no such job; it may have completed without history
    ! pq: cannot delete job 2502: it is running
    [1]
    $ pq run-now 2502
    ! pq: cannot run job 2502: it is running
    [1]
    "#);
    Ok(())
}

#[test]
fn states_that_an_operation_cannot_change_are_refused() -> Outcome {
    let database = migrated()?;
    for (command, expected) in [
        ("cancel", "expected ready, blocked, scheduled or running"),
        ("retry", "expected dead or cancelled"),
        ("run-now", "expected scheduled"),
    ] {
        let refused = on(&database, &[command, "--queue", "mail", "--state", "done"]).output()?;
        assert_eq!(status(&refused), 2, "{}", printed(&refused));
        assert!(stderr(&refused).contains(expected), "{}", printed(&refused));
    }
    Ok(())
}

#[test]
fn operations_are_recorded_under_the_name_of_the_operator() -> Outcome {
    let database = many_jobs()?;
    for words in [
        &["pause", "mail"][..],
        &["pause", "mail"],
        &["cancel", "--queue", "mail", "--yes"],
        &["retry", "2501"],
        &["retry", "9999"],
        &["--actor", "alice", "resume", "mail"],
    ] {
        on(&database, words).output()?;
    }
    let listed = parsed(&on(&database, &["audit", "--json"]).output()?)?;
    let shown: Vec<Value> = listed
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| json!([entry["actor"], entry["action"], entry["queue"], entry["count"]]))
        .collect();
    assert_eq!(
        shown,
        [
            json!(["alice", "resume", "mail", 1]),
            json!(["tester", "retry", "bills", 1]),
            json!(["tester", "cancel", "mail", 2_500]),
            json!(["tester", "pause", "mail", 1]),
        ]
    );
    let mut unnamed = on(&database, &["pause", "mail"]);
    assert_eq!(status(&unnamed.env_remove("PQ_ACTOR").env("USER", "bob").output()?), 0);
    let last = parsed(&on(&database, &["audit", "--limit", "1", "--json"]).output()?)?;
    let actor = last[0]["actor"].as_str().unwrap_or_default();
    assert!(actor.starts_with("bob@") && actor.len() > 4, "{last}");
    let before = last[0]["id"].to_string();
    let table = stdout(&on(&database, &["audit", "--before", &before, "--limit", "1"]).output()?);
    let words: BTreeSet<&str> = table.split_whitespace().collect();
    assert!(words.contains("alice") && words.contains("resume") && !words.contains("pause"), "{table}");
    Ok(())
}
