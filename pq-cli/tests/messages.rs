//! What the command says, the words of older queues that it understands, and the values that it refuses.

mod common;

use common::{
    Outcome, Work, feed, json, migrated, on, pq, printed, put, run, signal, status, stderr, stdout,
    wait_until,
};
use diesel::connection::SimpleConnection;
use rustix::process::Signal;

#[test]
fn the_words_of_pypgqueue_start_and_stop_a_worker() -> Outcome {
    let (database, folder) = (migrated()?, tempfile::tempdir()?);
    let file = folder.path().join("pq.pid");
    let path = file.to_string_lossy();
    let work =
        Work::start(on(&database, &["start", "mail", "-w", "2", "-q", "2", "-p", &path, "--exec", "true"]))?;
    wait_until(&database, "SELECT (count(*) = 2)::int::bigint FROM pq.queue_workers")?;
    let shown = stdout(&run(&database, &["status", "--pid-file", &path])?);
    assert_eq!(shown.matches("2 threads on mail").count(), 2, "{shown}");
    let stopped = run(&database, &["stop", "current", "--pid-file", &path, "--wait", "1m"])?;
    assert_eq!(status(&stopped), 0, "{}", printed(&stopped));
    assert!(stdout(&stopped).contains("asked to stop (finish)"), "{}", printed(&stopped));
    assert_eq!(work.end()?.0, 0);
    Ok(())
}

#[test]
fn the_mode_of_a_stop_can_be_an_argument() -> Outcome {
    let database = migrated()?;
    let work = Work::start(on(&database, &["work", "mail", "--exec", "true"]))?;
    wait_until(&database, "SELECT count(*) FROM pq.queue_workers")?;
    let id = json(&database, &["status", "--json"])?[0]["id"].to_string();
    assert!(stdout(&run(&database, &["status"])?).contains(": 1 thread on mail"));
    let stopped = run(&database, &["stop", "now", &id, "--wait", "1m"])?;
    assert_eq!(stdout(&stopped), format!("worker {id}: asked to stop (abort)\n"), "{}", printed(&stopped));
    assert_eq!(work.end()?.0, 0);
    for (words, rule) in [
        (&["stop", "now"][..], "no worker is selected"),
        (&["stop", "now", "all", "1"], "more than one stop mode"),
        (&["stop", "1", "--all"], "worker ids, and an option that selects workers"),
        (&["stop", "sometime"], "or a mode: drain, finish or abort"),
    ] {
        let refused = run(&database, words)?;
        assert_eq!(status(&refused), 2, "{words:?}: {}", printed(&refused));
        assert!(stderr(&refused).contains(rule), "{words:?}: {}", printed(&refused));
    }
    Ok(())
}

#[test]
fn a_worker_without_a_heartbeat_for_a_minute_is_gone() -> Outcome {
    let database = migrated()?;
    database.connect()?.batch_execute(
        "INSERT INTO pq.queue_workers (id, host, pid, supervisor, queues, threads, heartbeat_at, status)
        VALUES (7, 'elsewhere', 1, 1, '{mail}', 3, now() - interval '14 minutes', '{}')",
    )?;
    let shown = run(&database, &["status"])?;
    assert_eq!(status(&shown), 1, "{}", printed(&shown));
    assert!(stdout(&shown).contains("worker 7 (gone) on elsewhere"), "{}", printed(&shown));
    assert_eq!(json(&database, &["status", "--json"])?[0]["gone"], true);
    let stopped = run(&database, &["stop", "7"])?;
    assert_eq!(status(&stopped), 1, "{}", printed(&stopped));
    assert!(
        stderr(&stopped).contains("worker 7 is gone: its last heartbeat was 14m"),
        "{}",
        printed(&stopped)
    );
    assert_eq!(status(&run(&database, &["stop", "--all", "--yes"])?), 1);
    let top = stdout(&run(&database, &["top", "--once"])?);
    assert!(top.contains("0 workers") && top.contains("gone, 14m"), "{top}");
    Ok(())
}

#[test]
fn several_queues_in_one_argument_are_explained() -> Outcome {
    let database = migrated()?;
    let worked = run(&database, &["work", "mail,bills", "--exec", "true", "--burst"])?;
    assert_eq!(status(&worked), 0);
    assert!(stderr(&worked).contains("pq work mail bills"), "{}", printed(&worked));
    put(&database, "mail,bills", "1")?;
    let worked = run(&database, &["work", "mail,bills", "--exec", "true", "--burst"])?;
    assert!(!stderr(&worked).contains("argument of its own"), "{}", printed(&worked));
    Ok(())
}

#[test]
fn a_pickle_queue_is_named_as_in_python() -> Outcome {
    let database = migrated()?;
    assert_eq!(status(&feed(on(&database, &["put", "apples/pickle"]), "{\"a\": 1}")?), 0);
    let stored = &json(&database, &["jobs", "apples", "--json"])?[0]["payload"];
    assert!(stored.is_string(), "a pickle in a JSON string: {stored}");
    assert_eq!(stdout(&run(&database, &["get", "apples/pickle"])?), "{\"a\":1}\n");
    // With a codec the name is taken as it is.
    assert_eq!(status(&feed(on(&database, &["put", "apples/pickle", "--codec", "json"]), "1")?), 0);
    assert_eq!(json(&database, &["ls", "--json"])?[0]["queue"], "apples/pickle");
    Ok(())
}

#[test]
fn values_are_refused_with_their_rules() -> Outcome {
    let database = migrated()?;
    for (words, rule) in [
        (&["work", "mail", "--exec", "true", "--workers", "100000"][..], "a whole number from 1 to 1000"),
        (&["work", "mail", "--exec", "true", "--workers", "0"], "a whole number from 1 to 1000"),
        (&["work", "mail", "--exec", "true", "--workers", "-1"], "a whole number from 1 to 1000"),
        (&["work", "mail", "--exec", "true", "--processes", "many"], "a whole number from 1 to 1000"),
        (&["work", "mail", "--exec", "true", "--jobs", "0"], "a whole number of at least 1"),
        (&["work", "mail", "--exec", "true", "--max-crashes", "0"], "a whole number of at least 1"),
        (&["work", "mail", "--exec", "true", "--max-retries", "-1"], "a whole number from 0"),
        (&["work", "mail", "--exec", "true", "--lease", "5M"], "ambiguous"),
        (&["work", "mail", "--exec", "true", "--lease", "0s"], "longer than 0 s"),
        (&["work", "mail", "--exec", "true", "--backoff", "5M"], "ambiguous"),
        (&["get", "mail", "--count", "0"], "a whole number of at least 1"),
        (&["put", "mail", "--schedule-at", "5M"], "ambiguous"),
        (&["prune", "mail", "--state", "dead", "--older-than", "1M"], "ambiguous"),
        (&["work", "mail"], "--handlers <FILE>"),
        (&["work", "mail", "--exec", "true", "--handlers", "x"], "cannot be used with"),
        (&["cron", "add", "x", "* * *", "mail"], "5 fields, or 6 with seconds first, not 3"),
        (&["cron", "add", "x", "* * *", "mail"], "@hourly"),
        (&["jobs", "mail", "--state", "nonsense"], "ready, blocked, scheduled, running, dequeued, dead"),
    ] {
        let refused = run(&database, words)?;
        assert_eq!(status(&refused), 2, "{words:?}: {}", printed(&refused));
        assert!(stderr(&refused).contains(rule), "{words:?}: {}", printed(&refused));
    }
    Ok(())
}

#[test]
fn an_unknown_option_is_not_suggested_as_a_value() -> Outcome {
    for words in [&["put", "mail", "-c"][..], &["ls", "--jason"]] {
        let refused = pq(words).output()?;
        assert_eq!(status(&refused), 2);
        assert!(!stderr(&refused).contains("as a value"), "{}", printed(&refused));
    }
    assert!(stderr(&pq(&["ls", "--jsn"]).output()?).contains("'--json'"), "a similar option is suggested");
    Ok(())
}

#[test]
fn a_negative_number_is_a_value() -> Outcome {
    let database = migrated()?;
    for words in [
        &["cron", "add", "x", "@hourly", "mail", "--data", "-1"][..],
        &["put", "mail", "--task", "-1", "--args", "[]", "--unique", "-1", "--serialization-key", "-2.5"],
        &["jobs", "-1"],
    ] {
        let done = run(&database, words)?;
        assert_eq!(status(&done), 0, "{words:?}: {}", printed(&done));
    }
    assert_eq!(json(&database, &["cron", "ls", "--json"])?[0]["payload"], -1);
    assert_eq!(json(&database, &["show", "1", "--json"])?["unique_key"], "-1");
    Ok(())
}

#[test]
fn a_byte_order_mark_is_not_part_of_the_input() -> Outcome {
    let database = migrated()?;
    let mark = "\u{feff}{\"a\": 1}";
    assert_eq!(status(&feed(on(&database, &["put", "mail"]), mark)?), 0);
    assert_eq!(status(&feed(on(&database, &["put", "mail", "--lines"]), mark)?), 0);
    assert_eq!(json(&database, &["jobs", "mail", "--json"])?[1]["payload"]["a"], 1);
    Ok(())
}

#[test]
fn a_malformed_connection_string_is_named() -> Outcome {
    for name in ["PQ_URL", "TPQ_URL", "DATABASE_URL"] {
        let refused = pq(&["ls"]).env(name, "postgers://bob:s3cret@127.0.0.1/shop").output()?;
        assert_eq!(status(&refused), 2, "{}", printed(&refused));
        assert!(stderr(&refused).contains(&format!("invalid {name}: ")), "{}", printed(&refused));
        assert!(!stderr(&refused).contains("s3cret"), "{}", printed(&refused));
    }
    let refused = pq(&["ls", "--database-url", "no url"]).output()?;
    assert!(stderr(&refused).contains("invalid --database-url: "), "{}", printed(&refused));
    Ok(())
}

#[test]
fn a_status_separates_the_queue_and_the_task() -> Outcome {
    let (database, folder) = (migrated()?, tempfile::tempdir()?);
    let file = folder.path().join("handlers.toml");
    std::fs::write(&file, "[tasks.\"A job\"]\nexec = \"sleep 60\"\n")?;
    assert_eq!(status(&run(&database, &["put", "jobsA", "--task", "A job", "--args", "[]"])?), 0);
    let work = Work::start(on(&database, &["work", "jobsA", "--handlers", &file.to_string_lossy()]))?;
    wait_until(&database, "SELECT count(*) FROM pq.queue_leases")?;
    signal(&work.child, Signal::USR1)?;
    work.wait_for_stderr("job 1: queue jobsA, task A job, attempt 1, for ")?;
    signal(&work.child, Signal::TERM)?;
    let (code, log) = work.end()?;
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("given back 1, lost 0"), "{log}");
    Ok(())
}

#[test]
fn queues_and_states_are_completed() -> Outcome {
    let database = migrated()?;
    put(&database, "mail", "1")?;
    put(&database, "bills", "1")?;
    let candidates = |words: &[&str]| -> Result<String, Box<dyn std::error::Error>> {
        let mut completing = on(&database, &[&["--", "pq"], words].concat());
        completing.env("PQ_COMPLETE", "bash").env("_CLAP_IFS", "\n").env("_CLAP_COMPLETE_COMP_TYPE", "9");
        completing.env("_CLAP_COMPLETE_INDEX", words.len().to_string()).env("_CLAP_COMPLETE_SPACE", "false");
        Ok(stdout(&completing.output()?))
    };
    let lines = |text: String| text.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>();
    assert_eq!(lines(candidates(&["get", "m"])?), ["mail"]);
    let queues = lines(candidates(&["jobs", ""])?);
    assert!(queues.contains(&"mail".to_owned()) && queues.contains(&"bills".to_owned()), "{queues:?}");
    assert_eq!(lines(candidates(&["jobs", "mail", "--state", "de"])?), ["dequeued", "dead"]);
    assert_eq!(lines(candidates(&["res"])?), ["resume"]);
    Ok(())
}
