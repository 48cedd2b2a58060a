//! `pq put` with a task, its arguments and its retries, and with keys.

mod common;

use std::sync::{Arc, Mutex};

use pq_diesel::{JobId, JobState, Retention, Worker};
use pq_testing::Database;
use serde_json::{Value, json};

use self::common::*;

/// Runs `pq put` with this input, and returns the printed ids.
fn ids(database: &Database, words: &[&str], input: &str) -> Result<Vec<JobId>, Box<dyn std::error::Error>> {
    let put = feed(on(database, words), input)?;
    assert_eq!(status(&put), 0, "{words:?}: {}", stderr(&put));
    Ok(stdout(&put).lines().map(str::parse).collect::<Result<_, _>>()?)
}

/// Returns the payload of a job that waits.
fn payload(database: &Database, id: JobId) -> Result<Value, Box<dyn std::error::Error>> {
    let job = handle(database)?.find(id)?.ok_or("no such job")?;
    Ok(serde_json::from_str(job.payload.as_str())?)
}

#[test]
fn a_task_is_called_with_its_arguments() -> Outcome {
    let database = migrated()?;
    // A task in Rust reads keyword arguments behind positional ones as the last member of a tuple.
    let words =
        ["put", "shop", "--task", "shop.mail", "--args", " [7, \"ж\"]", "--kwargs", "{\"to\": \"ada\"}"];
    // Standard input is not read.
    assert_eq!(ids(&database, &words, "{")?.len(), 1);
    let pq = handle(&database)?;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&seen);
    let mail = pq.queue("shop")?.task::<(u8, String, Value)>("shop.mail").leased(move |_context, job| {
        note.lock().map_err(|error| error.to_string())?.push(job.data);
        Ok::<_, String>(())
    });
    assert_eq!(Worker::new(&pq).serve(mail).run_until_empty()?.done, 1);
    let seen = seen.lock().map_err(|error| error.to_string())?;
    assert_eq!(*seen, [(7, "ж".to_owned(), json!({ "to": "ada" }))]);
    Ok(())
}

#[test]
fn one_kind_of_arguments_is_enough() -> Outcome {
    let database = migrated()?;
    for (option, given, args, kwargs) in [
        ("--args", "[]", json!([]), json!({})),
        ("--args", "[1]", json!([1]), json!({})),
        ("--kwargs", "{\"a\":1}", json!([]), json!({ "a": 1 })),
    ] {
        let put = ids(&database, &["put", "shop", "--task", "f", option, given], "")?;
        let call = payload(&database, put[0])?;
        assert_eq!((&call["args"], &call["kwargs"]), (&args, &kwargs), "{option} {given}");
    }
    Ok(())
}

#[test]
fn the_input_of_a_task_is_its_arguments() -> Outcome {
    let database = migrated()?;
    let lines = "{\"to\":\"ada\"}\n[1,2]\n7\n\nnull\n";
    let put = ids(&database, &["put", "shop", "--task", "f", "--lines", "--priority", "3"], lines)?;
    let mut calls = Vec::new();
    for id in put {
        let call = payload(&database, id)?;
        assert_eq!(call["function"], "f");
        calls.push((call["args"].clone(), call["kwargs"].clone()));
    }
    let expected = [
        (json!([]), json!({ "to": "ada" })),
        (json!([1, 2]), json!({})),
        (json!([7]), json!({})),
        (json!([]), json!({})),
    ];
    assert_eq!(calls, expected);
    let listed = handle(&database)?.queue::<Value>("shop")?.get_many(9, pq_diesel::Wait::No)?;
    assert!(listed.iter().all(|job| job.priority == 3));
    Ok(())
}

#[test]
fn a_call_has_the_retries_and_the_backoff_that_it_states() -> Outcome {
    let database = migrated()?;
    let words = ["put", "shop", "--task", "fails", "--args", "[]", "--max-retries", "2", "--backoff", "0s"];
    let put = ids(&database, &words, "")?;
    let pq = handle(&database)?;
    // The task's own backoff would take longer than the test.
    let fails = pq.queue("shop")?.task::<()>("fails");
    let handler = fails.leased(|_context, _job| Err::<(), _>("it fails".to_owned()));
    let report = Worker::new(&pq).serve(handler).run_until_empty()?;
    assert_eq!((report.failed, report.dead), (3, 1), "{report:?}");
    assert_eq!(pq.find(put[0])?.map(|job| (job.state, job.attempt)), Some((JobState::Dead, 3)));
    let words = ["put", "shop", "--task", "f", "--args", "[]", "--backoff", "exponential 1s 1h"];
    let call = payload(&database, ids(&database, &words, "")?[0])?;
    assert_eq!(
        call["backoff"],
        json!({ "exponential": { "first_ms": 1_000, "max_ms": 3_600_000, "jitter": true } })
    );
    Ok(())
}

#[test]
fn a_unique_key_keeps_replaces_or_reschedules() -> Outcome {
    let database = migrated()?;
    let put = |mode: &[&str], input: &str| {
        let words = [&["put", "shop", "--unique", "one", "--serialization-key", "s"], mode].concat();
        feed(on(&database, &words), input)
    };
    let first = put(&[], "1")?;
    assert_eq!((status(&first), stderr(&first).as_str()), (0, ""));
    let id: JobId = stdout(&first).trim().parse()?;
    let job = handle(&database)?.find(id)?.ok_or("no such job")?;
    let keys = [job.unique_key, job.serialization_key].map(|key| key.map(|key| key.to_string()));
    assert_eq!(keys, [Some("one".to_owned()), Some("s".to_owned())]);
    for (mode, what, stored) in [
        (&[][..], "kept", json!(1)),
        (&["--on-conflict", "keep"], "kept", json!(1)),
        (&["--on-conflict", "replace"], "replaced", json!(2)),
        (&["--on-conflict", "reschedule", "--schedule-at", "1h"], "rescheduled", json!(2)),
        (&["--on-conflict", "keep-waiting"], "kept", json!(2)),
    ] {
        let again = put(mode, "2")?;
        assert_eq!((status(&again), stdout(&again)), (0, format!("{id}\n")), "{}", stderr(&again));
        assert_eq!(stderr(&again), format!("{what} job {id}, which has this unique key\n"));
        assert_eq!(payload(&database, id)?, stored, "{mode:?}");
    }
    let call = ids(&database, &["put", "shop", "--task", "f", "--args", "[]", "--unique", "one"], "")?;
    assert_eq!(call, [id], "a call has the same keys");
    Ok(())
}

#[test]
fn jobs_are_found_by_the_tags_and_the_metadata_that_they_were_put_with() -> Outcome {
    let database = migrated()?;
    let run = |words: &[&str]| on(&database, words).output();
    // In this order of names they are stored and shown, whether a dependency keeps the order of members or not.
    let metadata = "{\"by\": \"ä\", \"customer\": 7}";
    let tagged =
        ids(&database, &["put", "mail", "--tag", "a,b", "--tag", "\u{1b}x", "--metadata", metadata], "1")?[0];
    let call = ids(
        &database,
        &["put", "mail", "--task", "f", "--args", "[]", "--tag", "a,b", "--schedule-at", "1h"],
        "",
    )?[0];
    ids(&database, &["put", "mail"], "3")?;
    let listed = |words: &[&str]| -> Result<Vec<JobId>, Box<dyn std::error::Error>> {
        let jobs = parsed(&run(&[&["jobs", "mail", "--json"], words].concat())?)?;
        Ok(jobs.as_array().into_iter().flatten().filter_map(|job| job["id"].as_i64()).map(JobId).collect())
    };
    assert_eq!(listed(&["--tag", "a,b"])?, [tagged, call]);
    assert_eq!(listed(&["--tag", "a,b", "--tag", "\u{1b}x"])?, [tagged]);
    assert_eq!(listed(&["--metadata", "{\"customer\": 7}"])?, [tagged]);
    assert!(listed(&["--tag", "a"])?.is_empty());
    assert!(
        stdout(&run(&["jobs", "mail"])?).contains("  a,b, \\u{1b}x  "),
        "{}",
        stdout(&run(&["jobs", "mail"])?)
    );
    let shown = stdout(&run(&["show", &tagged.to_string()])?);
    for line in ["tags               a,b, \\u{1b}x", "metadata           {\"by\":\"ä\",\"customer\":7}"] {
        assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
    }
    let shown = parsed(&run(&["show", &tagged.to_string(), "--json"])?)?;
    assert_eq!((&shown["tags"], &shown["metadata"]["customer"]), (&json!(["a,b", "\u{1b}x"]), &json!(7)));
    let cancelled = run(&["cancel", "--queue", "mail", "--tag", "a,b", "--yes"])?;
    assert_eq!(stdout(&cancelled), "2 jobs cancelled\n", "{}", printed(&cancelled));
    let retried =
        run(&["retry", "--queue", "mail", "--state", "cancelled", "--metadata", "{\"by\": \"ä\"}", "--yes"])?;
    assert_eq!(stdout(&retried), "1 job requeued\n", "{}", printed(&retried));
    assert_eq!(listed(&["--tag", "a,b", "--state", "ready"])?, [tagged]);
    Ok(())
}

#[test]
fn options_that_do_not_fit_are_refused_before_a_connection_is_made() -> Outcome {
    for (words, reason) in [
        (&["--args", "[]"][..], "--task"),
        (&["--kwargs", "{}"], "--task"),
        (&["--max-retries", "1"], "--task"),
        (&["--backoff", "1s"], "--task"),
        (&["--on-conflict", "replace"], "--unique"),
        (&["--unique", "k", "--on-conflict", "later"], "keep-waiting"),
        (&["--unique", "k", "--lines"], "cannot be used with"),
        (&["--unique", ""], "invalid key"),
        (&["--serialization-key", ""], "invalid key"),
        (&["--tag", ""], "invalid tag"),
        (&["--metadata", "[]"], "expected a JSON object"),
        (&["--task", "f", "--args", "[]", "--lines"], "cannot be used with"),
        (&["--task", "f", "--kwargs", "{}", "--file", "x"], "cannot be used with"),
        (&["--task", "f", "--args", "{}"], "invalid --args: it must be a JSON array"),
        (&["--task", "f", "--args", "[1"], "invalid --args: it must be a JSON array"),
        (&["--task", "f", "--kwargs", "[]"], "invalid --kwargs: it must be a JSON object"),
        (&["--task", "f", "--max-retries=-1"], "--max-retries"),
        (&["--task", "f", "--backoff", "soon"], "invalid backoff"),
    ] {
        let words = [&["put", "shop"], words].concat();
        let refused = feed(
            {
                let mut command = pq(&words);
                command.env("PQ_URL", "postgres://127.0.0.1:1/nowhere");
                command
            },
            "1",
        )?;
        assert_eq!(status(&refused), 2, "{words:?}: {}", stderr(&refused));
        assert!(stderr(&refused).contains(reason), "{words:?}: {}", stderr(&refused));
    }
    Ok(())
}

#[test]
fn a_job_waits_for_the_jobs_that_its_put_names() -> Outcome {
    let database = migrated()?;
    let first = ids(&database, &["put", "mail"], "1")?[0].to_string();
    let other = ids(&database, &["put", "mail"], "2")?[0].to_string();
    let last = ids(&database, &["put", "mail", "--after", &first, "--after-any-outcome", &other], "3")?[0];
    let shown = || on(&database, &["show", &last.to_string()]).output();
    let text = stdout(&shown()?);
    assert!(text.contains(&format!("it waits for 2 jobs; the first is job {first}")), "{text}");
    assert!(text.contains(&format!("after              job {first}: ready\n")), "{text}");
    on(&database, &["cancel", &first]).output()?;
    handle(&database)?.maintain(&Retention::default())?;
    let text = stdout(&shown()?);
    assert!(text.contains(&format!("job {first}, for which it waited, is cancelled")), "{text}");
    let json = parsed(&on(&database, &["show", &last.to_string(), "--json"]).output()?)?;
    assert_eq!(json["predecessors"][0]["outcome"], "cancelled");
    let refused = feed(on(&database, &["put", "mail", "--after", &other, "--schedule-at", "1h"]), "4")?;
    assert!(status(&refused) != 0 && stderr(&refused).contains("waits for others"), "{}", stderr(&refused));
    Ok(())
}
