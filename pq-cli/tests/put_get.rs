//! `pq put` and `pq get`.

mod common;

use std::error::Error;
use std::fs::File;
use std::process::Child;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::sql_types::BigInt;
use pq_testing::Server;

use self::common::*;

#[test]
fn put_and_get_work_under_both_names() -> Outcome {
    let database = migrated()?;
    for (put, get) in [("put", "get"), ("produce", "consume")] {
        let ids = feed(on(&database, &[put, "apples"]), "{\"b\": 1,\n \"a\": [ ]}\n")?;
        assert_eq!((status(&ids), stdout(&ids).trim().parse::<i64>().is_ok()), (0, true));
        let got = on(&database, &[get, "apples"]).output()?;
        assert_eq!((status(&got), stdout(&got).as_str()), (0, "{\"b\": 1,  \"a\": [ ]}\n"));
        let none = on(&database, &[get, "apples"]).output()?;
        assert_eq!((status(&none), stdout(&none).as_str(), stderr(&none).as_str()), (1, "", ""));
    }
    Ok(())
}

#[test]
fn empty_payloads_are_jobs() -> Outcome {
    let database = migrated()?;
    let lines = "{}\n[]\n0\nnull\n\"\"\nfalse\n";
    let put = feed(on(&database, &["put", "apples", "--lines"]), &format!("\n{lines}\n \n"))?;
    assert_eq!(stdout(&put).lines().count(), 6);
    for line in lines.lines() {
        let got = on(&database, &["get", "apples"]).output()?;
        assert_eq!((status(&got), stdout(&got).trim()), (0, line));
    }
    Ok(())
}

#[test]
fn one_bad_line_puts_nothing() -> Outcome {
    let database = migrated()?;
    let put = feed(on(&database, &["put", "apples", "--lines"]), "1\n2\n{\"secret\": \n")?;
    assert_eq!(status(&put), 2);
    assert!(stderr(&put).contains("line 3") && !stderr(&put).contains("secret"), "{}", stderr(&put));
    assert_eq!(status(&on(&database, &["get", "apples"]).output()?), 1);
    Ok(())
}

#[test]
fn files_options_and_counts() -> Outcome {
    let database = migrated()?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("jobs");
    std::fs::write(&path, "\"low\"\n")?;
    let file = path.to_str().ok_or("a path")?;
    for words in [
        &["put", "apples", "--file", file, "--priority", "-1"][..],
        &["put", "apples", "--file", file, "--expected-at", "2026-11-21T08:00:00+01:00"],
        &["put", "apples", "--file", file, "--schedule-at", "1h30m"],
    ] {
        assert_eq!(status(&on(&database, words).output()?), 0);
    }
    let got = on(&database, &["get", "apples", "--count", "10"]).output()?;
    assert_eq!(stdout(&got).lines().count(), 2, "the scheduled one is not due");
    Ok(())
}

#[test]
fn create_migrates_first() -> Outcome {
    let database = Server::shared()?.database()?;
    let put = feed(on(&database, &["put", "apples"]), "1")?;
    assert_eq!(status(&put), 4);
    assert!(stderr(&put).contains("pq migrate"), "{}", stderr(&put));
    assert_eq!(status(&feed(on(&database, &["put", "apples", "--create"]), "1")?), 0);
    assert_eq!(status(&on(&database, &["get", "apples"]).output()?), 0);
    Ok(())
}

#[test]
fn invalid_arguments_have_their_exit_statuses() -> Outcome {
    let database = migrated()?;
    let long = "x".repeat(64);
    let usage = [
        &["get"][..],
        &["get", ""],
        &["get", "apples", "--wait", "abc"],
        &["get", "apples", "--wait", "inf"],
        &["get", "apples", "--count", "0"],
        &["get", "apples", "--codec", "yaml"],
        &["get", "apples", "--table", &long],
        &["put", "apples", "--schedule-at", "10s rubbish"],
        &["put", "apples", "--expected-at", "infinity"],
        &["put", "apples", "--priority", "99999999999"],
        &["nonsense"],
    ];
    for words in usage {
        let refused = feed(on(&database, words), "1")?;
        assert_eq!(status(&refused), 2, "{words:?}: {}", stderr(&refused));
        assert!(!stderr(&refused).is_empty());
    }
    for input in ["", "{", "1 2"] {
        assert_eq!(status(&feed(on(&database, &["put", "apples"]), input)?), 2, "{input:?}");
    }
    let missing = on(&database, &["put", "apples", "--file", "/no/such/file"]).output()?;
    assert_eq!(status(&missing), 6);
    let large = format!("\"{}\"", "x".repeat(1 << 20));
    assert_eq!(status(&feed(on(&database, &["put", "apples"]), &large)?), 2);
    assert_eq!(status(&on(&database, &["get", "apples"]).output()?), 1, "something was put");
    Ok(())
}

#[test]
fn an_unreachable_server_is_3_and_shows_no_password() -> Outcome {
    for url in ["postgres://bob:s3cret@127.0.0.1:1/shop", "host=127.0.0.1 port=1 password=s3cret"] {
        for words in [&["get", "apples"][..], &["migrate"], &["--debug", "get", "apples"]] {
            let failed = pq(words).env("PQ_URL", url).output()?;
            assert_eq!(status(&failed), 3);
            assert!(!stderr(&failed).contains("s3cret"), "{}", stderr(&failed));
        }
    }
    Ok(())
}

#[test]
fn the_environment_names_the_database_in_this_order() -> Outcome {
    let database = migrated()?;
    let nowhere = "postgres://127.0.0.1:1/nowhere";
    let get = || pq(&["get", "apples"]);
    assert_eq!(status(&get().env("PQ_URL", database.url()).env("TPQ_URL", nowhere).output()?), 1);
    assert_eq!(status(&get().env("TPQ_URL", database.url()).env("DATABASE_URL", nowhere).output()?), 1);
    assert_eq!(status(&get().env("DATABASE_URL", database.url()).output()?), 1);
    let tpq = get()
        .env("TPQ_HOST", "127.0.0.1")
        .env("TPQ_PORT", "1")
        .env("DATABASE_URL", database.url())
        .output()?;
    assert_eq!(status(&tpq), 3);
    assert!(stderr(&tpq).contains("port 1 failed"), "{}", stderr(&tpq));
    let given = pq(&["get", "apples", "--database-url", database.url()]).env("PQ_URL", nowhere).output()?;
    assert_eq!(status(&given), 1);
    Ok(())
}

#[test]
fn hostile_names_of_schema_table_and_queue() -> Outcome {
    let database = Server::shared()?.database()?;
    let names = ["--schema", "My \"own\"; --", "--table", "tab'le $names$"];
    let with = |words: &[&'static str]| -> Vec<&str> { words.iter().copied().chain(names).collect() };
    let queue = "que\"ue'; 🍎";
    assert_eq!(status(&feed(on(&database, &[&with(&["put", "--create"])[..], &[queue]].concat()), "1")?), 0);
    assert_eq!(stdout(&on(&database, &[&with(&["get"])[..], &[queue]].concat()).output()?), "1\n");
    Ok(())
}

#[test]
fn a_waiting_get_is_woken_by_a_put() -> Outcome {
    let database = migrated()?;
    let waiter = on(&database, &["get", "apples", "--wait", "0"]).spawn()?;
    wait_until(&database, LISTENING)?;
    feed(on(&database, &["put", "apples"]), "\"woken\"")?;
    let got = waiter.wait_with_output()?;
    assert_eq!((status(&got), stdout(&got).as_str()), (0, "\"woken\"\n"));
    let begun = Instant::now();
    assert_eq!(status(&on(&database, &["get", "apples", "--wait", "0.3"]).output()?), 1);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    Ok(())
}

#[test]
fn a_waiting_process_uses_no_cpu() -> Outcome {
    let database = migrated()?;
    let waiter = on(&database, &["get", "apples", "--wait", "0"]).spawn()?;
    wait_until(&database, LISTENING)?;
    let used = |child: &Child| -> Result<u64, Box<dyn Error>> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        // utime and stime, in ticks of a hundredth of a second.
        Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
    };
    let before = used(&waiter)?;
    std::thread::sleep(Duration::from_secs(2));
    let ticks = used(&waiter)? - before;
    feed(on(&database, &["put", "apples"]), "1")?;
    waiter.wait_with_output()?;
    assert!(ticks <= 2, "two seconds of waiting used {ticks} hundredths of a second");
    Ok(())
}

#[test]
fn a_job_that_cannot_be_printed_is_requeued() -> Outcome {
    let database = migrated()?;
    feed(on(&database, &["put", "apples", "--lines"]), "1\n2\n")?;
    let full =
        on(&database, &["get", "apples", "--count", "2"]).stdout(File::create("/dev/full")?).output()?;
    assert_eq!(status(&full), 6);
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let closed = on(&database, &["get", "apples"]).stdout(writer).output()?;
    assert_eq!(status(&closed), 6);
    assert_eq!(stdout(&on(&database, &["get", "apples", "--count", "2"]).output()?), "1\n2\n");
    Ok(())
}

#[test]
fn a_signal_ends_a_wait_with_130_and_takes_nothing() -> Outcome {
    let database = migrated()?;
    let mut waiter = on(&database, &["get", "apples", "--wait", "0"]).spawn()?;
    wait_until(&database, LISTENING)?;
    signal(&waiter, rustix::process::Signal::INT)?;
    assert_eq!(waiter.wait()?.code(), Some(130));
    feed(on(&database, &["put", "apples"]), "1")?;
    assert_eq!(status(&on(&database, &["get", "apples"]).output()?), 0);
    Ok(())
}

#[test]
fn more_jobs_than_one_call_takes_are_put_all_or_none() -> Outcome {
    let database = migrated()?;
    let lines: String = (0..45_000).map(|n| format!("{n}\n")).collect();
    let put = feed(on(&database, &["put", "many", "--lines"]), &lines)?;
    assert_eq!(status(&put), 0, "{}", stderr(&put));
    let ids: Vec<i64> = stdout(&put).lines().map(str::parse).collect::<Result<_, _>>()?;
    assert_eq!(ids.len(), 45_000);
    assert!(ids.is_sorted(), "in the order of the lines");
    assert_eq!(stderr(&put), "", "no progress bar without a terminal");
    // The last call of the transaction fails and rolls back the others.
    let mut conn = database.connect()?;
    let refuse = "ALTER TABLE pq.queue ADD CONSTRAINT no_last CHECK (data::text <> '44999') NOT VALID";
    diesel::sql_query(refuse).execute(&mut conn)?;
    assert_eq!(status(&feed(on(&database, &["put", "none", "--lines"]), &lines)?), 5);
    let none = diesel::dsl::sql::<BigInt>("SELECT count(*) FROM pq.queue WHERE q_name = 'none'");
    assert_eq!(none.get_result::<i64>(&mut conn)?, 0);
    Ok(())
}
