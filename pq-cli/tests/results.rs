//! Results, progress and logs of jobs: `pq wait`, `pq logs`, and what `show`, `jobs` and `top` print of them.

mod common;

use std::time::Duration;

use diesel::connection::SimpleConnection;
use pq_diesel::{JobId, LogLevel, Outcome as JobOutcome, StopMode, Worker};
use pq_testing::Database;

use self::common::*;

/// Runs a handler that notes what handlers note, and returns the job.
fn run_noting(database: &Database) -> Result<JobId, Box<dyn std::error::Error>> {
    let pq = handle(database)?;
    let task = pq.queue::<()>("imports")?.task::<u32>("import");
    let id = task.call(&7)?.id;
    let handler = task.leased(|context, job| {
        context.log("began");
        context.log_at(LogLevel::Warn, "no\u{1b}[31m header\nin the file");
        context.progress(40, 100, "rows");
        JobOutcome::result(&(job.data * 2))
    });
    assert_eq!(Worker::new(&pq).serve(handler).run_until_empty()?.done, 1);
    Ok(id)
}

#[test]
fn wait_prints_the_result_of_a_job() -> Outcome {
    let database = migrated()?;
    let pq = handle(&database)?;
    let task = pq.queue::<()>("imports")?.task::<u32>("import");
    let id = task.call(&7)?.id.to_string();
    let waiting =
        on(&database, &["wait", &id, "--timeout", "60s"]).stdout(std::process::Stdio::piped()).spawn()?;
    wait_until(&database, "SELECT count(*) FROM pq.queue WHERE annotations ->> 'notify' = 'true'")?;
    let handler = task.leased(|_, job| JobOutcome::result(&(job.data * 2)));
    assert_eq!(Worker::new(&pq).serve(handler).run_until_empty()?.done, 1);
    let waited = waiting.wait_with_output()?;
    assert_eq!((status(&waited), stdout(&waited).as_str()), (0, "14\n"));
    // It can be read again, and a job without a result is `null`.
    assert_eq!(stdout(&on(&database, &["wait", &id]).output()?), "14\n");
    let other = task.call_with(&1, &pq_diesel::CallOptions::new().awaited())?.id.to_string();
    Worker::new(&pq).serve(task.leased(|_, _| Ok::<_, String>(()))).run_until_empty()?;
    assert_eq!(stdout(&on(&database, &["wait", &other]).output()?), "null\n");
    let unknown = on(&database, &["wait", "99999"]).output()?;
    assert_eq!(status(&unknown), 1);
    assert!(stderr(&unknown).contains("no such job"), "{}", stderr(&unknown));
    Ok(())
}

#[test]
fn a_reader_waits_by_reading() -> Outcome {
    let database = migrated()?;
    let pq = handle(&database)?;
    let task = pq.queue::<()>("imports")?.task::<u32>("import");
    let id = task.call(&7)?.id.to_string();
    let role = format!("reader_{}", std::process::id());
    let mut conn = database.connect()?;
    conn.batch_execute(&format!("CREATE ROLE {role}"))?;
    pq.grant_on(&mut conn, pq_diesel::admin::Role::Reader, &role)?;
    let mut command = on(&database, &["wait", &id, "--timeout", "60s"]);
    let separator = if database.url().contains('?') { '&' } else { '?' };
    command.env("PQ_URL", format!("{}{separator}options=-crole%3D{role}", database.url()));
    let waiting = Work::start(command)?;
    waiting.wait_for_stderr("waiting by reading")?;
    let handler = task.leased(|_, job| JobOutcome::result(&(job.data * 2)));
    assert_eq!(Worker::new(&pq).serve(handler).run_until_empty()?.done, 1);
    assert_eq!(waiting.end()?.0, 0);
    conn.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))?;
    Ok(())
}

#[test]
fn the_log_and_the_progress_of_a_job_are_shown() -> Outcome {
    let database = migrated()?;
    let id = run_noting(&database)?.to_string();
    let logs = stdout(&on(&database, &["logs", &id]).output()?);
    let lines: Vec<&str> =
        logs.lines().map(|line| line.split_once(' ').map_or("", |(_, rest)| rest)).collect();
    assert_eq!(lines, ["info  1 began", "warn  1 no\\u{1b}[31m header in the file"], "{logs}");
    let followed = on(&database, &["logs", &id, "--follow"]).output()?;
    assert_eq!((status(&followed), stdout(&followed)), (0, logs), "the job has ended");
    let json = stdout(&on(&database, &["logs", &id, "--json"]).output()?);
    let first: serde_json::Value = serde_json::from_str(json.lines().next().unwrap_or_default())?;
    assert_eq!(
        (&first["level"], &first["attempt"], &first["text"]),
        (&"info".into(), &1.into(), &"began".into())
    );

    let shown = stdout(&on(&database, &["show", &id, "--log"]).output()?);
    assert!(shown.contains("\nprogress           40/100 (40 %) rows\n"), "{shown}");
    assert!(shown.contains(" info  1 began\n") && !shown.contains('\u{1b}'), "{shown}");
    assert!(!stdout(&on(&database, &["show", &id]).output()?).contains(" began"));
    let shown = json_of(&database, &["show", &id, "--log", "--json"])?;
    assert_eq!((&shown["progress"]["done"], &shown["log"][0]["text"]), (&40.into(), &"began".into()));

    let listed = stdout(&on(&database, &["jobs", "imports"]).output()?);
    assert!(listed.contains("PROGRESS") && listed.contains("40/100 (40 %) rows"), "{listed}");
    let listed = json_of(&database, &["jobs", "imports", "--json"])?;
    assert_eq!(listed[0]["progress"]["note"], "rows");
    put(&database, "mail", "1")?;
    let listed = stdout(&on(&database, &["jobs", "mail"]).output()?);
    assert!(!listed.contains("PROGRESS"), "{listed}");
    let unknown = on(&database, &["logs", "99999"]).output()?;
    assert_eq!(status(&unknown), 1);
    Ok(())
}

fn json_of(database: &Database, words: &[&str]) -> Result<serde_json::Value, Box<dyn std::error::Error>> {
    parsed(&on(database, words).output()?)
}

#[test]
fn a_command_keeps_its_result_and_its_log() -> Outcome {
    let database = migrated()?;
    let command = r#"read n; echo "got $n" >&2; printf 'half a line' >&2
        case $n in 1) echo '{"twice": 2}';; 2) echo no json;; 3) ;; 4) head -c 1048577 /dev/zero;; 5) printf '\377';; esac"#;
    put(&database, "numbers", "1\n2\n3\n4\n5\n")?;
    let ids: Vec<String> = (1..=5).map(|id| id.to_string()).collect();
    let mut run =
        on(&database, &["work", "numbers", "--exec", command, "--burst", "--keep-result", "--keep-log"]);
    let run = run.output()?;
    assert_eq!(status(&run), 0);
    let waited = |id: &String| on(&database, &["wait", id]).output();
    assert_eq!(stdout(&waited(&ids[0])?), "{\"twice\": 2}\n");
    assert_eq!(stdout(&waited(&ids[1])?), "\"no json\"\n");
    assert_eq!(stdout(&waited(&ids[2])?), "null\n");
    // What cannot be kept does not make a command fail that has ended well.
    for (id, reason) in [
        (3, "job_id=4 queue=numbers reason=\"it printed 1048577 bytes, and a result has at most 1048576\""),
        (4, "it printed no UTF-8"),
    ] {
        assert_eq!((status(&waited(&ids[id])?), stdout(&waited(&ids[id])?)), (0, "null\n".to_owned()));
        assert!(stderr(&run).contains(reason), "{}", stderr(&run));
    }
    let logs = stdout(&on(&database, &["logs", &ids[0]]).output()?);
    assert!(logs.contains("info  1 got 1\n") && logs.contains("info  1 half a line\n"), "{logs}");

    put(&database, "mail", "1\n")?;
    let run =
        on(&database, &["work", "mail", "--exec", "echo sent >&2", "--burst", "--keep-log"]).output()?;
    assert_eq!(status(&run), 0);
    let logs = stdout(&on(&database, &["logs", "6"]).output()?);
    assert!(logs.contains("info  1 sent\n"), "a log keeps its job: {logs}");

    // A task of a file says for itself what it keeps.
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("handlers.toml");
    std::fs::write(&file, "[tasks.double]\nexec = \"echo 14\"\nkeep_result = true\n")?;
    let called = on(&database, &["put", "tasks", "--task", "double", "--args", "[7]"]).output()?;
    let file = file.display().to_string();
    assert_eq!(status(&on(&database, &["work", "tasks", "--handlers", &file, "--burst"]).output()?), 0);
    assert_eq!(stdout(&on(&database, &["wait", stdout(&called).trim()]).output()?), "14\n");
    Ok(())
}

#[test]
fn top_and_logs_follow_a_running_job() -> Outcome {
    let database = migrated()?;
    let pq = handle(&database)?;
    let task = pq.queue::<()>("imports")?.task::<u32>("import").keep_history(true);
    let id = task.call(&7)?.id.to_string();
    let (proceed, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let handler = task.leased(move |context, _| {
        context.log("one");
        context.progress(1, 2, "half");
        let waited = wait.lock().map_err(|_| "poisoned")?.recv_timeout(Duration::from_secs(60));
        context.log("two");
        waited.map_err(|_| "no signal came")
    });
    let worker = Worker::new(&pq).serve(handler);
    let control = worker.control();
    std::thread::scope(|threads| {
        threads.spawn(|| worker.run());
        let checked = (|| -> Outcome {
            let following =
                on(&database, &["logs", &id, "--follow"]).stdout(std::process::Stdio::piped()).spawn()?;
            wait_for("the progress is shown", || {
                let top = stdout(&on(&database, &["top", "--once"]).output()?);
                Ok(top.contains("PROGRESS") && top.contains("1/2 (50 %) half"))
            })?;
            proceed.send(())?;
            let followed = following.wait_with_output()?;
            let texts: Vec<_> = stdout(&followed)
                .lines()
                .filter_map(|line| line.rsplit(' ').next().map(str::to_owned))
                .collect();
            assert_eq!((status(&followed), texts), (0, vec!["one".to_owned(), "two".to_owned()]));
            Ok(())
        })();
        control.stop(StopMode::Abort);
        checked
    })
}
