//! Runs `pq-bench adapter` as the harness does: environment variables, lines of JSON, and SIGTERM.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chrono::DateTime;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use pq_testing::{Database, Server};
use serde_json::Value;

type Outcome = Result<(), Box<dyn Error>>;

/// Timeout of events that must happen. It is generous, because nothing is measured by it.
const TIMEOUT: Duration = Duration::from_secs(300);

const REQUIRED: [&str; 6] =
    ["claim_p50_ms", "claim_p95_ms", "claim_p99_ms", "enqueue_rate", "completion_rate", "queue_depth"];

/// The metrics of one sample, by name: value and window.
#[derive(Debug)]
struct Sample {
    at_ms: i64,
    figures: BTreeMap<String, (f64, f64)>,
}

impl Sample {
    fn of(&self, name: &str) -> f64 {
        self.figures.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}")).0
    }
}

struct Adapter {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Value>,
    errors: Arc<Mutex<String>>,
    errors_end: Option<JoinHandle<()>>,
    descriptor: Value,
    /// A line that belongs to the next sample.
    ahead: Option<Value>,
    samples: Vec<Sample>,
}

fn command(settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pq-bench"));
    command.arg("adapter").env_clear().envs(settings.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Adapter {
    fn start(database: &Database, settings: &[(&str, &str)]) -> Result<Self, Box<dyn Error>> {
        let common = [("DATABASE_URL", database.url()), ("SAMPLE_EVERY_S", "1"), ("WORKER_COUNT", "2")];
        let mut child = command(&[&common[..], settings].concat()).spawn()?;
        let (out, err) = (child.stdout.take().ok_or("out")?, child.stderr.take().ok_or("err")?);
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let value: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"));
                if send.send(value).is_err() {
                    return;
                }
            }
        });
        let errors = Arc::new(Mutex::new(String::new()));
        let all = Arc::clone(&errors);
        let errors_end = std::thread::spawn(move || {
            for line in BufReader::new(err).lines().map_while(Result::ok) {
                *all.lock().unwrap_or_else(PoisonError::into_inner) += &format!("{line}\n");
            }
        });
        let errors_end = Some(errors_end);
        let descriptor = lines.recv_timeout(TIMEOUT)?;
        assert_eq!(descriptor["kind"], "descriptor");
        let stdin = child.stdin.take();
        Ok(Self { child, stdin, lines, errors, errors_end, descriptor, ahead: None, samples: Vec::new() })
    }

    fn send_line(&mut self, line: &str) -> Outcome {
        Ok(writeln!(self.stdin.as_mut().ok_or("stdin")?, "{line}")?)
    }

    /// Reads the next line; `None` at the end of the output.
    fn line(&self) -> Result<Option<Value>, Box<dyn Error>> {
        match self.lines.recv_timeout(TIMEOUT) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => Err("timed out waiting for a line".into()),
        }
    }

    /// Returns what the adapter has written to standard error.
    fn errors(&self) -> String {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until standard error contains the text.
    fn until_error(&self, text: &str) -> Outcome {
        poll(|| Ok(self.errors().contains(text))).map_err(|error| format!("{error}: {text}").into())
    }

    /// Reads a complete sample. Returns `false` at the end of the output.
    fn sample(&mut self) -> Result<bool, Box<dyn Error>> {
        let first = match self.ahead.take() {
            Some(line) => Some(line),
            None => self.line()?,
        };
        let Some(first) = first else { return Ok(false) };
        let (t, mut line, mut figures) = (first["t"].clone(), Some(first), BTreeMap::new());
        while let Some(sample) = line {
            if sample["t"] != t {
                self.ahead = Some(sample);
                break;
            }
            for (key, value) in
                [("kind", "adapter"), ("subject_kind", "adapter"), ("subject", ""), ("system", "pq")]
            {
                assert_eq!(sample[key], value);
            }
            assert_eq!(sample["instance_id"], self.descriptor["instance_id"]);
            let name = sample["metric"].as_str().ok_or("a name")?.to_owned();
            let figure =
                (sample["value"].as_f64().ok_or("a value")?, sample["window_s"].as_f64().ok_or("a window")?);
            assert!(figure.0.is_finite() && figure.0 >= 0.0, "{sample}");
            let window_is_right = match name.as_str() {
                name if name.starts_with("schedule_") => figure.1 == 0.0,
                name if name.ends_with("_ms") => figure.1 == 30.0,
                name if name.ends_with("_rate") && name != "producer_target_rate" => figure.1 > 0.0,
                _ => figure.1 == 0.0,
            };
            assert!(window_is_right, "{sample}");
            assert!(figures.insert(name, figure).is_none(), "twice: {sample}");
            line = self.line()?;
        }
        let at_ms = DateTime::parse_from_rfc3339(t.as_str().ok_or("a time")?)?.timestamp_millis();
        assert!(t.as_str().is_some_and(|t| t.len() == 24 && t.ends_with('Z')), "{t}");
        self.samples.push(Sample { at_ms, figures });
        Ok(true)
    }

    /// Reads samples until the condition holds.
    fn until(&mut self, is_so: impl Fn(&Self) -> bool) -> Outcome {
        let begun = Instant::now();
        while begun.elapsed() < TIMEOUT {
            assert!(self.sample()?, "the output ended");
            if is_so(self) {
                return Ok(());
            }
        }
        Err(format!("timed out; last sample: {:?}", self.samples.last()).into())
    }

    fn last(&self, name: &str) -> f64 {
        self.samples.last().map_or(-1.0, |sample| sample.of(name))
    }

    /// Returns the total of a rate over all samples.
    fn total(&self, rate: &str) -> i64 {
        let of = |sample: &Sample| sample.figures.get(rate).map_or(0.0, |(value, window)| value * window);
        self.samples.iter().map(of).sum::<f64>().round() as i64
    }

    /// Sends SIGTERM, as the harness does, reads the remaining samples, and returns standard error.
    fn end(&mut self) -> Result<String, Box<dyn Error>> {
        drop(self.stdin.take());
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id())?).ok_or("a pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        while self.sample()? {}
        let status = self.child.wait()?;
        self.errors_end.take().ok_or("ended")?.join().map_err(|_| "errors")?;
        let errors = self.errors();
        assert_eq!(status.code(), Some(0), "{errors}");
        let (last, ticks) = self.samples.split_last().ok_or("samples")?;
        for sample in ticks {
            assert_eq!(sample.at_ms % 1_000, 0, "{sample:?}");
        }
        for pair in self.samples.windows(2) {
            assert!(pair[0].at_ms < pair[1].at_ms, "{pair:?}");
            // The windows are contiguous and do not overlap.
            let window = pair[1].figures["enqueue_rate"].1;
            assert_eq!((window * 1_000.0).round() as i64, pair[1].at_ms - pair[0].at_ms);
        }
        if self.descriptor["instance_id"] == 0 {
            for sample in ticks.iter().chain([last]) {
                assert!(REQUIRED.iter().all(|name| sample.of(name) >= 0.0));
            }
        }
        Ok(errors)
    }
}

impl Drop for Adapter {
    /// A failed test leaves no process behind.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Polls until the condition holds.
fn poll(is_true: impl Fn() -> Result<bool, Box<dyn Error>>) -> Outcome {
    let begun = Instant::now();
    while !is_true()? {
        if begun.elapsed() > TIMEOUT {
            return Err("timed out".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn count(database: &Database, sql: &str) -> Result<i64, Box<dyn Error>> {
    Ok(diesel::dsl::sql::<BigInt>(sql).get_result(&mut database.connect()?)?)
}

const WAITING: &str = "SELECT count(*) FROM pq.queue";

/// Checks that no job is leased and that all ids that were assigned are accounted for.
fn adds_up(database: &Database, put: i64, gone: i64) -> Outcome {
    assert_eq!(count(database, "SELECT count(*) FROM pq.queue_leases")?, 0);
    assert_eq!(
        count(
            database,
            "SELECT coalesce(last_value, 0) FROM pg_sequences WHERE sequencename = 'queue_id_seq'"
        )?,
        put
    );
    assert_eq!(count(database, WAITING)?, put - gone);
    Ok(())
}

#[test]
fn adapter_describes_itself_reports_metrics_and_ends_on_sigterm() -> Outcome {
    let database = Server::shared()?.database()?;
    let mut adapter = Adapter::start(&database, &[("PRODUCER_RATE", "300"), ("SCENARIO", "long_horizon")])?;
    let manifest: Value = serde_json::from_str(include_str!("../adapter.json"))?;
    for key in ["system", "event_tables", "event_indexes", "extensions"] {
        assert_eq!(adapter.descriptor[key], manifest[key]);
    }
    let name = "SELECT count(*) FROM pg_class WHERE oid = ANY (ARRAY";
    for relation in ["event_tables", "event_indexes"] {
        let all = manifest[relation].as_array().ok_or("a list")?;
        let names: Vec<_> =
            all.iter().filter_map(Value::as_str).map(|r| format!("'{r}'::regclass")).collect();
        assert_eq!(count(&database, &format!("{name}[{}]::oid[])", names.join(", ")))?, all.len() as i64);
    }
    for query in manifest["state_queries"].as_object().ok_or("queries")?.values() {
        assert_eq!(count(&database, query.as_str().ok_or("SQL")?)?, 0);
    }
    let same = format!(
        "SELECT (current_database() = '{}')::int::bigint",
        adapter.descriptor["db_name"].as_str().ok_or("a name")?
    );
    assert_eq!(count(&database, &same)?, 1);
    let version = adapter.descriptor["schema_version"].as_str().ok_or("a version")?;
    let same = format!("SELECT (max(version) = '{version}')::int::bigint FROM pq.queue_migrations");
    assert_eq!(count(&database, &same)?, 1);

    adapter
        .until(|a| a.samples.len() > 3 && a.last("completion_rate") > 0.0 && a.last("enqueue_rate") > 0.0)?;
    assert_eq!(adapter.last("producer_target_rate"), 300.0);
    for of in ["claim", "subscriber", "end_to_end", "producer", "producer_call"] {
        let all = ["p50", "p95", "p99"].map(|percentile| adapter.last(&format!("{of}_{percentile}_ms")));
        assert!(0.0 < all[0] && all.is_sorted(), "{of}: {all:?}");
    }
    let errors = adapter.end()?;
    let (put, completed) = (adapter.total("enqueue_rate"), adapter.total("completion_rate"));
    assert!(put >= completed && completed > 0, "{put} {completed}");
    assert!(errors.contains(&format!("put {put} jobs, completed {completed}")), "{errors}");
    adds_up(&database, put, completed)?;
    assert_eq!(adapter.last("queue_depth") as i64, put - completed);
    assert_eq!(adapter.last("running_depth"), 0.0);
    Ok(())
}

#[test]
fn only_the_first_of_several_processes_observes() -> Outcome {
    let database = Server::shared()?.database()?;
    let one = [("PRODUCER_ONLY_INSTANCE_ZERO", "1"), ("PRODUCER_RATE", "500"), ("JOB_WORK_MS", "3")];
    let two = [&one[..], &[("BENCH_INSTANCE_ID", "1")]].concat();
    // Both try to create the table.
    let (mut first, mut second) = (Adapter::start(&database, &one)?, Adapter::start(&database, &two)?);
    assert_eq!(second.descriptor["instance_id"], 1);
    second.until(|second| second.last("completion_rate") > 0.0)?;
    first.until(|first| first.last("completion_rate") > 0.0)?;
    second.end()?;
    first.end()?;
    for sample in &second.samples {
        for name in ["queue_depth", "total_backlog", "producer_target_rate"] {
            assert!(!sample.figures.contains_key(name), "{sample:?}");
        }
    }
    assert_eq!(second.total("enqueue_rate"), 0);
    let completed = first.total("completion_rate") + second.total("completion_rate");
    adds_up(&database, first.total("enqueue_rate"), completed)
}

#[test]
fn harness_requests_jobs_and_a_rate_of_zero_pauses() -> Outcome {
    let (database, folder) = (Server::shared()?.database()?, tempfile::tempdir()?);
    let file = folder.path().join("rate");
    std::fs::write(&file, "0")?;
    let settings =
        [("PRODUCER_PACING", "harness"), ("PRODUCER_RATE_CONTROL_FILE", file.to_str().ok_or("a path")?)];
    let mut adapter = Adapter::start(&database, &settings)?;
    adapter.send_line("ENQUEUE 7")?;
    adapter.until_error("dropped a request for 7 jobs")?;
    adapter.until(|adapter| adapter.samples.len() >= 3)?;
    assert_eq!((adapter.total("enqueue_rate"), adapter.last("producer_target_rate")), (0, 0.0));

    std::fs::write(&file, "40.5")?;
    adapter.until(|adapter| adapter.last("producer_target_rate") == 40.5)?;
    // The second is larger than a batch, and the third is invalid.
    for line in ["ENQUEUE 5", "ENQUEUE 300", "ENQUEUE all"] {
        adapter.send_line(line)?;
    }
    adapter.until(|adapter| adapter.total("completion_rate") == 305)?;
    drop(adapter.stdin.take());
    adapter.until_error("standard input ended")?;
    let errors = adapter.end()?;
    assert!(errors.contains("ENQUEUE all"), "{errors}");
    adds_up(&database, 305, 305)
}

#[test]
fn depth_is_kept_and_long_jobs_are_given_back() -> Outcome {
    let (database, folder) = (Server::shared()?.database()?, tempfile::tempdir()?);
    let gate = folder.path().join("gate");
    let settings = [
        ("PRODUCER_MODE", "depth-target"),
        ("TARGET_DEPTH", "300"),
        ("JOB_WORK_MS", "3600000"),
        ("BENCH_QUEUE_COUNT", "2"),
        ("CONSUMER_GATE_FILE", gate.to_str().ok_or("a path")?),
    ];
    let mut adapter = Adapter::start(&database, &settings)?;
    adapter.until(|adapter| adapter.last("queue_depth") == 300.0)?;
    adapter.until(|_| true)?;
    assert_eq!((adapter.last("queue_depth"), adapter.last("total_backlog")), (300.0, 300.0));
    std::fs::write(&gate, "open\n")?;
    adapter.until(|adapter| adapter.last("running_depth") == 2.0 && adapter.last("queue_depth") == 300.0)?;
    let errors = adapter.end()?;
    assert!(errors.contains("completed 0, given back 2"), "{errors}");
    adds_up(&database, 302, 0)?;
    assert_eq!(count(&database, "SELECT count(DISTINCT q_name) FROM pq.queue")?, 2);
    Ok(())
}

#[test]
fn jobs_fail_as_planned() -> Outcome {
    let (database, folder) = (Server::shared()?.database()?, tempfile::tempdir()?);
    let plan = folder.path().join("plan");
    std::fs::write(&plan, r#"{"transient_pct": 20, "poison_pct": 10}"#)?;
    let settings = [
        ("JOB_FAILURE_CONTROL_FILE", plan.to_str().ok_or("a path")?),
        ("JOB_MAX_ATTEMPTS", "2"),
        ("PRODUCER_PACING", "harness"),
        ("JOB_WORK_MS", "0"),
    ];
    let mut adapter = Adapter::start(&database, &settings)?;
    adapter.send_line("ENQUEUE 1000")?;
    let bucket = |seq: i64| seq % 10_000 * 7_919 % 10_000;
    let poison = (0..1_000).filter(|seq| bucket(*seq) < 1_000).count() as i64;
    let transient = (0..1_000).filter(|seq| (1_000..3_000).contains(&bucket(*seq))).count() as i64;
    assert!(poison > 0 && transient > poison);
    adapter.until(|adapter| adapter.total("injected_failure_rate") >= poison + transient)?;
    adapter.until(|adapter| adapter.total("completion_rate") >= 1_000 - poison - transient)?;
    // A failure is counted before it is settled. Only a settled one has a retry that the UPDATE finds.
    poll(|| {
        let unsettled = "SELECT (SELECT count(*) FROM pq.queue WHERE schedule_at IS NULL)
            + (SELECT count(*) FROM pq.queue_leases)";
        Ok(count(&database, unsettled)? == 0)
    })?;
    // Retries are scheduled much later.
    database
        .connect()?
        .batch_execute("UPDATE pq.queue SET schedule_at = now(); SELECT pg_notify('bench', '')")?;
    adapter.until(|adapter| adapter.total("completion_rate") == 1_000 - poison)?;
    adapter.until(|adapter| adapter.total("poison_exhausted_rate") == poison)?;
    adapter.end()?;
    assert_eq!(adapter.total("injected_failure_rate"), 2 * poison + transient);
    assert_eq!(adapter.total("retried_completion_rate"), transient);
    assert_eq!(count(&database, "SELECT count(*) FROM pq.queue_archive WHERE outcome = 'dead'")?, poison);
    adds_up(&database, 1_000, 1_000)
}

#[test]
fn a_load_group_is_put_once_and_counted_separately() -> Outcome {
    let (database, folder) = (Server::shared()?.database()?, tempfile::tempdir()?);
    let file = folder.path().join("load-group");
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    std::fs::write(&file, format!(r#"{{"id": "a", "count": 700, "run_at_ms": {now}}}"#))?;
    let settings = [
        ("SCHEDULE_CONTROL_FILE", file.to_str().ok_or("a path")?),
        ("BENCH_QUEUE_COUNT", "3"),
        ("PRODUCER_RATE", "0"),
    ];
    let mut adapter = Adapter::start(&database, &settings)?;
    adapter.until(|adapter| adapter.total("scheduled_completion_rate") == 700)?;
    std::fs::write(&file, format!(r#"{{"id": "b", "count": 30, "run_at_ms": {}}}"#, now + 3_600_000))?;
    adapter.until(|adapter| adapter.last("scheduled_depth") == 30.0)?;
    adapter.end()?;
    for (name, value) in
        [("schedule_started_total", 700.0), ("schedule_enqueued_total", 730.0), ("schedule_early_total", 0.0)]
    {
        assert_eq!(adapter.last(name), value);
    }
    let late = ["p50", "p95", "p99", "max"].map(|rank| adapter.last(&format!("schedule_lateness_{rank}_ms")));
    assert!(late[0] > 0.0 && late.is_sorted() && adapter.last("schedule_preload_s") > 0.0, "{late:?}");
    assert_eq!((adapter.total("enqueue_rate"), adapter.total("completion_rate")), (0, 0));
    assert_eq!(adapter.last("claim_p99_ms"), 0.0);
    adds_up(&database, 730, 700)
}

#[test]
fn invalid_settings_are_reported_before_the_start() -> Outcome {
    let database = Server::shared()?.database()?;
    let url = ("DATABASE_URL", database.url());
    for (settings, name) in [
        (&[][..], "DATABASE_URL"),
        (&[url, ("WORKER_COUNT", "none")], "WORKER_COUNT"),
        (&[url, ("SCENARIO", "chaos")], "SCENARIO"),
        (&[("DATABASE_URL", "postgres://me:secret@127.0.0.1:1/nowhere")], "DATABASE_URL"),
    ] {
        let refused = command(settings).output()?;
        let output = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{output}");
        assert!(output.contains(name) && !output.contains("secret"), "{output}");
        assert!(refused.stdout.is_empty());
    }
    assert_eq!(count(&database, "SELECT count(*) FROM pg_namespace WHERE nspname = 'pq'")?, 0);
    Ok(())
}
