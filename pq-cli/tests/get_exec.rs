//! `pq get --exec`: the take, the command and the completion in one transaction.

mod common;

use std::fs;

use common::{Outcome, Work, json, migrated, on, put, run, signal, status, stderr, stdout, wait_for};
use rustix::process::Signal;

#[test]
fn get_exec_completes_the_job_with_its_command() -> Outcome {
    let database = migrated()?;
    put(&database, "mail", "{\"b\": 1,  \"a\": 2}")?;
    let got = run(
        &database,
        &["get", "mail", "--exec", "cat; echo \" $PQ_ID $PQ_QUEUE $PQ_ATTEMPT $PQ_PRIORITY\""],
    )?;
    assert_eq!((status(&got), stdout(&got).as_str()), (0, "{\"b\": 1,  \"a\": 2} 1 mail 1 0\n"));
    assert_eq!(status(&run(&database, &["get", "mail", "--exec", "true"])?), 1, "there is no job left");
    Ok(())
}

#[test]
fn get_exec_requeues_the_job_with_a_failed_attempt() -> Outcome {
    let database = migrated()?;
    put(&database, "mail", "1")?;
    let words = ["get", "mail", "--exec", "echo on the way; echo it broke >&2; exit 3", "--backoff", "0s"];
    let failed = run(&database, &words)?;
    assert_eq!(status(&failed), 8, "{}", stderr(&failed));
    assert!(stderr(&failed).contains("job 1: exit status 3: it broke"), "{}", stderr(&failed));
    let job = json(&database, &["show", "1", "--json"])?;
    assert_eq!((&job["state"], &job["attempt"]), (&"ready".into(), &1.into()));
    assert_eq!(job["error"], "exit status 3: it broke");
    let again = run(&database, &["get", "mail", "--exec", "echo $PQ_ATTEMPT"])?;
    assert_eq!(stdout(&again), "2\n");
    Ok(())
}

#[test]
fn the_transaction_of_get_exec_holds_the_job_while_the_command_runs() -> Outcome {
    let database = migrated()?;
    put(&database, "mail", "1")?;
    let folder = tempfile::tempdir()?;
    let (begun, go_on) = (folder.path().join("begun"), folder.path().join("go on"));
    let command =
        format!("touch '{}'; until [ -e '{}' ]; do sleep 0.02; done", begun.display(), go_on.display());
    let getting = Work::start(on(&database, &["get", "mail", "--exec", &command]))?;
    wait_for("the command runs", || Ok(begun.exists()))?;
    assert_eq!(status(&run(&database, &["get", "mail"])?), 1, "nobody else gets it");
    assert_eq!(json(&database, &["ls", "--json"])?[0]["ready"], 1, "it is not gone before the commit");
    fs::write(&go_on, "")?;
    assert_eq!(getting.end()?.0, 0);
    assert_eq!(json(&database, &["ls", "--json"])?, serde_json::json!([]));
    Ok(())
}

#[test]
fn an_interrupted_get_exec_ends_its_command_and_leaves_the_job_unchanged() -> Outcome {
    let database = migrated()?;
    put(&database, "mail", "1")?;
    let folder = tempfile::tempdir()?;
    let (begun, ended) = (folder.path().join("begun"), folder.path().join("ended"));
    let command = format!(
        "trap 'touch {}; exit 1' TERM; touch '{}'; while :; do sleep 0.02; done",
        ended.display(),
        begun.display()
    );
    let getting = Work::start(on(&database, &["get", "mail", "--exec", &command]))?;
    wait_for("the command runs", || Ok(begun.exists()))?;
    signal(&getting.child, Signal::INT)?;
    assert_eq!(getting.end()?.0, 130);
    assert!(ended.exists());
    let job = json(&database, &["show", "1", "--json"])?;
    assert_eq!((&job["state"], &job["attempt"]), (&"ready".into(), &0.into()));
    Ok(())
}

#[test]
fn a_command_may_ignore_its_input_and_leave_a_process_running() -> Outcome {
    let database = migrated()?;
    let large = format!("\"{}\"", "x".repeat(500_000));
    put(&database, "mail", &large)?;
    let got = run(&database, &["get", "mail", "--exec", "sleep 60 > /dev/null & exit 0"])?;
    assert_eq!(status(&got), 0, "{}", stderr(&got));
    Ok(())
}
