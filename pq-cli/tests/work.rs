//! `pq work`, `pq status` and `pq stop`: commands for jobs, processes, signals and pid files.

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use common::{
    Outcome, Work, json, migrated, on, pq, put, run, signal, status, stderr, stdout, wait_for, wait_until,
};
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use pq_testing::Database;
use rustix::process::Signal;
use serde_json::Value;

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

#[test]
fn work_exec_retries_with_backoff_until_the_job_is_dead() -> Outcome {
    let database = migrated()?;
    put(&database, "mail", "\"good\"\n\"bad\"\n\"late\"")?;
    let command = "read x; case $x in *bad*) echo no >&2; exit 1;; *late*) test $PQ_ATTEMPT = 3;; esac";
    let words = [
        "work",
        "mail",
        "--exec",
        command,
        "--burst",
        "--max-retries",
        "2",
        "--backoff",
        "0s",
        "--keep-history",
    ];
    let worked = run(&database, &words)?;
    assert_eq!(status(&worked), 0, "{}", stderr(&worked));
    assert!(stderr(&worked).contains("done 2, failed 5, dead 1, cancelled 0"), "{}", stderr(&worked));
    let jobs = json(&database, &["jobs", "mail", "--json"])?;
    let ends: Vec<(&str, i64)> = jobs
        .as_array()
        .into_iter()
        .flatten()
        .map(|job| (job["state"].as_str().unwrap_or_default(), job["attempt"].as_i64().unwrap_or_default()))
        .collect();
    assert_eq!(ends, [("done", 1), ("dead", 3), ("done", 3)]);
    assert_eq!(jobs[1]["error"], "exit status 1: no");
    Ok(())
}

#[test]
fn handlers_of_a_file_run_tasks_with_their_own_options() -> Outcome {
    let database = migrated()?;
    let folder = tempfile::tempdir()?;
    let (file, out) = (folder.path().join("handlers.toml"), folder.path().join("out"));
    let text = format!(
        "[tasks.send_mail]\nqueue = \"mail\"\nexec = \"cat >> '{0}'; echo \\\" $PQ_TASK\\\" >> '{0}'\"\n\
         [tasks.fails]\nexec = [\"sh\", \"-c\", \"exit 7\"]\nmax_retries = 1\nbackoff = \"0s\"\n",
        out.display()
    );
    fs::write(&file, text)?;
    let task = |name: &str| {
        format!(
            "{{\"function\": \"{name}\", \"args\": [], \"kwargs\": {{\"to\": \"x\"}}, \"retried\": 0, \"retry_in\": null, \"max_retries\": 1}}"
        )
    };
    put(&database, "mail", &format!("{}\n{}\n{}", task("send_mail"), task("fails"), task("unknown")))?;
    let path = file.to_string_lossy();
    let worked = run(&database, &["work", "mail", "--handlers", &path, "--burst"])?;
    assert_eq!(status(&worked), 0, "{}", stderr(&worked));
    assert_eq!(fs::read_to_string(&out)?, "{\"to\":\"x\"} send_mail\n");
    let dead = json(&database, &["jobs", "mail", "--state", "dead", "--json"])?;
    assert_eq!(dead[0]["error"], "exit status 7");
    Ok(())
}

#[test]
fn a_task_that_no_worker_knows_is_shown() -> Outcome {
    let (database, folder) = (migrated()?, tempfile::tempdir()?);
    let file = folder.path().join("handlers.toml");
    fs::write(&file, "[tasks.known]\nexec = \"true\"\n")?;
    put(&database, "tasks", r#"{"function": "new"}"#)?;
    let words = ["work", "tasks", "--handlers", &file.to_string_lossy(), "--burst"];
    assert_eq!(status(&run(&database, &words)?), 0);
    let listed = stdout(&run(&database, &["ls"])?);
    assert!(listed.contains("unknown task \"new\""), "{listed}");
    // It is scheduled for a second, and ready from then on.
    let queue = &json(&database, &["ls", "--json"])?[0];
    let left = [&queue["scheduled"], &queue["ready"]].map(|jobs| jobs.as_u64().unwrap_or(0));
    assert_eq!(left.iter().sum::<u64>(), 1, "{queue}");
    Ok(())
}

#[test]
fn invalid_handlers_are_rejected_before_work_begins() -> Outcome {
    let database = migrated()?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("handlers.toml");
    for (text, said) in [
        ("", "at least one table [tasks.NAME]"),
        ("[tasks.a]\n", "exec"),
        ("[tasks.a]\nexec = \"\"\n", "exec must not be empty"),
        ("[tasks.a]\nexec = \"true\"\nretries = 3\n", "retries"),
        ("[tasks.a]\nexec = \"true\"\nbackoff = \"soon\"\n", "invalid backoff"),
        ("[tasks.a]\nexec = \"true\"\ntimeout = \"soon\"\n", "invalid timeout"),
        ("[tasks.a]\nexec = \"true\"\nqueue = \"pears\"\n", "is not an argument of"),
        ("not toml", "expected"),
    ] {
        fs::write(&file, text)?;
        let refused = run(&database, &["work", "mail", "--handlers", &file.to_string_lossy(), "--burst"])?;
        assert_eq!(status(&refused), 2, "{text}: {}", stderr(&refused));
        assert!(stderr(&refused).contains(said), "{text}: {}", stderr(&refused));
    }
    for words in [&["work", "mail"][..], &["work", "--exec", "true"], &["work", "mail", "--exec", " "]] {
        assert_eq!(status(&run(&database, words)?), 2, "{words:?}");
    }
    assert_eq!(
        status(
            &pq(&["work", "mail", "--exec", "true", "--burst", "--database-url", "postgres://127.0.0.1:1/x"])
                .output()?
        ),
        3
    );
    Ok(())
}

/// Counts the workers that have handled SIGINT, as their heartbeats say.
const FINISHING: &str = "SELECT count(*) FROM pq.queue_workers WHERE status ->> 'stopping' = 'finish'";

/// Commands that record their start and run until the gate is open.
struct Gate {
    folder: tempfile::TempDir,
}

impl Gate {
    fn new() -> Result<Self, std::io::Error> {
        Ok(Self { folder: tempfile::tempdir()? })
    }

    fn command(&self) -> String {
        let [begun, go_on, done] = ["begun", "go on", "done"].map(|name| self.path(name));
        format!(
            "echo $PQ_ID >> '{}'; until [ -e '{}' ]; do sleep 0.02; done; echo $PQ_ID >> '{}'",
            begun.display(),
            go_on.display(),
            done.display()
        )
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn begun(&self, jobs: usize) -> Outcome {
        wait_for("the commands run", || Ok(lines(&self.path("begun")) >= jobs))
    }

    fn open(&self) -> Outcome {
        Ok(fs::write(self.path("go on"), "")?)
    }

    fn done(&self) -> usize {
        lines(&self.path("done"))
    }
}

#[test]
fn hup_drains() -> Outcome {
    let (database, gate) = (migrated()?, Gate::new()?);
    put(&database, "mail", "1\n2\n3")?;
    let work = Work::start(on(&database, &["work", "mail", "--exec", &gate.command()]))?;
    gate.begun(1)?;
    signal(&work.child, Signal::HUP)?;
    gate.open()?;
    let (status, said) = work.end()?;
    assert_eq!((status, gate.done()), (0, 3), "{said}");
    Ok(())
}

#[test]
fn int_finishes() -> Outcome {
    let (database, gate) = (migrated()?, Gate::new()?);
    put(&database, "mail", "1\n2\n3")?;
    let work = Work::start(on(&database, &["work", "mail", "--exec", &gate.command()]))?;
    gate.begun(1)?;
    signal(&work.child, Signal::INT)?;
    wait_until(&database, FINISHING)?;
    gate.open()?;
    assert_eq!((work.end()?.0, gate.done()), (0, 1));
    let jobs = json(&database, &["jobs", "mail", "--json"])?;
    assert_eq!(jobs.as_array().map(Vec::len), Some(2));
    assert!(
        jobs[0]["attempt"] == 0 && jobs[1]["attempt"] == 0,
        "a job that was not started is unchanged: {jobs}"
    );
    Ok(())
}

#[test]
fn term_and_a_second_int_abort_without_failing_a_job() -> Outcome {
    for signals in [&[Signal::TERM][..], &[Signal::INT, Signal::INT]] {
        let (database, gate) = (migrated()?, Gate::new()?);
        put(&database, "mail", "1\n2")?;
        let work = Work::start(on(&database, &["work", "mail", "--exec", &gate.command()]))?;
        gate.begun(1)?;
        for (number, one) in signals.iter().enumerate() {
            if number > 0 {
                wait_until(&database, FINISHING)?;
            }
            signal(&work.child, *one)?;
        }
        assert_eq!((work.end()?.0, gate.done()), (0, 0));
        let jobs = json(&database, &["jobs", "mail", "--json"])?;
        let states: Vec<_> =
            jobs.as_array().into_iter().flatten().map(|job| (&job["state"], &job["attempt"])).collect();
        assert_eq!(states, [(&Value::from("ready"), &Value::from(0)); 2], "{jobs}");
    }
    Ok(())
}

#[test]
fn a_stop_ends_at_its_deadline_and_kills_a_command_that_ignores_it() -> Outcome {
    let (database, folder) = (migrated()?, tempfile::tempdir()?);
    let beats = folder.path().join("beats");
    put(&database, "mail", "1")?;
    let command = format!("trap '' TERM; while :; do echo >> '{}'; sleep 0.02; done", beats.display());
    let words = ["work", "mail", "--exec", &command, "--stop-within", "500ms"];
    let work = Work::start(on(&database, &words))?;
    wait_for("the command to begin", || Ok(lines(&beats) > 0))?;
    signal(&work.child, Signal::INT)?;
    assert_eq!(work.end()?.0, 0);
    assert_eq!(json(&database, &["jobs", "mail", "--json"])?[0]["state"], "scheduled");
    wait_for("the command to end", || {
        let before = lines(&beats);
        std::thread::sleep(Duration::from_millis(300));
        Ok(lines(&beats) == before)
    })
}

#[test]
fn usr1_prints_the_status() -> Outcome {
    let (database, gate) = (migrated()?, Gate::new()?);
    put(&database, "mail", "1")?;
    let work = Work::start(on(&database, &["work", "mail", "--exec", &gate.command()]))?;
    gate.begun(1)?;
    signal(&work.child, Signal::USR1)?;
    work.wait_for_stderr("job 1: queue mail, attempt 1")?;
    signal(&work.child, Signal::HUP)?;
    gate.open()?;
    assert_eq!(work.end()?.0, 0);
    Ok(())
}

#[test]
fn cancelling_a_running_job_terminates_its_command() -> Outcome {
    let (database, gate) = (migrated()?, Gate::new()?);
    put(&database, "mail", "1")?;
    let work = Work::start(on(&database, &["work", "mail", "--exec", &gate.command(), "--jobs", "1"]))?;
    gate.begun(1)?;
    let cancelled = run(&database, &["cancel", "1"])?;
    assert!(stdout(&cancelled).contains("it is asked to stop"), "{}", stdout(&cancelled));
    assert_eq!((work.end()?.0, gate.done()), (0, 0));
    assert_eq!(json(&database, &["show", "1", "--json"])?["state"], "cancelled");
    Ok(())
}

#[test]
fn a_command_that_exceeds_the_timeout_fails_its_job() -> Outcome {
    let (database, gate) = (migrated()?, Gate::new()?);
    put(&database, "mail", "1")?;
    let worked =
        run(&database, &["work", "mail", "--exec", &gate.command(), "--jobs", "1", "--timeout", "300ms"])?;
    assert_eq!((status(&worked), gate.done()), (0, 0));
    let job = json(&database, &["show", "1", "--json"])?;
    assert_eq!(job["state"], "dead");
    assert!(job["error"].as_str().is_some_and(|error| error.contains("longer than 300ms")), "{job}");
    Ok(())
}

#[test]
fn a_held_pid_file_is_rejected_and_a_stale_one_is_taken_over() -> Outcome {
    let (database, gate) = (migrated()?, Gate::new()?);
    let path = gate.path("pq.pid");
    let file = path.to_string_lossy().into_owned();
    let command = gate.command();
    let words = ["work", "mail", "--exec", &command, "--pid-file", &file];
    let nobody = run(&database, &["stop", "--pid-file", &file])?;
    assert_eq!(status(&nobody), 1, "{}", stderr(&nobody));
    // The id of a live process that is not a worker.
    fs::write(&path, "1\n")?;
    assert_eq!(status(&run(&database, &["stop", "--pid-file", &file])?), 1);
    put(&database, "mail", "1")?;
    let work = Work::start(on(&database, &words))?;
    gate.begun(1)?;
    assert_eq!(fs::read_to_string(&path)?, format!("{}\n", work.child.id()));
    let second = run(&database, &words)?;
    assert_eq!(status(&second), 2);
    assert!(stderr(&second).contains(&format!("process {}", work.child.id())), "{}", stderr(&second));
    wait_until(&database, "SELECT count(*) FROM pq.queue_workers")?;
    let known = json(&database, &["status", "--pid-file", &file, "--json"])?;
    assert_eq!((&known[0]["pid"], known.as_array().map(Vec::len)), (&work.child.id().into(), Some(1)));
    let stopped = run(&database, &["stop", "--pid-file", &file, "--mode", "abort", "--wait", "2m"])?;
    assert_eq!(status(&stopped), 0, "{}", stderr(&stopped));
    assert_eq!(work.end()?.0, 0);
    assert!(!path.exists(), "the file is removed at the end");
    Ok(())
}

#[test]
fn a_killed_workers_pid_file_is_taken_over_and_its_job_is_requeued() -> Outcome {
    let (database, gate) = (migrated()?, Gate::new()?);
    let path = gate.path("pq.pid");
    let file = path.to_string_lossy().into_owned();
    put(&database, "mail", "1")?;
    let command = gate.command();
    let words =
        ["work", "mail", "--exec", &command, "--pid-file", &file, "--jobs", "1", "--max-retries", "1"];
    // Only the killed worker has a short lease: its job is requeued soon, and the job of the next one is not.
    let mut killed = Work::start(on(&database, &[&words[..], &["--lease", "200ms"]].concat()))?;
    gate.begun(1)?;
    killed.child.kill()?;
    killed.child.wait()?;
    assert!(path.exists());
    gate.open()?;
    let (status, said) = Work::start(on(&database, &words))?.end()?;
    assert_eq!(status, 0, "{said}");
    assert_eq!(json(&database, &["ls", "--json"])?, serde_json::json!([]));
    Ok(())
}

#[test]
fn killed_processes_are_restarted_and_signals_are_forwarded() -> Outcome {
    let (database, gate) = (migrated()?, Gate::new()?);
    let file = gate.path("pq.pid").to_string_lossy().into_owned();
    let command = gate.command();
    let words =
        ["work", "mail", "--exec", &command, "--processes", "2", "--pid-file", &file, "--lease", "2s"];
    let work = Work::start(on(&database, &words))?;
    let workers = |database: &Database| json(database, &["status", "--pid-file", &file, "--json"]);
    let pids = |known: &Value| -> Vec<i64> {
        known.as_array().into_iter().flatten().filter_map(|worker| worker["pid"].as_i64()).collect()
    };
    wait_until(&database, "SELECT (count(*) = 2)::int::bigint FROM pq.queue_workers")?;
    let before = pids(&workers(&database)?);
    put(&database, "mail", "1\n2")?;
    gate.begun(2)?;
    let victim = rustix::process::Pid::from_raw(i32::try_from(before[0])?).ok_or("a pid")?;
    rustix::process::kill_process(victim, Signal::KILL)?;
    wait_for("another process is started", || {
        let now = pids(&workers(&database)?);
        Ok(now.iter().filter(|pid| !before.contains(pid)).count() == 1)
    })?;
    work.wait_for_stderr("restarting it")?;
    signal(&work.child, Signal::USR1)?;
    // The supervisor prints one status for all processes.
    work.wait_for_stderr("supervised by")?;
    gate.open()?;
    signal(&work.child, Signal::HUP)?;
    let (ended, said) = work.end()?;
    assert_eq!(ended, 0, "{said}");
    // A worker requeues the killed process's job when its lease has expired.
    wait_for("the lease has expired", || {
        let rest = run(&database, &["work", "mail", "--exec", &command, "--burst"])?;
        assert_eq!(status(&rest), 0, "{}", stderr(&rest));
        let mut conn = database.connect()?;
        let leases = diesel::dsl::sql::<BigInt>("SELECT count(*) FROM pq.queue_leases");
        Ok(leases.get_result::<i64>(&mut conn)? == 0)
    })
}

#[test]
fn processes_without_a_table_are_not_restarted() -> Outcome {
    let database = pq_testing::Server::shared()?.database()?;
    let work = Work::start(on(&database, &["work", "mail", "--exec", "true", "--processes", "2"]))?;
    let (status, said) = work.end()?;
    assert_eq!(status, 4, "{said}");
    Ok(())
}

#[test]
fn a_worker_is_listed_and_stopped_through_the_database() -> Outcome {
    let database = migrated()?;
    let none = run(&database, &["status"])?;
    assert_eq!((status(&none), stdout(&none).as_str()), (1, ""));
    let work = Work::start(on(&database, &["work", "mail", "bills", "--exec", "true", "--workers", "3"]))?;
    let stays = Work::start(on(&database, &["work", "pears", "--exec", "true"]))?;
    wait_until(&database, "SELECT (count(*) = 2)::int::bigint FROM pq.queue_workers")?;
    let shown = stdout(&run(&database, &["status"])?);
    assert!(shown.contains("3 threads on mail, bills"), "{shown}");
    let unsaid = run(&database, &["stop", "--queue", "bills"])?;
    assert_eq!(status(&unsaid), 2, "{}", stderr(&unsaid));
    assert!(
        stderr(&unsaid).contains("stops 1 worker;") && stderr(&unsaid).contains("--yes"),
        "{}",
        stderr(&unsaid)
    );
    let stopped = run(&database, &["stop", "--queue", "bills", "--mode", "all", "--yes", "--wait", "2m"])?;
    assert_eq!(status(&stopped), 0, "{}", stderr(&stopped));
    assert_eq!(work.end()?.0, 0);
    let left = json(&database, &["status", "--json"])?;
    assert_eq!(left[0]["queues"], serde_json::json!(["pears"]));
    let id = left[0]["id"].to_string();
    assert_eq!(status(&run(&database, &["stop", &id, "999999"])?), 1, "one of them does not exist");
    assert_eq!(stays.end()?.0, 0);
    Ok(())
}
