//! How the built binary is run on a real server.

// No test binary uses all of it.
#![allow(dead_code, unreachable_pub)]

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::sql_types::BigInt;
use pq_testing::{Database, Server};
use serde_json::Value;

/// What a test returns.
pub type Outcome = Result<(), Box<dyn Error>>;

/// How long something that must happen may take. Nothing is measured by it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Whether a process waits for jobs in the database.
pub const LISTENING: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND query LIKE 'LISTEN%' AND state = 'idle'";

/// The binary, with nothing of the caller's environment that names a database.
pub fn pq(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pq"));
    for (name, _) in std::env::vars() {
        if name.starts_with("PG") || name.starts_with("TPQ_") || name == "PQ_URL" || name == "DATABASE_URL" {
            command.env_remove(name);
        }
    }
    command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The binary on this database.
pub fn on(database: &Database, words: &[&str]) -> Command {
    let mut command = pq(words);
    command.env("PQ_URL", database.url());
    command
}

/// A database with the table in it.
pub fn migrated() -> Result<Database, Box<dyn Error>> {
    let database = Server::shared()?.database()?;
    assert_eq!(status(&on(&database, &["migrate"]).output()?), 0);
    Ok(database)
}

/// Runs a command with this input.
pub fn feed(mut command: Command, input: &str) -> Result<Output, Box<dyn Error>> {
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that refuses its words reads nothing.
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

/// Whether a process of the demo works. Who asks has the same words in its own statement.
pub const DEMO_WORKS: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%demo_result%'";

/// Asks until the answer is not 0.
pub fn until(database: &Database, sql: &str) -> Outcome {
    let mut conn = database.connect()?;
    let begun = Instant::now();
    while diesel::dsl::sql::<BigInt>(sql).get_result::<i64>(&mut conn)? == 0 {
        assert!(begun.elapsed() < PATIENCE, "it never came to {sql}");
    }
    Ok(())
}

/// Sends a signal to a process.
pub fn signal(child: &Child, signal: rustix::process::Signal) -> Outcome {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id())?).ok_or("a pid")?;
    Ok(rustix::process::kill_process(pid, signal)?)
}

/// A folder with some files in it.
pub fn folder(files: u32) -> Result<tempfile::TempDir, std::io::Error> {
    let folder = tempfile::tempdir()?;
    for n in 0..files {
        std::fs::write(folder.path().join(format!("file {n}")), format!("{n}\n"))?;
    }
    Ok(folder)
}

/// The demo on this database and the files of this folder.
pub fn demo(database: &Database, folder: &Path) -> Command {
    let mut command = pq(&["demo", "--database-url", database.url(), "--jobs-from"]);
    command.arg(folder);
    command
}

/// What stands in the demo's table beside these words.
pub fn rows<const N: usize>(shown: &Output, words: [&str; N]) -> [String; N] {
    let table = stdout(shown);
    words.map(|word| {
        let line = table.lines().find(|line| line.contains(word)).unwrap_or_default();
        line.split(['│', '┆', '|']).nth(2).map(|count| count.trim().to_owned()).unwrap_or_default()
    })
}

/// Neither a session nor a schema of pq's.
pub fn nothing_is_left(database: &Database) -> Outcome {
    until(
        database,
        "SELECT (count(*) = 0)::int::bigint FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )?;
    until(database, "SELECT (count(*) = 0)::int::bigint FROM pg_namespace WHERE nspname LIKE 'pq%'")
}

/// A handle of the library's on this database.
pub fn handle(database: &Database) -> Result<pq_diesel::Pq, pq_diesel::Error> {
    pq_diesel::Pq::connect(database.url())
}

/// All that a command said: its output, its errors behind `!`, and its exit status if that is not 0.
pub fn said(output: &Output) -> String {
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

/// Runs commands one after the other, and tells what was said.
pub fn told(database: &Database, commands: &[&[&str]]) -> Result<String, Box<dyn Error>> {
    let mut told = String::new();
    for words in commands {
        let shown = words.iter().map(|word| match word {
            word if word.is_empty() || word.contains(' ') => format!(" '{word}'"),
            word => format!(" {word}"),
        });
        told += &format!("$ pq{}\n{}", shown.collect::<String>(), said(&on(database, words).output()?));
    }
    Ok(told)
}

/// The JSON that a command printed, on one line.
pub fn parsed(output: &Output) -> Result<serde_json::Value, Box<dyn Error>> {
    assert_eq!((status(output), stdout(output).lines().count()), (0, 1), "{}", said(output));
    Ok(serde_json::from_str(&stdout(output))?)
}

/// Has snapshots show no instant, no span and no version of the schema, for as long as what it returns lives.
pub fn timeless() -> insta::internals::SettingsBindDropGuard {
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "[instant]");
    settings.add_filter(r"\b\d+(ms|s) +(\d+\.\d/s)", "[span]  $2");
    settings.add_filter(r"\b0\d{3}((, | and )0\d{3})*\b", "[versions]");
    settings.add_filter(r"\b\d+ migrations?", "[n] migrations");
    settings.bind_to_scope()
}

/// Puts each line as a job.
pub fn put(database: &Database, queue: &str, jobs: &str) -> Outcome {
    let put = feed(on(database, &["put", queue, "--lines"]), jobs)?;
    assert_eq!(status(&put), 0, "{}", stderr(&put));
    Ok(())
}

/// Runs a command to its end.
pub fn run(database: &Database, words: &[&str]) -> Result<Output, Box<dyn Error>> {
    Ok(on(database, words).output()?)
}

/// What a command prints, as JSON.
pub fn json(database: &Database, words: &[&str]) -> Result<Value, Box<dyn Error>> {
    Ok(serde_json::from_str(&stdout(&run(database, words)?))?)
}

/// A worker, what it says, and its end. It is killed if nobody waited for it.
pub struct Work {
    pub child: Child,
    said: Arc<Mutex<String>>,
    listening: Option<JoinHandle<()>>,
}

impl Work {
    pub fn start(mut command: Command) -> Result<Self, Box<dyn Error>> {
        let mut child = command.stdout(Stdio::null()).spawn()?;
        let stderr = child.stderr.take().ok_or("its standard error")?;
        let said = Arc::new(Mutex::new(String::new()));
        let heard = Arc::clone(&said);
        let listening = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                heard.push_str(&line);
                heard.push('\n');
            }
        });
        Ok(Self { child, said, listening: Some(listening) })
    }

    pub fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it has said this.
    pub fn says(&self, text: &str) -> Outcome {
        patiently(text, || Ok(self.said().contains(text)))
    }

    /// Its exit status and all it said, when it has ended by itself.
    pub fn end(mut self) -> Result<(i32, String), Box<dyn Error>> {
        let begun = Instant::now();
        while self.child.try_wait()?.is_none() {
            assert!(begun.elapsed() < PATIENCE, "the worker did not end: {}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
        let status = self.child.wait()?.code().unwrap_or(-1);
        let heard = self.listening.take().map(JoinHandle::join);
        assert!(heard.is_some_and(|heard| heard.is_ok()));
        Ok((status, self.said()))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = signal(&self.child, rustix::process::Signal::TERM);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks until it is so.
pub fn patiently(what: &str, mut holds: impl FnMut() -> Result<bool, Box<dyn Error>>) -> Outcome {
    let begun = Instant::now();
    while !holds()? {
        assert!(begun.elapsed() < PATIENCE, "it never came to this: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
