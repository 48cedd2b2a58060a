//! `pq cron`: periodic jobs.

mod common;

use insta::assert_snapshot;
use serde_json::json;

use self::common::*;

const NIGHTLY: &[&str] = &[
    "cron",
    "add",
    "nightly",
    "30 2 * * *",
    "reports",
    "--time-zone",
    "Europe/Berlin",
    "--data",
    "{\"b\": 1, \"a\": 1e400}",
];

#[test]
fn a_periodic_job_is_added_listed_paused_and_removed() -> Outcome {
    let (database, _redacted) = (migrated()?, redact_times());
    assert_snapshot!(
        transcript(&database, &[
            &["cron", "ls"],
            NIGHTLY,
            &["cron", "add", "bills", "@monthly", "tasks", "--task", "bill", "--data", "[7]", "--catch-up", "--priority", "-2"],
            &["cron", "ls"],
            &["cron", "pause", "nightly"],
            &["cron", "pause", "nightly"],
            &["cron", "ls"],
            NIGHTLY,
            &["cron", "resume", "nightly"],
            &["cron", "resume", "nightly"],
            &["cron", "add", "nightly", "0 3 * * *", "reports"],
            &["cron", "rm", "nightly"],
            &["cron", "rm", "nightly"],
            &["cron", "ls"],
        ])?, @r#"
    $ pq cron ls
    NAME  EXPRESSION  ZONE  QUEUE  TASK  NEXT  LAST  MISSED TICKS  PAYLOAD  ERROR
    $ pq cron add nightly '30 2 * * *' reports --time-zone Europe/Berlin --data '{"b": 1, "a": 1e400}'
    next tick [instant] (At 02:30, Europe/Berlin)
    $ pq cron add bills @monthly tasks --task bill --data [7] --catch-up --priority -2
    next tick [instant] (At 00:00, on day 1, UTC)
    $ pq cron ls
    NAME     EXPRESSION  ZONE           QUEUE    TASK  NEXT                  LAST  MISSED TICKS  PAYLOAD                                                        ERROR
    bills    @monthly    UTC            tasks    bill  [instant]        catch up      {"function":"bill","args":[7],"kwargs":{},"retried":0,"retry…
    nightly  30 2 * * *  Europe/Berlin  reports        [instant]        skip          {"b": 1, "a": 1e400}
    $ pq cron pause nightly
    paused
    $ pq cron pause nightly
    paused
    $ pq cron ls
    NAME     EXPRESSION  ZONE           QUEUE    TASK  NEXT                                         LAST  MISSED TICKS  PAYLOAD                                                        ERROR
    bills    @monthly    UTC            tasks    bill  [instant]                               catch up      {"function":"bill","args":[7],"kwargs":{},"retried":0,"retry…
    nightly  30 2 * * *  Europe/Berlin  reports        paused since [instant] by tester        skip          {"b": 1, "a": 1e400}
    $ pq cron add nightly '30 2 * * *' reports --time-zone Europe/Berlin --data '{"b": 1, "a": 1e400}'
    paused (At 02:30, Europe/Berlin); replaced the previous definition
    $ pq cron resume nightly
    resumed
    $ pq cron resume nightly
    resumed
    $ pq cron add nightly '0 3 * * *' reports
    next tick [instant] (At 03:00, UTC); replaced the previous definition
    $ pq cron rm nightly
    removed
    $ pq cron rm nightly
    ! pq: no periodic job named "nightly"; list them with `pq cron ls`
    [1]
    $ pq cron ls
    NAME   EXPRESSION  ZONE  QUEUE  TASK  NEXT                  LAST  MISSED TICKS  PAYLOAD                                                        ERROR
    bills  @monthly    UTC   tasks  bill  [instant]        catch up      {"function":"bill","args":[7],"kwargs":{},"retried":0,"retry…
    "#);
    Ok(())
}

#[test]
fn ticks_are_printed_and_a_job_is_put_by_hand() -> Outcome {
    let database = migrated()?;
    assert_eq!(status(&on(&database, NIGHTLY).output()?), 0);
    let ticks = stdout(&on(&database, &["cron", "next", "nightly", "3"]).output()?);
    let ticks: Vec<&str> = ticks.lines().collect();
    assert!(ticks.len() == 3 && ticks.is_sorted(), "{ticks:?}");
    let listed = stdout(&on(&database, &["cron", "ls", "--json", "--next", "3"]).output()?);
    let listed: serde_json::Value = serde_json::from_str(&listed.replace("1e400", "1"))?;
    let shown = listed[0]["next_ticks"].as_array().ok_or("ticks")?;
    let same = |(shown, tick): (&serde_json::Value, &&str)| {
        shown.as_str().is_some_and(|shown| shown.starts_with(tick.trim_end_matches('Z')))
    };
    assert!(shown.len() == 3 && shown.iter().zip(&ticks).all(same), "{shown:?} {ticks:?}");
    assert_eq!(stdout(&on(&database, &["cron", "run", "nightly"]).output()?), "1\n");
    assert_eq!(stdout(&on(&database, &["get", "reports"]).output()?), "{\"b\": 1, \"a\": 1e400}\n");
    assert_eq!(
        stdout(&on(&database, &["cron", "next", "nightly", "1"]).output()?),
        format!("{}\n", ticks[0])
    );
    assert_eq!(status(&on(&database, &["cron", "pause", "nightly"]).output()?), 0);
    assert_eq!(stdout(&on(&database, &["cron", "next", "nightly"]).output()?).lines().count(), 10);
    for words in [&["cron", "next", "none"][..], &["cron", "run", "none"]] {
        assert_eq!(status(&on(&database, words).output()?), 1);
    }
    Ok(())
}

#[test]
fn periodic_jobs_are_listed_as_json() -> Outcome {
    let database = migrated()?;
    assert_eq!(parsed(&on(&database, &["cron", "ls", "--json"]).output()?)?, json!([]));
    assert_eq!(status(&on(&database, NIGHTLY).output()?), 0);
    assert_eq!(status(&on(&database, &["cron", "pause", "nightly"]).output()?), 0);
    let printed = stdout(&on(&database, &["cron", "ls", "--json"]).output()?);
    // The payload keeps a number that no parser can represent.
    assert!(printed.contains("{\"b\": 1, \"a\": 1e400}"), "{printed}");
    let entry: serde_json::Value = serde_json::from_str(&printed.replace("1e400", "1"))?;
    for (name, value) in [
        ("name", json!("nightly")),
        ("expression", json!("30 2 * * *")),
        ("time_zone", json!("Europe/Berlin")),
        ("queue", json!("reports")),
        ("priority", json!(0)),
        ("catch_up", json!(false)),
        ("paused", json!(true)),
        ("last_at", json!(null)),
    ] {
        assert_eq!(entry[0][name], value, "{name} of {entry}");
    }
    Ok(())
}

#[test]
fn a_tick_puts_the_job() -> Outcome {
    let database = migrated()?;
    let add = &["cron", "add", "beat", "* * * * * *", "heart", "--file", "-", "--priority", "4"];
    assert_eq!(status(&feed(on(&database, add), "{\"n\":\n 1}\n")?), 0);
    let pq = handle(&database)?;
    let served = pq.queue::<serde_json::Value>("heart")?.transactional(|_, _| Ok::<_, pq_diesel::Error>(()));
    let worker = pq_diesel::Worker::new(&pq).threads(1).serve(served);
    // The worker fires the tick. The queue is paused, so the job stays in it.
    assert_eq!(status(&on(&database, &["pause", "heart"]).output()?), 0);
    let control = worker.control();
    std::thread::scope(|threads| -> Outcome {
        let runs = threads.spawn(move || worker.run());
        let seen = wait_until(&database, "SELECT count(*) FROM pq.queue WHERE q_name = 'heart'");
        control.stop(pq_diesel::StopMode::Abort);
        runs.join().map_err(|_| "the worker panicked")??;
        seen
    })?;
    let jobs = parsed(&on(&database, &["jobs", "heart", "--json"]).output()?)?;
    assert_eq!((&jobs[0]["payload"], &jobs[0]["priority"]), (&json!({ "n": 1 }), &json!(4)));
    assert!(jobs[0]["expected_at"].is_string(), "the tick is the expected time: {jobs}");
    Ok(())
}

#[test]
fn invalid_periodic_jobs_are_rejected() -> Outcome {
    let database = migrated()?;
    assert_snapshot!(
        transcript(&database, &[
            &["cron", "add", "n", "30 2 * *", "q"],
            &["cron", "add", "n", "0 0 6 * * * 2027", "q"],
            &["cron", "add", "n", "61 * * * *", "q"],
            &["cron", "add", "n", "often", "q"],
            &["cron", "add", "n", "", "q"],
            &["cron", "add", "n", "*/90 * * * *", "q"],
            &["cron", "add", "n", "@reboot", "q"],
            &["cron", "add", "n", "0 0 31 2 *", "q"],
            &["cron", "add", "n", "@hourly", "q", "--time-zone", "Mars/Olympus"],
            &["cron", "add", "n", "@hourly", "q", "--time-zone", ""],
            &["cron", "add", "n", "@hourly", ""],
            &["cron", "add", "", "@hourly", "q"],
            &["cron", "add", "n", "@hourly", "q", "--data", "{"],
            &["cron", "add", "n", "@hourly", "q", "--file", "/no/such/file"],
            &["cron", "pause", "n"],
            &["cron", "resume", "n"],
            &["cron", "rm", "n"],
        ])?, @r#"
    $ pq cron add n '30 2 * *' q
    ! pq: invalid cron expression "30 2 * *": it must have 5 fields, or 6 with seconds first, not 4, or be a nickname (@yearly, @annually, @monthly, @weekly, @daily, @midnight, @hourly, @minutely); an example is '0 6 * * mon-fri'
    [2]
    $ pq cron add n '0 0 6 * * * 2027' q
    ! pq: invalid cron expression "0 0 6 * * * 2027": it must have 5 fields, or 6 with seconds first, not 7, or be a nickname (@yearly, @annually, @monthly, @weekly, @daily, @midnight, @hourly, @minutely); an example is '0 6 * * mon-fri'
    [2]
    $ pq cron add n '61 * * * *' q
    ! pq: invalid cron expression "61 * * * *": Component error: Number out of bounds; an example is '0 6 * * mon-fri'
    [2]
    $ pq cron add n often q
    ! pq: invalid cron expression "often": it must have 5 fields, or 6 with seconds first, not 1, or be a nickname (@yearly, @annually, @monthly, @weekly, @daily, @midnight, @hourly, @minutely); an example is '0 6 * * mon-fri'
    [2]
    $ pq cron add n '' q
    ! pq: invalid cron expression "": it must have 5 fields, or 6 with seconds first, not 0, or be a nickname (@yearly, @annually, @monthly, @weekly, @daily, @midnight, @hourly, @minutely); an example is '0 6 * * mon-fri'
    [2]
    $ pq cron add n '*/90 * * * *' q
    ! pq: invalid cron expression "*/90 * * * *": the step of the minute must be less than 60, not 90; an example is '0 6 * * mon-fri'
    [2]
    $ pq cron add n @reboot q
    ! pq: invalid cron expression "@reboot": unknown nickname; expected one of @yearly, @annually, @monthly, @weekly, @daily, @midnight, @hourly, @minutely; an example is '0 6 * * mon-fri'
    [2]
    $ pq cron add n '0 0 31 2 *' q
    ! pq: invalid cron expression "0 0 31 2 *": it must have a future tick
    [2]
    $ pq cron add n @hourly q --time-zone Mars/Olympus
    ! pq: invalid time zone "Mars/Olympus": expected a name of the IANA database, such as Europe/Berlin or UTC
    [2]
    $ pq cron add n @hourly q --time-zone ''
    ! pq: invalid time zone "": expected a name of the IANA database, such as Europe/Berlin or UTC
    [2]
    $ pq cron add n @hourly ''
    ! pq: invalid queue name "": it must not be empty
    [2]
    $ pq cron add '' @hourly q
    ! pq: invalid cron entry name "": it must not be empty
    [2]
    $ pq cron add n @hourly q --data {
    ! pq: invalid input: it must be one JSON document: EOF while parsing an object at line 1 column 1
    [2]
    $ pq cron add n @hourly q --file /no/such/file
    ! pq: cannot read /no/such/file: No such file or directory (os error 2)
    [6]
    $ pq cron pause n
    ! pq: no periodic job named "n"; list them with `pq cron ls`
    [1]
    $ pq cron resume n
    ! pq: no periodic job named "n"; list them with `pq cron ls`
    [1]
    $ pq cron rm n
    ! pq: no periodic job named "n"; list them with `pq cron ls`
    [1]
    "#);
    assert_eq!(parsed(&on(&database, &["cron", "ls", "--json"]).output()?)?, json!([]));
    Ok(())
}

#[test]
fn a_hostile_name_is_escaped_on_one_line() -> Outcome {
    let (database, _redacted) = (migrated()?, redact_times());
    let name = "a\u{1b}[2Jb\n\u{202e}c";
    let payload = "\"\u{202e} \u{7f}\"";
    let added = on(&database, &["cron", "add", name, "@daily", "q\nq", "--data", payload]).output()?;
    assert_eq!(status(&added), 0, "{}", printed(&added));
    assert_snapshot!(printed(&on(&database, &["cron", "ls"]).output()?), @r#"
    NAME                    EXPRESSION  ZONE  QUEUE  TASK  NEXT                  LAST  MISSED TICKS  PAYLOAD            ERROR
    a\u{1b}[2Jb\n\u{202e}c  @daily      UTC   q\nq         [instant]        skip          "\u{202e} \u{7f}"
    "#);
    let listed = parsed(&on(&database, &["cron", "ls", "--json"]).output()?)?;
    assert_eq!(
        (&listed[0]["name"], &listed[0]["queue"], &listed[0]["payload"]),
        (&json!(name), &json!("q\nq"), &json!("\u{202e} \u{7f}"))
    );
    assert_eq!(printed(&on(&database, &["cron", "rm", name]).output()?), "removed\n");
    assert_snapshot!(printed(&on(&database, &["cron", "rm", name]).output()?), @r#"
    ! pq: no periodic job named "a\u{1b}[2Jb\n\u{202e}c"; list them with `pq cron ls`
    [1]
    "#);
    Ok(())
}

#[test]
fn every_tick_is_fired_once_while_workers_are_killed() -> Outcome {
    let database = migrated()?;
    let added = on(&database, &["cron", "add", "tick", "* * * * * *", "ticks"]).output()?;
    assert_eq!(status(&added), 0, "{}", stderr(&added));
    let words = [
        "work",
        "ticks",
        "--exec",
        "true",
        "--keep-history",
        "--processes",
        "3",
        "--lease",
        "5s",
        "--max-retries",
        "9",
    ];
    let work = Work::start(on(&database, &words))?;
    let done = |least: u8| {
        wait_until(&database, &format!("SELECT (count(*) >= {least})::int::bigint FROM pq.queue_archive"))
    };
    for least in [1, 2, 3] {
        done(least)?;
        wait_for("a worker process is killed", || {
            // The last worker is the youngest. A killed worker stays registered for a while.
            let known = json(&database, &["status", "--json"])?;
            let pid = known.as_array().and_then(|all| all.last()?["pid"].as_i64()).ok_or("a worker")?;
            let victim = rustix::process::Pid::from_raw(i32::try_from(pid)?).ok_or("a process")?;
            Ok(rustix::process::kill_process(victim, rustix::process::Signal::KILL).is_ok())
        })?;
    }
    done(5)?;
    assert_eq!(status(&on(&database, &["cron", "rm", "tick"]).output()?), 0);
    signal(&work.child, rustix::process::Signal::HUP)?;
    assert_eq!(work.end()?.0, 0);
    // Each second from the first to the last has exactly one job, in whatever state.
    let gaps = "WITH tick AS (
            SELECT expected_at FROM pq.queue_archive
            UNION ALL SELECT expected_at FROM pq.queue
            UNION ALL SELECT unnest(expected_at) FROM pq.queue_leases)
        SELECT (count(*) = count(DISTINCT expected_at)
            AND count(*) = extract(epoch FROM max(expected_at) - min(expected_at))::bigint + 1)::int::bigint
        FROM tick";
    wait_until(&database, gaps)
}
