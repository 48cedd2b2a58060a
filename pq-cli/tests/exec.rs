//! The commands that `pq work` and `pq get --exec` run: their environment, their ends, and the death of the worker.

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Outcome, Work, handle, json, migrated, on, put, run, signal, status, stderr, wait_for};
use pq_testing::{Options, Server, Stop};
use rustix::process::{Pid, Signal, test_kill_process_group};

/// Returns the process group whose leader wrote its id to the file.
fn group(path: &Path) -> Result<Pid, Box<dyn std::error::Error>> {
    wait_for("the command runs", || Ok(fs::read_to_string(path).is_ok_and(|text| text.ends_with('\n'))))?;
    Ok(Pid::from_raw(fs::read_to_string(path)?.trim().parse()?).ok_or("a pid")?)
}

#[test]
fn a_command_does_not_inherit_the_password_unless_asked() -> Outcome {
    let (database, folder) = (migrated()?, tempfile::tempdir()?);
    let file = folder.path().join("environment");
    let command = format!("env > '{}'", file.display());
    for (words, inherits) in [
        (&["work", "mail", "--burst"][..], false),
        (&["work", "mail", "--burst", "--pass-credentials"], true),
        (&["get", "mail"], false),
        (&["get", "mail", "--pass-credentials"], true),
    ] {
        put(&database, "mail", "1")?;
        let ran = on(&database, &[words, &["--exec", &command]].concat())
            .env("PGPASSWORD", "s3cret")
            .env("DATABASE_URL", "postgres://bob:s3cret@127.0.0.1/shop")
            .env("TPQ_PASS", "s3cret")
            .env("UNRELATED", "kept")
            .output()?;
        assert_eq!(status(&ran), 0, "{words:?}: {}", stderr(&ran));
        let environment = fs::read_to_string(&file)?;
        assert!(environment.contains("UNRELATED=kept") && environment.contains("PQ_ID="), "{environment}");
        for name in ["PQ_URL=", "PGPASSWORD=", "DATABASE_URL=", "TPQ_PASS="] {
            let has = environment.lines().any(|line| line.starts_with(name));
            assert_eq!(has, inherits, "{words:?}: {name}");
        }
        assert_eq!(environment.contains("s3cret"), inherits, "{words:?}");
    }
    Ok(())
}

#[test]
fn the_end_of_standard_error_is_kept_for_a_timeout() -> Outcome {
    let database = migrated()?;
    put(&database, "mail", "1")?;
    let command = "echo first >&2; echo last words >&2; sleep 60";
    let worked = run(&database, &["work", "mail", "--exec", command, "--jobs", "1", "--timeout", "300ms"])?;
    assert_eq!(status(&worked), 0, "{}", stderr(&worked));
    let error = json(&database, &["show", "1", "--json"])?["error"].to_string();
    assert!(error.contains("took longer than 300ms: ") && error.contains("last words"), "{error}");
    Ok(())
}

#[test]
fn a_timeout_of_zero_is_refused() -> Outcome {
    let (database, folder) = (migrated()?, tempfile::tempdir()?);
    let file = folder.path().join("handlers.toml");
    fs::write(&file, "[tasks.a]\nexec = \"true\"\ntimeout = \"0s\"\n")?;
    let path = file.to_string_lossy();
    for words in [
        &["work", "mail", "--exec", "true", "--timeout", "0s"][..],
        &["work", "mail", "--handlers", &path, "--burst"],
    ] {
        let refused = run(&database, words)?;
        assert_eq!(status(&refused), 2, "{words:?}: {}", stderr(&refused));
        assert!(stderr(&refused).contains("longer than 0 s"), "{}", stderr(&refused));
    }
    Ok(())
}

#[test]
fn the_commands_of_a_killed_worker_are_killed_before_the_next_attempt() -> Outcome {
    for words in [&["work", "mail", "--lease", "30s"][..], &["get", "mail"]] {
        let (database, folder) = (migrated()?, tempfile::tempdir()?);
        put(&database, "mail", "1")?;
        let pid = folder.path().join("pid");
        // The shell and its child share a process group. Neither reacts to a signal that can be caught.
        let command =
            format!("trap '' TERM HUP INT; sleep 300 & echo $$ > '{}'; wait; sleep 300", pid.display());
        let mut worker = Work::start(on(&database, &[words, &["--exec", &command]].concat()))?;
        let group = group(&pid)?;
        assert!(test_kill_process_group(group).is_ok(), "the command runs");
        worker.child.kill()?;
        worker.child.wait()?;
        let killed = Instant::now();
        wait_for("the end of the command", || Ok(test_kill_process_group(group).is_err()))?;
        assert!(killed.elapsed() < Duration::from_secs(15), "the lease would have expired first");
    }
    Ok(())
}

/// A pipe would end where the worker was killed, and the command would take a part of the payload for the whole.
#[test]
fn a_command_reads_its_whole_input_although_its_worker_is_killed() -> Outcome {
    const BYTES: usize = 300_000;
    let (database, folder) = (migrated()?, tempfile::tempdir()?);
    put(&database, "mail", &format!("\"{}\"", "x".repeat(BYTES - 2)))?;
    let (begun, read) = (folder.path().join("begun"), folder.path().join("read"));
    // It reads in a session of its own, which outlives the worker.
    let script = format!("echo > '{}'; sleep 1; wc -c > '{}'", begun.display(), read.display());
    let command = format!("exec setsid -w sh -c \"{script}\"");
    let mut worker = Work::start(on(&database, &["work", "mail", "--exec", &command]))?;
    wait_for("the command runs", || Ok(begun.exists()))?;
    worker.child.kill()?;
    worker.child.wait()?;
    let text = || fs::read_to_string(&read).unwrap_or_default();
    wait_for("the command has read", || Ok(text().ends_with('\n')))?;
    assert_eq!(text().trim().parse::<usize>()?, BYTES);
    Ok(())
}

#[test]
fn a_command_that_ended_leaves_its_processes_alone() -> Outcome {
    let (database, folder) = (migrated()?, tempfile::tempdir()?);
    put(&database, "mail", "1")?;
    let pid = folder.path().join("pid");
    let command = format!("sleep 300 > /dev/null 2>&1 < /dev/null & echo $$ > '{}'", pid.display());
    assert_eq!(status(&run(&database, &["work", "mail", "--exec", &command, "--burst"])?), 0);
    let group = group(&pid)?;
    assert!(test_kill_process_group(group).is_ok(), "a process that the command left was killed");
    rustix::process::kill_process_group(group, Signal::KILL)?;
    Ok(())
}

#[test]
fn get_exec_retries_a_failed_job_a_bounded_number_of_times() -> Outcome {
    let database = migrated()?;
    put(&database, "mail", "1")?;
    let words = ["get", "mail", "--exec", "exit 3", "--max-retries", "1", "--backoff", "0s"];
    assert_eq!(status(&run(&database, &words)?), 8);
    assert_eq!(json(&database, &["show", "1", "--json"])?["state"], "ready");
    let last = run(&database, &words)?;
    assert_eq!(status(&last), 8);
    assert!(stderr(&last).contains("job 1 is dead after 2 failed attempts"), "{}", stderr(&last));
    assert_eq!(json(&database, &["show", "1", "--json"])?["state"], "dead");
    assert_eq!(status(&run(&database, &words)?), 1);
    // By default the job waits before it is retried, so that a loop of `pq get --exec` does not spin.
    put(&database, "mail", "2")?;
    assert_eq!(status(&run(&database, &["get", "mail", "--exec", "exit 3"])?), 8);
    assert_eq!(json(&database, &["show", "2", "--json"])?["state"], "scheduled");
    Ok(())
}

#[test]
fn a_file_that_is_no_pid_file_is_not_overwritten() -> Outcome {
    let (database, folder) = (migrated()?, tempfile::tempdir()?);
    let file = folder.path().join("notes");
    for text in ["private notes\n", "12 34\n", "-5\n", "{\"pid\": 7}\n"] {
        fs::write(&file, text)?;
        let path = file.to_string_lossy();
        let refused = run(&database, &["work", "mail", "--exec", "true", "--burst", "--pid-file", &path])?;
        assert_eq!(status(&refused), 2, "{}", stderr(&refused));
        assert!(stderr(&refused).contains("is no pid file"), "{}", stderr(&refused));
        assert_eq!(fs::read_to_string(&file)?, text);
    }
    Ok(())
}

#[test]
fn an_idle_worker_that_cannot_reach_the_server_ends_soon_after_term() -> Outcome {
    let server = Server::start(&Options::throwaway())?;
    let database = server.database()?;
    handle(&database)?.migrate()?;
    let work = Work::start(on(&database, &["work", "mail", "--exec", "true", "--workers", "3"]))?;
    work.wait_for_stderr("worker became ready")?;
    server.stop(Stop::Immediate)?;
    work.wait_for_stderr("store became unavailable")?;
    // All threads wait for a connection by now, which takes up to five seconds.
    std::thread::sleep(Duration::from_millis(1_500));
    let asked = Instant::now();
    signal(&work.child, Signal::TERM)?;
    let (code, log) = work.end()?;
    assert_eq!(code, 0, "{log}");
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}: {log}", asked.elapsed());
    Ok(())
}
