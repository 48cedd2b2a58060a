//! The operator's commands: what they say and do where all is well, and that nothing is lost unasked.

mod common;

use std::time::Duration;

use insta::assert_snapshot;
use pq_diesel::{Error, Outcome as Settlement, Payload, PayloadLimits, PutOptions, Wait};
use pq_testing::Database;
use serde_json::{Value, json};

use self::common::*;

const HOUR: Duration = Duration::from_secs(3600);

/// A database with a job in every state in its queue `mail`, numbered in the order below.
fn scene() -> Result<Database, Box<dyn std::error::Error>> {
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

/// How many jobs there are of each state, and the queue's pause.
fn numbers(database: &Database) -> Result<Value, Box<dyn std::error::Error>> {
    let mut numbers = parsed(&on(database, &["ls", "--json"]).output()?)?;
    for queue in numbers.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        queue.remove("oldest_seconds");
    }
    Ok(numbers)
}

#[test]
fn queues_are_listed_with_their_numbers() -> Outcome {
    let (database, _timeless) = (scene()?, timeless());
    assert_snapshot!(told(&database, &[&["pause", "parcels"], &["ls"]])?, @"
    $ pq pause parcels
    paused
    $ pq ls
    QUEUE    WAITING  READY  RUNNING  SCHEDULED  BLOCKED  DEAD  OLDEST  RATE
    mail     3        1      1        1          1        1     [span]  0.0/s
    parcels  1        1      0        0          0        0     [span]  0.0/s  paused since [instant]
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
fn jobs_are_listed_by_number_state_key_and_page() -> Outcome {
    let (database, _timeless) = (scene()?, timeless());
    assert_snapshot!(told(&database, &[&["jobs", "mail"]])?, @r#"
    $ pq jobs mail
    ID  STATE      PRIORITY  ATTEMPT  PUT                   DUE                   KEY         PAYLOAD                 ERROR
    1   dead       0         1        [instant]                                    "dead"                  no such address
    2   done       0         1        [instant]                                    "done"
    3   running    0         1        [instant]                                    "running"
    4   cancelled  0         0        [instant]                                    "cancelled"
    5   ready      3         0        [instant]                        customer 7  {"to":"a@example.com"}
    6   blocked    0         0        [instant]                        customer 7  {"to":"b@example.com"}
    7   scheduled  0         0        [instant]  [instant]              "scheduled"
    "#);
    assert_snapshot!(
        told(&database, &[
            &["jobs", "mail", "--state", "dead", "--state", "done"],
            &["jobs", "mail", "--key", "customer 7", "--limit", "1"],
            &["jobs", "mail", "--after", "6"],
            &["jobs", "nobody's"],
        ])?, @r#"
    $ pq jobs mail --state dead --state done
    ID  STATE  PRIORITY  ATTEMPT  PUT                   DUE  KEY  PAYLOAD  ERROR
    1   dead   0         1        [instant]            "dead"   no such address
    2   done   0         1        [instant]            "done"
    $ pq jobs mail --key 'customer 7' --limit 1
    ID  STATE  PRIORITY  ATTEMPT  PUT                   DUE  KEY         PAYLOAD                 ERROR
    5   ready  3         0        [instant]       customer 7  {"to":"a@example.com"}
    ! There are more: go on with --after 5
    $ pq jobs mail --after 6
    ID  STATE      PRIORITY  ATTEMPT  PUT                   DUE                   KEY  PAYLOAD      ERROR
    7   scheduled  0         0        [instant]  [instant]       "scheduled"
    $ pq jobs nobody's
    ID  STATE  PRIORITY  ATTEMPT  PUT  DUE  KEY  PAYLOAD  ERROR
    "#);
    let jobs = parsed(&on(&database, &["jobs", "mail", "--json"]).output()?)?;
    let states: Vec<&str> =
        jobs.as_array().into_iter().flatten().filter_map(|job| job["state"].as_str()).collect();
    assert_eq!(states, ["dead", "done", "running", "cancelled", "ready", "blocked", "scheduled"]);
    assert_eq!(parsed(&on(&database, &["jobs", "nobody's", "--json"]).output()?)?, json!([]));
    Ok(())
}

#[test]
fn a_job_is_shown_wherever_it_is() -> Outcome {
    let (database, _timeless) = (scene()?, timeless());
    assert_snapshot!(told(&database, &[&["show", "1"], &["show", "2"], &["show", "5"], &["show", "99"]])?, @r#"
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
    attempt            0
    priority           3
    put                [instant]
    serialization key  customer 7
    unique key         welcome
    payload            {"to":"a@example.com"}
    $ pq show 99
    ! pq: job 99 is done and nothing was kept of it, or was never there
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
fn dead_and_cancelled_jobs_are_put_back() -> Outcome {
    let (database, _timeless) = (scene()?, timeless());
    assert_snapshot!(
        told(&database, &[&["retry", "1", "4"], &["retry", "1", "2", "3", "99"]])?, @r#"
    $ pq retry 1 4
    1: back in the line of "mail"
    4: back in the line of "mail"
    $ pq retry 1 2 3 99
    ! pq: 1: is ready, and only a dead or cancelled job can be put back
    ! pq: 2: is done, and only a dead or cancelled job can be put back
    ! pq: 3: is running, and only a dead or cancelled job can be put back
    ! pq: 99: is done and nothing was kept of it, or was never there
    [1]
    "#);
    assert_eq!(parsed(&on(&database, &["show", "1", "--json"]).output()?)?["attempt"], 0);
    assert_snapshot!(told(&scene()?, &[&["retry", "--queue", "mail", "-y"], &["retry", "--queue", "mail"]])?, @"
    $ pq retry --queue mail -y
    1 dead job back in the line
    $ pq retry --queue mail
    0 dead jobs back in the line
    ");
    Ok(())
}

#[test]
fn a_dead_job_whose_unique_key_is_in_use_stays() -> Outcome {
    let database = migrated()?;
    let mail = handle(&database)?.queue::<Value>("mail")?;
    let keyed = PutOptions::new().unique("welcome");
    mail.put_with(&json!(1), &keyed)?;
    let job = mail.lease(1, HOUR, Wait::No)?.remove(0);
    mail.settle(&job, Settlement::Dead { error: String::new() })?;
    mail.put_with(&json!(2), &keyed)?;
    assert_snapshot!(told(&database, &[&["retry", "1"], &["retry", "--queue", "mail", "--yes"]])?, @"
    $ pq retry 1
    ! pq: 1: stays dead, for its unique key is in use
    [1]
    $ pq retry --queue mail --yes
    0 dead jobs back in the line
    ! pq: 1 job stayed dead, for a unique key is in use
    [1]
    ");
    Ok(())
}

#[test]
fn jobs_that_wait_or_run_are_cancelled() -> Outcome {
    let database = scene()?;
    assert_snapshot!(told(&database, &[&["cancel", "1", "3", "5", "99"]])?, @"
    $ pq cancel 1 3 5 99
    3: runs; its handler is told
    5: cancelled
    ! pq: 99: is done and nothing was kept of it, or was never there
    ! pq: 1: is dead and cannot be cancelled
    [1]
    ");
    assert_snapshot!(
        told(&database, &[
            &["cancel", "--queue", "mail", "--state", "scheduled", "--yes"],
            &["cancel", "--queue", "mail", "--yes"],
            &["cancel", "--queue", "nobody's"],
        ])?, @"
    $ pq cancel --queue mail --state scheduled --yes
    7: cancelled
    $ pq cancel --queue mail --yes
    3: runs; its handler is told
    6: cancelled
    $ pq cancel --queue nobody's
    0 jobs cancelled
    ");
    Ok(())
}

#[test]
fn a_job_that_a_transaction_holds_is_not_cancelled() -> Outcome {
    let database = scene()?;
    let pq = handle(&database)?;
    let mail = pq.queue::<Value>("mail")?;
    pq.transaction(|conn| {
        assert_eq!(mail.on(conn).get()?.map(|job| job.id.0), Some(5));
        let told = told(&database, &[&["cancel", "5"]]).map_err(|error| error.to_string());
        assert_snapshot!(told.unwrap_or_else(|error| error), @"
    $ pq cancel 5
    ! pq: 5: a transaction holds it; it ends with that, or can be cancelled after
    [1]
    ");
        Ok::<_, Error>(())
    })?;
    Ok(())
}

#[test]
fn waiting_jobs_move_with_all_they_have() -> Outcome {
    let database = scene()?;
    assert_snapshot!(
        told(&database, &[
            &["move", "mail", "slow-mail", "--id", "5", "--id", "3"],
            &["move", "mail", "slow-mail", "--yes"],
            &["move", "nobody's", "slow-mail"],
            &["move", "mail", "mail"],
        ])?, @r#"
    $ pq move mail slow-mail --id 5 --id 3
    1 job moved
    ! pq: 1 job not moved: not waiting in "mail", or with a unique key that is in use in "slow-mail"
    [1]
    $ pq move mail slow-mail --yes
    2 jobs moved
    $ pq move nobody's slow-mail
    0 jobs moved
    $ pq move mail mail
    ! pq: the two queues are the same
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
    let database = scene()?;
    assert_snapshot!(
        told(&database, &[
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
    0 jobs removed
    $ pq prune mail --state dead --yes
    1 job removed
    $ pq prune mail --state cancelled --yes
    1 job removed
    $ pq prune mail --state done --yes
    1 job removed
    $ pq clear mail
    0 jobs deleted
    $ pq prune mail --state done
    0 jobs removed
    ");
    assert_eq!(numbers(&database)?[0]["running"], 1, "what is held stays");
    Ok(())
}

#[test]
fn a_paused_queue_gives_no_job_until_it_goes_on() -> Outcome {
    let database = scene()?;
    assert_snapshot!(
        told(&database, &[
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
    it was paused already
    $ pq get mail
    [1]
    $ pq resume mail
    goes on
    $ pq resume mail
    it was not paused
    $ pq get mail
    {"to":"a@example.com"}
    "#);
    Ok(())
}

/// Runs a command on a terminal of its own, and answers its question.
fn asked(
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
fn on_a_terminal_it_is_asked_and_only_yes_means_yes() -> Outcome {
    let database = scene()?;
    let before = numbers(&database)?;
    for no in ["n\n", "\n", "yess\n"] {
        let asked = asked(&database, "clear mail", no)?;
        assert_eq!(status(&asked), 1, "{}", said(&asked));
        assert!(stdout(&asked).contains("This deletes about 3 jobs of \"mail\" for good. Go on? [y/N]"));
        assert_eq!(numbers(&database)?, before);
    }
    let asked = asked(&database, "clear mail", "Yes\n")?;
    assert!(status(&asked) == 0 && stdout(&asked).contains("3 jobs deleted"), "{}", said(&asked));
    Ok(())
}

#[test]
fn a_queue_with_dead_jobs_is_red_on_a_terminal_that_wants_colours() -> Outcome {
    let database = scene()?;
    let coloured = stdout(&asked(&database, "ls", "")?);
    assert!(coloured.contains("\u{1b}[31mmail"), "{coloured:?}");
    assert!(!coloured.contains("\u{1b}[31mparcels"), "{coloured:?}");
    let plain = on(&database, &["ls"]).output()?;
    assert!(!stdout(&plain).contains('\u{1b}'), "{plain:?}");
    Ok(())
}

#[test]
fn nothing_is_done_unasked_where_nobody_can_be_asked() -> Outcome {
    let (database, _timeless) = (scene()?, timeless());
    let before = numbers(&database)?;
    assert_snapshot!(
        told(&database, &[
            &["retry", "--queue", "mail"],
            &["cancel", "--queue", "mail"],
            &["cancel", "--queue", "mail", "--state", "scheduled"],
            &["move", "mail", "slow-mail"],
            &["clear", "mail"],
            &["prune", "mail", "--state", "dead"],
            &["migrate", "--down-to", "0"],
            &["migrate", "--down-to", "20261121000000"],
        ])?, @r#"
    $ pq retry --queue mail
    ! pq: this puts 1 dead job of "mail" back into the line; say --yes where nobody can be asked
    [2]
    $ pq cancel --queue mail
    ! pq: this cancels 4 jobs of "mail"; say --yes where nobody can be asked
    [2]
    $ pq cancel --queue mail --state scheduled
    ! pq: this cancels 1 job of "mail"; say --yes where nobody can be asked
    [2]
    $ pq move mail slow-mail
    ! pq: this moves about 3 jobs from "mail" to "slow-mail"; say --yes where nobody can be asked
    [2]
    $ pq clear mail
    ! pq: this deletes about 3 jobs of "mail" for good; say --yes where nobody can be asked
    [2]
    $ pq prune mail --state dead
    ! pq: this removes 1 dead job of "mail" for good; say --yes where nobody can be asked
    [2]
    $ pq migrate --down-to 0
    ! pq: this undoes [n] migrations, drops the tables and deletes 8 jobs for good; say --yes where nobody can be asked
    [2]
    $ pq migrate --down-to [versions]
    ! pq: this undoes [n] migrations, [versions], with what only they can hold; say --yes where nobody can be asked
    [2]
    "#);
    assert_eq!(numbers(&database)?, before);
    Ok(())
}

/// Puts and gets, told like the others. What they do is tested in `command.rs`.
#[test]
fn put_and_get_say_ids_and_payloads() -> Outcome {
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
        assert_eq!(said(&got), "{\"order\": 42}\n[43]\n");
    }
    Ok(())
}

#[test]
fn bytes_that_are_no_text_are_not_put() -> Outcome {
    let database = migrated()?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), b"\"\xc3\x28\"")?;
    let path = file.path().to_str().ok_or("a path")?;
    let refused = on(&database, &["produce", "orders", "--file", path]).output()?;
    assert_eq!(status(&refused), 2);
    assert!(stderr(&refused).contains("is not UTF-8, as JSON is, at byte 1"), "{}", stderr(&refused));
    let empty = on(&database, &["produce", "orders", "--file", "/dev/null"]).output()?;
    assert_eq!(status(&empty), 2);
    assert!(stderr(&empty).contains("it is empty"), "{}", stderr(&empty));
    assert_eq!(parsed(&on(&database, &["ls", "--json"]).output()?)?, json!([]));
    Ok(())
}
