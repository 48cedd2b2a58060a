//! Commands whose processes lose their parent, where nobody asks for the status of orphans that have ended.

#![cfg(target_os = "linux")]

mod common;

use std::time::{Duration, Instant};

use common::{Outcome, json, migrated, put, run, status, stderr};
use rustix::process::{getpid, set_child_subreaper};

/// The shell and its child get TERM and end. The child stays in the process table, as this process is its parent then.
#[test]
fn a_timeout_does_not_wait_for_processes_that_have_ended() -> Outcome {
    set_child_subreaper(Some(getpid()))?;
    let database = migrated()?;
    put(&database, "mail", "1")?;
    let begun = Instant::now();
    let command = "sleep 60; echo late";
    let worked = run(&database, &["work", "mail", "--exec", command, "--jobs", "1", "--timeout", "200ms"])?;
    assert_eq!(status(&worked), 0, "{}", stderr(&worked));
    assert!(begun.elapsed() < Duration::from_secs(4), "it took {:?}", begun.elapsed());
    let error = json(&database, &["show", "1", "--json"])?["error"].to_string();
    assert!(error.contains("took longer than 200ms"), "{error}");
    Ok(())
}
