//! Runs the built binary on a real server.

// No test binary uses all of these helpers.
#![allow(dead_code, unreachable_pub)]

#[path = "../../../pq-diesel/tests/common/migrated.rs"]
mod migrated;

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::sql_types::BigInt;
use pq_testing::Database;
use serde_json::Value;

/// The result of a test.
pub type Outcome = Result<(), Box<dyn Error>>;

/// Limit for everything that a test waits for. Generous, because the machine may be busy with something else.
pub const TIMEOUT: Duration = Duration::from_secs(120);

/// Counts the processes that wait for jobs in the database.
pub const LISTENING: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND query LIKE 'LISTEN%' AND state = 'idle'";

/// The binary, without the variables of the caller's environment that name a database, a collector of spans or a proxy.
pub fn pq(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pq"));
    for (name, _) in std::env::vars() {
        let is_prefixed = ["PG", "TPQ_", "OTEL_", "TRACE"].iter().any(|prefix| name.starts_with(prefix));
        let is_proxy = name.to_ascii_lowercase().ends_with("_proxy");
        if is_prefixed || is_proxy || name == "PQ_URL" || name == "DATABASE_URL" {
            command.env_remove(name);
        }
    }
    command.env("PQ_ACTOR", "tester");
    command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The binary with this database.
pub fn on(database: &Database, words: &[&str]) -> Command {
    let mut command = pq(words);
    command.env("PQ_URL", database.url());
    command
}

/// A database with the tables. Creates them without a process, which would take longer.
pub fn migrated() -> Result<Database, Box<dyn Error>> {
    Ok(migrated::migrated())
}

/// Runs a command with this input.
pub fn feed(mut command: Command, input: &str) -> Result<Output, Box<dyn Error>> {
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that rejects its arguments does not read its input.
        let _ = stdin.write_all(input.as_bytes());
    }
    Ok(child.wait_with_output()?)
}

pub fn status(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Counts the working processes of the demo, without the session that runs this statement.
pub const DEMO_WORKS: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%demo_result%'";

/// Runs a query until its result is not 0.
pub fn wait_until(database: &Database, sql: &str) -> Outcome {
    let mut conn = database.connect()?;
    let begun = Instant::now();
    while diesel::dsl::sql::<BigInt>(sql).get_result::<i64>(&mut conn)? == 0 {
        assert!(begun.elapsed() < TIMEOUT, "timed out waiting for {sql}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Sends a signal to a process.
pub fn signal(child: &Child, signal: rustix::process::Signal) -> Outcome {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id())?).ok_or("a pid")?;
    Ok(rustix::process::kill_process(pid, signal)?)
}

/// A directory with some files.
pub fn folder(files: u32) -> Result<tempfile::TempDir, std::io::Error> {
    let folder = tempfile::tempdir()?;
    for n in 0..files {
        std::fs::write(folder.path().join(format!("file {n}")), format!("{n}\n"))?;
    }
    Ok(folder)
}

/// The demo with this database and the files of this directory.
pub fn demo(database: &Database, folder: &Path) -> Command {
    let mut command = pq(&["demo", "--database-url", database.url(), "--jobs-from"]);
    command.arg(folder);
    command
}

/// The values of these rows of the demo's table.
pub fn rows<const N: usize>(shown: &Output, words: [&str; N]) -> [String; N] {
    let table = stdout(shown);
    words.map(|word| {
        let line = table.lines().find(|line| line.contains(word)).unwrap_or_default();
        line.split(['│', '┆', '|']).nth(2).map(|count| count.trim().to_owned()).unwrap_or_default()
    })
}

/// Waits until neither a session nor a schema of `pq` is left.
pub fn assert_nothing_left(database: &Database) -> Outcome {
    wait_until(
        database,
        "SELECT (count(*) = 0)::int::bigint FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )?;
    wait_until(database, "SELECT (count(*) = 0)::int::bigint FROM pg_namespace WHERE nspname LIKE 'pq%'")
}

/// A handle of the library for this database.
pub fn handle(database: &Database) -> Result<pq_diesel::Pq, pq_diesel::Error> {
    pq_diesel::Pq::connect(database.url())
}

/// The output of a command, its errors after `!`, and its exit status if it is not 0.
pub fn printed(output: &Output) -> String {
    let errors = stderr(output)
        .lines()
        .map(|line| format!("! {line}").trim_end().to_owned() + "\n")
        .collect::<String>();
    let code = match status(output) {
        0 => String::new(),
        code => format!("[{code}]\n"),
    };
    format!("{}{errors}{code}", stdout(output))
}

/// Runs commands one after the other, and returns the commands with their output.
pub fn transcript(database: &Database, commands: &[&[&str]]) -> Result<String, Box<dyn Error>> {
    let mut transcript = String::new();
    for words in commands {
        let shown = words.iter().map(|word| match word {
            word if word.is_empty() || word.contains(' ') => format!(" '{word}'"),
            word => format!(" {word}"),
        });
        transcript +=
            &format!("$ pq{}\n{}", shown.collect::<String>(), printed(&on(database, words).output()?));
    }
    Ok(transcript)
}

/// Parses the one line of JSON that a command printed.
pub fn parsed(output: &Output) -> Result<serde_json::Value, Box<dyn Error>> {
    assert_eq!((status(output), stdout(output).lines().count()), (0, 1), "{}", printed(output));
    Ok(serde_json::from_str(&stdout(output))?)
}

/// Replaces times, durations and schema versions in snapshots while the returned guard lives.
pub fn redact_times() -> insta::internals::SettingsBindDropGuard {
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "[instant]");
    settings.add_filter(r"\b\d+(ms|s) +(\d+\.\d/s)", "[span]  $2");
    settings.add_filter(r"\b0\d{3}((, | and )0\d{3})*\b", "[versions]");
    settings.add_filter(r"\b\d+ migrations?", "[n] migrations");
    settings.bind_to_scope()
}

/// Puts one job per line.
pub fn put(database: &Database, queue: &str, jobs: &str) -> Outcome {
    let put = feed(on(database, &["put", queue, "--lines"]), jobs)?;
    assert_eq!(status(&put), 0, "{}", stderr(&put));
    Ok(())
}

/// Runs a command to its end.
pub fn run(database: &Database, words: &[&str]) -> Result<Output, Box<dyn Error>> {
    Ok(on(database, words).output()?)
}

/// Runs a command and parses its output as JSON.
pub fn json(database: &Database, words: &[&str]) -> Result<Value, Box<dyn Error>> {
    Ok(serde_json::from_str(&stdout(&run(database, words)?))?)
}

/// A running worker and its standard error. Dropping it kills the worker.
pub struct Work {
    pub child: Child,
    stderr: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Work {
    pub fn start(mut command: Command) -> Result<Self, Box<dyn Error>> {
        let mut child = command.stdout(Stdio::null()).spawn()?;
        let stderr = child.stderr.take().ok_or("its standard error")?;
        let printed = Arc::new(Mutex::new(String::new()));
        let lines = Arc::clone(&printed);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                lines.push_str(&line);
                lines.push('\n');
            }
        });
        Ok(Self { child, stderr: printed, reader: Some(reader) })
    }

    pub fn stderr(&self) -> String {
        self.stderr.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the worker has printed this text.
    pub fn wait_for_stderr(&self, text: &str) -> Outcome {
        wait_for(text, || Ok(self.stderr().contains(text)))
    }

    /// Waits for the end of the worker. Returns its exit status and its standard error.
    pub fn end(mut self) -> Result<(i32, String), Box<dyn Error>> {
        let begun = Instant::now();
        while self.child.try_wait()?.is_none() {
            assert!(begun.elapsed() < TIMEOUT, "the worker did not end: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(10));
        }
        let status = self.child.wait()?.code().unwrap_or(-1);
        let joined = self.reader.take().map(JoinHandle::join);
        assert!(joined.is_some_and(|joined| joined.is_ok()));
        Ok((status, self.stderr()))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = signal(&self.child, rustix::process::Signal::TERM);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Polls until the condition holds.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> Result<bool, Box<dyn Error>>) -> Outcome {
    let begun = Instant::now();
    while !holds()? {
        assert!(begun.elapsed() < TIMEOUT, "timed out waiting for this: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
