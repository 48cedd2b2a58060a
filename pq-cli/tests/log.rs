//! The log of `pq work`: one line when something begins, and one when it ends.

mod common;

use std::collections::BTreeSet;

use common::{Outcome, Work, handle, migrated, on, pq, put, run, signal, status, stderr, stdout, wait_for};
use diesel::connection::SimpleConnection;
use pq_testing::{Database, Options, Server, Stop};
use rustix::process::Signal;
use serde_json::Value;

const LOST: &str = "store became unavailable; calls will be repeated";
const READ_ONLY: &str = "store became read-only; calls will be repeated";
const RETURNED: &str = "store became available again";
const REFUSED: &str = "call was refused; it will be repeated";
const ACCEPTED: &str = "call was accepted again";

const LOST_OUTCOME: &str = "outcome was lost; the job's lease will expire";

/// The events that a test below provokes, as docs/operations.md names them.
const EVENTS: [&str; 13] = [
    "worker started",
    "worker became ready",
    "stop was requested",
    "worker ended",
    "job failed",
    LOST,
    READ_ONLY,
    RETURNED,
    REFUSED,
    ACCEPTED,
    "leases expired; their jobs were requeued",
    "lease was lost while its handler ran; the job may run twice",
    LOST_OUTCOME,
];

/// Returns the events of a JSON log.
fn events(log: &str) -> Vec<Value> {
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Counts the events with this message, and with this call if one is given.
fn count(work: &Work, message: &str, call: Option<&str>) -> usize {
    let is_of = |event: &&Value| event["message"] == message && call.is_none_or(|call| event["call"] == call);
    events(&work.stderr()).iter().filter(is_of).count()
}

fn wait_for_event(work: &Work, message: &str, call: Option<&str>) -> Outcome {
    wait_for(&format!("{message}, {call:?}"), || Ok(count(work, message, call) > 0))
}

/// Waits until a worker has polled several times after `since` events of level debug.
fn wait_for_failures(work: &Work, count_of: usize) -> Outcome {
    let failures = || {
        let again = |event: &Value| event["message"] == "call failed again" && event["call"] == "poll";
        events(&work.stderr()).iter().filter(|event| again(event)).count()
    };
    wait_for("failed polls", || Ok(failures() >= count_of))
}

fn logging(database: &Database, level: &str, words: &[&str]) -> Result<Work, Box<dyn std::error::Error>> {
    let options =
        ["work", "mail", "--log-format", "json", "--log-level", level, "--poll-interval", "50ms", "--exec"];
    Work::start(on(database, &[&options, words].concat()))
}

#[test]
fn every_line_beside_a_json_log_is_json() -> Outcome {
    let database = migrated()?;
    let options = ["--log-format", "json", "--exec", "true", "--listen", "127.0.0.1:0", "--processes", "2"];
    let work = Work::start(on(&database, &[&["work", "mail,bills"], &options[..]].concat()))?;
    wait_for("both processes", || Ok(count(&work, "worker became ready", None) == 2))?;
    signal(&work.child, Signal::USR1)?;
    wait_for("the status", || Ok(work.stderr().contains("last heartbeat")))?;
    signal(&work.child, Signal::TERM)?;
    let (code, log) = work.end()?;
    assert_eq!(code, 0);
    for text in ["listening on http://", "has no job", "last heartbeat", "done 0", "worker ended"] {
        assert!(log.contains(text), "{text}: {log}");
    }
    let failed = run(&database, &["show", "77", "--log-format", "json"])?;
    assert_eq!(stderr(&failed).lines().count(), 1, "{}", stderr(&failed));
    for line in log.lines().chain(stderr(&failed).lines()) {
        let event: Value = serde_json::from_str(line).map_err(|error| format!("{error}: {line}"))?;
        assert!(["timestamp", "level", "message"].iter().all(|field| event[field].is_string()), "{line}");
    }
    Ok(())
}

#[test]
fn a_worker_logs_its_life_and_its_failed_jobs_by_default() -> Outcome {
    let database = migrated()?;
    put(&database, "mail", "1")?;
    let mut work = on(&database, &["work", "mail", "--exec", "exit 3"]);
    work.env_remove("RUST_LOG");
    let work = Work::start(work)?;
    work.wait_for_stderr("job failed")?;
    signal(&work.child, Signal::TERM)?;
    let (code, log) = work.end()?;
    assert_eq!(code, 0);
    let position = |text: &str| log.find(text).ok_or_else(|| format!("{text} is missing in {log}"));
    let order = ["worker started", "worker became ready", "job failed", "stop was requested", "worker ended"];
    let positions = order.iter().map(|text| position(text)).collect::<Result<Vec<_>, _>>()?;
    assert!(positions.is_sorted(), "{log}");
    assert!(log.contains("ERROR job failed queue=mail job_id=1") && log.contains("dead=true"), "{log}");
    assert!(!log.contains("job started"), "it is of level debug: {log}");
    Ok(())
}

#[test]
fn the_level_and_the_format_are_chosen() -> Outcome {
    let database = migrated()?;
    put(&database, "mail", "1")?;
    let work = logging(&database, "debug", &["true", "--jobs", "1"])?;
    let (code, log) = work.end()?;
    assert_eq!(code, 0);
    let ended = events(&log).into_iter().find(|event| event["message"] == "job ended").ok_or("an event")?;
    assert_eq!((&ended["level"], &ended["span"]["job_id"]), (&"DEBUG".into(), &"1".into()));
    assert!(ended["duration"].is_string() && ended["succeeded"] == true, "{ended}");
    assert!(log.contains("\"job started\""), "{log}");

    let burst = ["work", "mail", "--exec", "true", "--burst"];
    let quiet = on(&database, &[&burst[..], &["--log-level", "off"]].concat()).output()?;
    assert_eq!(stderr(&quiet).lines().count(), 1, "{}", stderr(&quiet));
    let by_variable = on(&database, &burst).env("RUST_LOG", "warn").output()?;
    assert!(!stderr(&by_variable).contains("worker started"), "{}", stderr(&by_variable));
    let invalid = on(&database, &burst).env("RUST_LOG", "pq=loudly").output()?;
    assert_eq!(status(&invalid), 2);
    assert!(stderr(&invalid).contains("invalid RUST_LOG"), "{}", stderr(&invalid));
    Ok(())
}

#[test]
fn the_loss_of_the_server_is_one_line_and_its_return_another() -> Outcome {
    let server = Server::start(&Options::throwaway())?;
    let database = server.database()?;
    handle(&database)?.migrate()?;
    let work = logging(&database, "debug", &["true"])?;
    wait_for_event(&work, "worker became ready", None)?;
    server.stop(Stop::Fast)?;
    wait_for_event(&work, LOST, None)?;
    wait_for_failures(&work, 2)?;
    server.start_again()?;
    wait_for_event(&work, RETURNED, None)?;
    put(&database, "mail", "1")?;
    wait_for_event(&work, "job ended", None)?;
    assert_eq!((count(&work, LOST, None), count(&work, RETURNED, None)), (1, 1), "{}", work.stderr());
    Ok(())
}

#[test]
fn a_server_that_becomes_read_only_is_one_line() -> Outcome {
    let database = migrated()?;
    let mut conn = database.connect()?;
    let work = logging(&database, "debug", &["true"])?;
    wait_for_event(&work, "worker became ready", None)?;
    let set = |value: &str| {
        format!(
            "DO $$ BEGIN
                EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = {value}', current_database());
            END $$;
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid();"
        )
    };
    conn.batch_execute(&set("on"))?;
    wait_for_event(&work, READ_ONLY, None)?;
    wait_for_failures(&work, 2)?;
    assert_eq!(count(&work, READ_ONLY, None), 1, "{}", work.stderr());
    conn.batch_execute("SET default_transaction_read_only = off")?;
    conn.batch_execute(&set("off"))?;
    wait_for_event(&work, RETURNED, None)?;
    Ok(())
}

#[test]
fn a_missing_table_and_revoked_rights_are_one_line_each_with_an_end() -> Outcome {
    for (broken, mended, reason) in [
        ("ALTER TABLE pq.queue RENAME TO away", "ALTER TABLE pq.away RENAME TO queue", "does not exist"),
        ("ALTER ROLE log_worker NOSUPERUSER", "ALTER ROLE log_worker SUPERUSER", "permission denied"),
    ] {
        let database = migrated()?;
        let mut conn = database.connect()?;
        conn.batch_execute(
            "DO $$ BEGIN CREATE ROLE log_worker SUPERUSER LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        )?;
        let mut command = on(
            &database,
            &[
                "work",
                "mail",
                "--log-format",
                "json",
                "--log-level",
                "debug",
                "--poll-interval",
                "50ms",
                "--exec",
                "true",
            ],
        );
        command.env("PGOPTIONS", "-c role=log_worker");
        let work = Work::start(command)?;
        wait_for_event(&work, "worker became ready", None)?;
        conn.batch_execute(broken)?;
        wait_for_event(&work, REFUSED, Some("poll"))?;
        wait_for_failures(&work, 2)?;
        let begun = events(&work.stderr()).into_iter().find(|event| event["message"] == REFUSED);
        let begun = begun.ok_or("an event")?;
        assert!(begun["error"].as_str().is_some_and(|error| error.contains(reason)), "{begun}");
        conn.batch_execute(mended)?;
        wait_for_event(&work, ACCEPTED, Some("poll"))?;
        let counts = [REFUSED, ACCEPTED].map(|message| count(&work, message, Some("poll")));
        assert_eq!(counts, [1, 1], "{}", work.stderr());
        assert_eq!(count(&work, LOST, None), 0, "{}", work.stderr());
        // Other kinds of calls, such as those of periodic jobs, may have been refused too.
        for call in ["settle", "extend", "heartbeat", "maintain", "cron"] {
            assert!(count(&work, REFUSED, Some(call)) <= 1, "{call}: {}", work.stderr());
        }
        let all = events(&work.stderr());
        let refused: Vec<_> =
            all.iter().filter(|event| event["level"] == "ERROR" || event["level"] == "WARN").collect();
        assert!(refused.iter().all(|event| event["message"] == REFUSED), "{refused:?}");
    }
    Ok(())
}

#[test]
fn a_worker_that_was_stopped_for_longer_than_its_lease_says_so() -> Outcome {
    let (database, folder) = (migrated()?, tempfile::tempdir()?);
    put(&database, "mail", "1")?;
    let begun = folder.path().join("begun");
    let command = format!("echo >> '{}'; sleep 60", begun.display());
    let runs = || std::fs::read_to_string(&begun).map_or(0, |text| text.lines().count());
    let stopped = logging(&database, "info", &[&command, "--lease", "1s"])?;
    wait_for("the command runs", || Ok(runs() == 1))?;
    signal(&stopped.child, Signal::STOP)?;
    let other = logging(&database, "info", &[&command, "--lease", "1s"])?;
    wait_for("the next attempt", || Ok(runs() == 2))?;
    wait_for_event(&other, "leases expired; their jobs were requeued", None)?;
    signal(&stopped.child, Signal::CONT)?;
    wait_for_event(&stopped, "lease was lost while its handler ran; the job may run twice", None)?;
    Ok(())
}

#[test]
fn an_outcome_that_the_database_never_accepts_is_a_warning_with_the_job() -> Outcome {
    let database = migrated()?;
    database.connect()?.batch_execute("ALTER TABLE pq.queue_archive ADD CHECK (outcome <> 'dead')")?;
    put(&database, "mail", "1\n2")?;
    let work = logging(&database, "info", &["read x; test $x = 1"])?;
    wait_for_event(&work, LOST_OUTCOME, None)?;
    let lost = events(&work.stderr()).into_iter().find(|event| event["message"] == LOST_OUTCOME);
    let lost = lost.ok_or("an event")?;
    assert_eq!(
        (&lost["level"], &lost["job_id"], &lost["queue"]),
        (&"WARN".into(), &"2".into(), &"mail".into())
    );
    assert!(lost["error"].as_str().is_some_and(|error| error.contains("check constraint")), "{lost}");
    Ok(())
}

#[test]
fn the_alarms_of_the_documentation_are_events_of_these_tests() -> Outcome {
    let text = include_str!("../../docs/operations.md");
    let named: BTreeSet<&str> = text
        .split("log event `")
        .skip(1)
        .filter_map(|rest| rest.split_once('`'))
        .map(|(event, _)| event)
        .collect();
    assert!(named.len() >= 6, "{named:?}");
    for event in named {
        let known = EVENTS.iter().any(|known| known.starts_with(event));
        // This one needs an outcome of an attempt whose lease was lost, which the conformance suite provokes.
        assert!(known || event == "outcome was refused", "{event:?} is never logged");
    }
    Ok(())
}

#[test]
fn commands_that_end_by_themselves_log_warnings_only() -> Outcome {
    let database = migrated()?;
    assert_eq!(stderr(&run(&database, &["ls"])?), "");
    let waited = pq(&["ls", "--debug"]).env("PQ_URL", database.url()).output()?;
    assert_eq!((status(&waited), stdout(&waited).lines().count()), (0, 1));
    Ok(())
}
