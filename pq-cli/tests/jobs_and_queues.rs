//! The commands for jobs and queues: their output, and that they delete nothing without confirmation.

mod common;

use std::time::Duration;

use insta::assert_snapshot;
use pq_diesel::{Error, Outcome as Settlement, Payload, PayloadLimits, PutOptions, Wait};
use pq_testing::Database;
use serde_json::{Value, json};

use self::common::*;

const HOUR: Duration = Duration::from_secs(3600);

/// Returns a database with a job in every state in its queue `mail`, with ids in the order below.
fn jobs_in_every_state() -> Result<Database, Box<dyn std::error::Error>> {
    let database = migrated()?;
    let pq = handle(&database)?;
    let mail = pq.queue::<Value>("mail")?;
    let begin = |data: Value| -> Result<_, Error> {
        mail.put(&data)?;
        Ok(mail.lease(1, HOUR, Wait::No)?.remove(0))
    };
    let dead = begin(json!("dead"))?;
    let kept = begin(json!("done"))?;
    begin(json!("running"))?;
    mail.settle(&dead, Settlement::Dead { error: "no such\naddress".to_owned() })?;
    let result = Payload::new("{\"sent\": 1}".to_owned(), PayloadLimits::default())?;
    mail.settle(&kept, Settlement::Keep { result: Some(result) })?;
    mail.cancel(mail.put(&json!("cancelled"))?.id)?;
    let key = || PutOptions::new().serialization_key("customer 7");
    mail.put_with(&json!({ "to": "a@example.com" }), &key().priority(3).unique("welcome"))?;
    mail.put_with(&json!({ "to": "b@example.com" }), &key())?;
    mail.put_with(&json!("scheduled"), &PutOptions::new().schedule_at("1h").expected_at("2h"))?;
    pq.queue::<Value>("parcels")?.put(&json!(1))?;
    Ok(database)
}

/// Counts the jobs of each state.
fn counts(database: &Database) -> Result<Value, Box<dyn std::error::Error>> {
    let mut counts = parsed(&on(database, &["ls", "--json"]).output()?)?;
    for queue in counts.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        queue.remove("oldest_seconds");
    }
    Ok(counts)
}

#[test]
fn queues_are_listed_with_their_counts() -> Outcome {
    let (database, _redacted) = (jobs_in_every_state()?, redact_times());
    assert_snapshot!(transcript(&database, &[&["pause", "parcels"], &["ls"]])?, @"
    $ pq pause parcels
    paused
    $ pq ls
    QUEUE    WAITING  READY  RUNNING  SCHEDULED  BLOCKED  DEAD  CANCELLED  DONE  OLDEST  RATE   NOTE
    mail     3        1      1        1          1        1     1          1     [span]  0.0/s
    parcels  1        1      0        0          0        0     0          0     [span]  0.0/s  paused since [instant] by tester
    ");
    let listed = parsed(&on(&database, &["ls", "--json"]).output()?)?;
    let mail = &listed[0];
    for (name, number) in [
        ("waiting", 3),
        ("ready", 1),
        ("running", 1),
        ("scheduled", 1),
        ("blocked", 1),
        ("dequeued", 0),
        ("dead", 1),
        ("cancelled", 1),
        ("done", 1),
    ] {
        assert_eq!(mail[name], number, "{name} of {mail}");
    }
    assert!(mail["oldest_seconds"].is_number() && mail["paused_at"].is_null(), "{mail}");
    assert!(listed[1]["paused_at"].is_string(), "{listed}");
    Ok(())
}

#[test]
fn jobs_are_listed_by_id_state_key_and_page() -> Outcome {
    let (database, _redacted) = (jobs_in_every_state()?, redact_times());
    assert_snapshot!(transcript(&database, &[&["jobs", "mail"]])?, @r#"
    $ pq jobs mail
    ID  STATE      PRIORITY  ATTEMPT  PUT                   DUE                   KEY         TAGS  PAYLOAD                 ERROR
    1   dead       0         1        [instant]                                          "dead"                  no such address
    2   done       0         1        [instant]                                          "done"
    3   running    0         1        [instant]                                          "running"
    4   cancelled  0         0        [instant]                                          "cancelled"
    5   ready      3         0        [instant]                        customer 7        {"to":"a@example.com"}
    6   blocked    0         0        [instant]                        customer 7        {"to":"b@example.com"}
    7   scheduled  0         0        [instant]  [instant]                    "scheduled"
    "#);
    assert_snapshot!(
        transcript(&database, &[
            &["jobs", "mail", "--state", "dead", "--state", "done"],
            &["jobs", "mail", "--key", "customer 7", "--limit", "1"],
            &["jobs", "mail", "--after", "6"],
            &["jobs", "nobody's"],
        ])?, @r#"
    $ pq jobs mail --state dead --state done
    ID  STATE  PRIORITY  ATTEMPT  PUT                   DUE  KEY  TAGS  PAYLOAD  ERROR
    1   dead   0         1        [instant]                  "dead"   no such address
    2   done   0         1        [instant]                  "done"
    $ pq jobs mail --key 'customer 7' --limit 1
    ID  STATE  PRIORITY  ATTEMPT  PUT                   DUE  KEY         TAGS  PAYLOAD                 ERROR
    5   ready  3         0        [instant]       customer 7        {"to":"a@example.com"}
    ! more jobs follow; continue with --after 5
    $ pq jobs mail --after 6
    ID  STATE      PRIORITY  ATTEMPT  PUT                   DUE                   KEY  TAGS  PAYLOAD      ERROR
    7   scheduled  0         0        [instant]  [instant]             "scheduled"
    $ pq jobs nobody's
    ID  STATE  PRIORITY  ATTEMPT  PUT  DUE  KEY  TAGS  PAYLOAD  ERROR
    "#);
    let jobs = parsed(&on(&database, &["jobs", "mail", "--json"]).output()?)?;
    let states: Vec<&str> =
        jobs.as_array().into_iter().flatten().filter_map(|job| job["state"].as_str()).collect();
    assert_eq!(states, ["dead", "done", "running", "cancelled", "ready", "blocked", "scheduled"]);
    assert_eq!(parsed(&on(&database, &["jobs", "nobody's", "--json"]).output()?)?, json!([]));
    Ok(())
}

#[test]
fn jobs_of_all_states_are_shown() -> Outcome {
    let (database, _redacted) = (jobs_in_every_state()?, redact_times());
    assert_snapshot!(transcript(&database, &[&["show", "1"], &["show", "2"], &["show", "5"], &["show", "99"]])?, @r#"
    $ pq show 1
    id                 1
    queue              mail
    state              dead
    attempt            1
    priority           0
    put                [instant]
    ended              [instant]
    error              no such\naddress
    payload            "dead"
    attempt log        attempt 1 dead [instant]: no such\naddress
    $ pq show 2
    id                 2
    queue              mail
    state              done
    attempt            1
    priority           0
    put                [instant]
    ended              [instant]
    result             {"sent": 1}
    payload            "done"
    $ pq show 5
    id                 5
    queue              mail
    state              ready
    why                no live worker serves its queue
    attempt            0
    priority           3
    put                [instant]
    serialization key  customer 7
    unique key         welcome
    payload            {"to":"a@example.com"}
    $ pq show 99
    ! pq: cannot show job 99: no such job; it may have completed without history
    [1]
    "#);
    let job = parsed(&on(&database, &["show", "5", "--json"]).output()?)?;
    assert_eq!(
        (&job["id"], &job["queue"], &job["payload"], &job["unique_key"]),
        (&json!(5), &json!("mail"), &json!({ "to": "a@example.com" }), &json!("welcome"))
    );
    assert_eq!(status(&on(&database, &["show", "99", "--json"]).output()?), 1);
    Ok(())
}

#[test]
fn dead_and_cancelled_jobs_are_requeued() -> Outcome {
    let (database, _redacted) = (jobs_in_every_state()?, redact_times());
    assert_snapshot!(
        transcript(&database, &[&["retry", "1", "4"], &["retry", "1", "2", "3", "99"]])?, @"
    $ pq retry 1 4
    1: requeued
    4: requeued
    $ pq retry 1 2 3 99
    ! pq: cannot requeue job 1: it is ready
    ! pq: cannot requeue job 2: it is done
    ! pq: cannot requeue job 3: it is running
    ! pq: cannot requeue job 99: no such job; it may have completed without history
    [1]
    ");
    assert_eq!(parsed(&on(&database, &["show", "1", "--json"]).output()?)?["attempt"], 0);
    assert_snapshot!(transcript(&jobs_in_every_state()?, &[&["retry", "--queue", "mail", "-y"], &["retry", "--queue", "mail"]])?, @"
    $ pq retry --queue mail -y
    1 dead job requeued
    $ pq retry --queue mail
    0 dead jobs requeued
    ");
    Ok(())
}

#[test]
fn a_dead_job_whose_unique_key_is_in_use_is_not_requeued() -> Outcome {
    let database = migrated()?;
    let mail = handle(&database)?.queue::<Value>("mail")?;
    let keyed = PutOptions::new().unique("welcome");
    mail.put_with(&json!(1), &keyed)?;
    let job = mail.lease(1, HOUR, Wait::No)?.remove(0);
    mail.settle(&job, Settlement::Dead { error: String::new() })?;
    mail.put_with(&json!(2), &keyed)?;
    assert_snapshot!(transcript(&database, &[&["retry", "1"], &["retry", "--queue", "mail", "--yes"]])?, @"
    $ pq retry 1
    ! pq: cannot requeue job 1: its unique key is in use, or a transaction holds it
    [1]
    $ pq retry --queue mail --yes
    0 dead jobs requeued
    ! pq: 1 job not requeued: the unique key or the id is in use
    [1]
    ");
    Ok(())
}

#[test]
fn waiting_and_running_jobs_are_cancelled() -> Outcome {
    let database = jobs_in_every_state()?;
    assert_snapshot!(transcript(&database, &[&["cancel", "1", "3", "5", "99"]])?, @"
    $ pq cancel 1 3 5 99
    3: running; it is asked to stop
    5: cancelled
    ! pq: cannot cancel job 1: it is dead
    ! pq: cannot cancel job 99: no such job; it may have completed without history
    [1]
    ");
    assert_snapshot!(
        transcript(&database, &[
            &["cancel", "--queue", "mail", "--state", "scheduled", "--yes"],
            &["cancel", "--queue", "mail", "--yes"],
            &["cancel", "--queue", "nobody's"],
        ])?, @"
    $ pq cancel --queue mail --state scheduled --yes
    1 job cancelled
    $ pq cancel --queue mail --yes
    2 jobs cancelled
    $ pq cancel --queue nobody's
    0 jobs cancelled
    ");
    Ok(())
}

#[test]
fn a_job_that_a_transaction_holds_is_not_cancelled() -> Outcome {
    let database = jobs_in_every_state()?;
    let pq = handle(&database)?;
    let mail = pq.queue::<Value>("mail")?;
    pq.transaction(|conn| {
        assert_eq!(mail.on(conn).get()?.map(|job| job.id.0), Some(5));
        let cancelled = transcript(&database, &[&["cancel", "5"]]).map_err(|error| error.to_string());
        assert_snapshot!(cancelled.unwrap_or_else(|error| error), @"
    $ pq cancel 5
    ! pq: cannot cancel job 5: a transaction holds it; try again when the transaction has ended
    [1]
    ");
        Ok::<_, Error>(())
    })?;
    Ok(())
}

#[test]
fn waiting_jobs_are_moved_with_their_attributes() -> Outcome {
    let database = jobs_in_every_state()?;
    assert_snapshot!(
        transcript(&database, &[
            &["move", "mail", "slow-mail", "--id", "5", "--id", "3"],
            &["move", "mail", "slow-mail", "--yes"],
            &["move", "nobody's", "slow-mail"],
            &["move", "mail", "mail"],
        ])?, @r#"
    $ pq move mail slow-mail --id 5 --id 3
    1 job moved
    ! pq: 1 job not moved: not waiting in "mail", or the unique key is in use in "slow-mail"
    [1]
    $ pq move mail slow-mail --yes
    2 jobs moved
    $ pq move nobody's slow-mail
    0 jobs moved
    $ pq move mail mail
    ! pq: invalid target queue "mail": it must differ from the source queue
    [2]
    "#);
    let moved = parsed(&on(&database, &["show", "5", "--json"]).output()?)?;
    assert_eq!(
        (&moved["queue"], &moved["priority"], &moved["unique_key"]),
        (&json!("slow-mail"), &json!(3), &json!("welcome"))
    );
    Ok(())
}

#[test]
fn a_queue_is_cleared_and_its_archive_pruned() -> Outcome {
    let database = jobs_in_every_state()?;
    assert_snapshot!(
        transcript(&database, &[
            &["clear", "mail", "--yes"],
            &["prune", "mail", "--state", "dead", "--older-than", "1h", "--yes"],
            &["prune", "mail", "--state", "dead", "--yes"],
            &["prune", "mail", "--state", "cancelled", "--yes"],
            &["prune", "mail", "--state", "done", "--yes"],
            &["clear", "mail"],
            &["prune", "mail", "--state", "done"],
        ])?, @"
    $ pq clear mail --yes
    3 jobs deleted
    $ pq prune mail --state dead --older-than 1h --yes
    0 jobs deleted
    $ pq prune mail --state dead --yes
    1 job deleted
    $ pq prune mail --state cancelled --yes
    1 job deleted
    $ pq prune mail --state done --yes
    1 job deleted
    $ pq clear mail
    0 jobs deleted
    $ pq prune mail --state done
    0 jobs deleted
    ");
    assert_eq!(counts(&database)?[0]["running"], 1, "the running job stays");
    Ok(())
}

#[test]
fn a_paused_queue_returns_no_job_until_it_is_resumed() -> Outcome {
    let database = jobs_in_every_state()?;
    assert_snapshot!(
        transcript(&database, &[
            &["pause", "mail"],
            &["pause", "mail"],
            &["get", "mail"],
            &["resume", "mail"],
            &["resume", "mail"],
            &["get", "mail"],
        ])?, @r#"
    $ pq pause mail
    paused
    $ pq pause mail
    already paused
    $ pq get mail
    [1]
    $ pq resume mail
    resumed
    $ pq resume mail
    not paused
    $ pq get mail
    {"to":"a@example.com"}
    "#);
    Ok(())
}

/// Runs a command in a terminal of its own, and types an answer.
fn run_in_terminal(
    database: &Database,
    command: &str,
    answer: &str,
) -> Result<std::process::Output, Box<dyn std::error::Error>> {
    let mut terminal = std::process::Command::new("script");
    terminal.args(["-q", "-e", "-c", &format!("{} {command}", env!("CARGO_BIN_EXE_pq")), "/dev/null"]);
    terminal.env("PQ_URL", database.url()).env("TERM", "xterm").env_remove("NO_COLOR");
    terminal.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    feed(terminal, answer)
}

#[test]
fn a_terminal_asks_and_accepts_only_yes() -> Outcome {
    let database = jobs_in_every_state()?;
    let before = counts(&database)?;
    for no in ["n\n", "\n", "yess\n"] {
        let asked = run_in_terminal(&database, "clear mail", no)?;
        assert_eq!(status(&asked), 1, "{}", printed(&asked));
        assert!(
            stdout(&asked).contains("This deletes about 3 jobs of \"mail\" permanently. Continue? [y/N]")
        );
        assert_eq!(counts(&database)?, before);
    }
    let asked = run_in_terminal(&database, "clear mail", "Yes\n")?;
    assert!(status(&asked) == 0 && stdout(&asked).contains("3 jobs deleted"), "{}", printed(&asked));
    Ok(())
}

#[test]
fn a_queue_with_dead_jobs_is_red_on_a_terminal_that_wants_colours() -> Outcome {
    let database = jobs_in_every_state()?;
    let coloured = stdout(&run_in_terminal(&database, "ls", "")?);
    assert!(coloured.contains("\u{1b}[31mmail"), "{coloured:?}");
    assert!(!coloured.contains("\u{1b}[31mparcels"), "{coloured:?}");
    let plain = on(&database, &["ls"]).output()?;
    assert!(!stdout(&plain).contains('\u{1b}'), "{plain:?}");
    Ok(())
}

#[test]
fn without_a_terminal_nothing_is_changed_without_yes() -> Outcome {
    let (database, _redacted) = (jobs_in_every_state()?, redact_times());
    let before = counts(&database)?;
    assert_snapshot!(
        transcript(&database, &[
            &["retry", "--queue", "mail"],
            &["cancel", "--queue", "mail"],
            &["cancel", "--queue", "mail", "--state", "scheduled"],
            &["move", "mail", "slow-mail"],
            &["clear", "mail"],
            &["prune", "mail", "--state", "dead"],
            &["migrate", "--down-to", "0"],
        ])?, @r#"
    $ pq retry --queue mail
    ! pq: not confirmed: this requeues 1 dead job of "mail"; pass --yes to confirm
    [2]
    $ pq cancel --queue mail
    ! pq: not confirmed: this cancels 4 jobs of "mail"; pass --yes to confirm
    [2]
    $ pq cancel --queue mail --state scheduled
    ! pq: not confirmed: this cancels 1 job of "mail"; pass --yes to confirm
    [2]
    $ pq move mail slow-mail
    ! pq: not confirmed: this moves 3 jobs of "mail" to "slow-mail"; pass --yes to confirm
    [2]
    $ pq clear mail
    ! pq: not confirmed: this deletes about 3 jobs of "mail" permanently; pass --yes to confirm
    [2]
    $ pq prune mail --state dead
    ! pq: not confirmed: this deletes 1 dead job of "mail" permanently; pass --yes to confirm
    [2]
    $ pq migrate --down-to 0
    ! pq: not confirmed: this reverts [n] migrations, drops the tables and deletes 8 jobs permanently; pass --yes to confirm
    [2]
    "#);
    assert_eq!(counts(&database)?, before);
    Ok(())
}

#[test]
fn put_prints_ids_and_get_prints_payloads() -> Outcome {
    let database = migrated()?;
    for (put, get) in [("put", "get"), ("produce", "consume")] {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), "{\"order\": 42}\n[43]\n")?;
        let path = file.path().to_str().ok_or("a path")?;
        let ids = on(&database, &[put, "orders", "--lines", "--file", path, "--priority", "2"]).output()?;
        let ids: Vec<i64> = stdout(&ids).lines().map(str::parse).collect::<Result<_, _>>()?;
        assert_eq!(ids.len(), 2);
        assert!(ids[0] < ids[1]);
        let got = on(&database, &[get, "orders", "--count", "5"]).output()?;
        assert_eq!(printed(&got), "{\"order\": 42}\n[43]\n");
    }
    Ok(())
}

#[test]
fn input_that_is_not_utf_8_is_not_put() -> Outcome {
    let database = migrated()?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), b"\"\xc3\x28\"")?;
    let path = file.path().to_str().ok_or("a path")?;
    let refused = on(&database, &["produce", "orders", "--file", path]).output()?;
    assert_eq!(status(&refused), 2);
    assert!(stderr(&refused).contains("JSON must be UTF-8, and byte 1 is not"), "{}", stderr(&refused));
    let empty = on(&database, &["produce", "orders", "--file", "/dev/null"]).output()?;
    assert_eq!(status(&empty), 2);
    assert!(stderr(&empty).contains("it is empty"), "{}", stderr(&empty));
    assert_eq!(parsed(&on(&database, &["ls", "--json"]).output()?)?, json!([]));
    Ok(())
}
