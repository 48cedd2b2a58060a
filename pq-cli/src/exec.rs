//! Runs the user's commands for jobs (`pq work --exec`, `pq get --exec`).

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pq_diesel::{Claim, Trace};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use serde::Deserialize;
use wait_timeout::ChildExt;

use crate::exec_output::{Stderr, Stdout};
use crate::{exec_guard, otlp, output};

/// Time between SIGTERM and SIGKILL.
const KILL_AFTER: Duration = Duration::from_secs(5);
/// Interval at which `should_stop` is checked while a command runs.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Environment variables that can hold the password of the database or the key of the collector of spans.
const CREDENTIALS: [&str; 7] = [
    "PQ_URL",
    "TPQ_URL",
    "TPQ_PASS",
    "DATABASE_URL",
    "PGPASSWORD",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
];

/// Environment variables that concern this process only. A `pq work` in a command would take them for its own.
const OF_THIS_PROCESS: [&str; 5] =
    ["PQ_WORK_SUPERVISOR", "PQ_WORK_CHILD", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// The environment of a command.
pub(crate) struct Environment {
    /// Variables to set.
    pub(crate) variables: Vec<(String, String)>,
    /// Whether the command inherits the [`CREDENTIALS`].
    pub(crate) pass_credentials: bool,
}

/// Follows a command while it runs.
pub(crate) struct Follow<'a> {
    /// Whether the command must end. Called about every [`POLL_INTERVAL`].
    pub(crate) should_stop: &'a dyn Fn() -> bool,
    /// Called with each line of standard error.
    pub(crate) on_line: Option<&'a dyn Fn(&str)>,
    /// Whether standard output is returned, and not inherited.
    pub(crate) returns_output: bool,
}

/// A command: a shell command line, or a program with its arguments.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Exec {
    Shell(String),
    Program(Vec<String>),
}

/// The result of a command.
#[derive(Debug)]
pub(crate) struct Exit {
    status: ExitStatus,
    /// The end of its standard error.
    stderr: String,
    /// Its standard output if that was to be returned, or why it cannot be.
    stdout: Result<String, String>,
}

impl Exit {
    pub(crate) fn success(&self) -> bool {
        self.status.success()
    }

    /// Returns the standard output, if that was to be returned.
    pub(crate) fn into_output(self) -> Result<String, String> {
        self.stdout
    }

    /// Describes the failure: the exit status or signal, and the end of standard error.
    pub(crate) fn reason(&self) -> String {
        let how = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("ended by signal {signal}"),
            (None, None) => "ended".to_owned(),
        };
        let stderr = self.stderr.trim();
        if stderr.is_empty() { how } else { format!("{how}: {stderr}") }
    }
}

impl Exec {
    /// Returns `true` if there is nothing to run.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Shell(line) => line.trim().is_empty(),
            Self::Program(words) => words.first().is_none_or(String::is_empty),
        }
    }

    /// Runs the command with `input` on its standard input, and waits for its end.
    ///
    /// Its standard error is forwarded, and the end of it is kept. The command runs in a process group of its own,
    /// which gets SIGTERM when it must end and SIGKILL five seconds later. If this process dies, the group gets
    /// SIGKILL at once.
    pub(crate) fn run(
        &self,
        input: &str,
        environment: &Environment,
        follow: &Follow<'_>,
    ) -> io::Result<Exit> {
        let mut command = match self {
            Self::Shell(line) => {
                let mut shell = Command::new("sh");
                shell.arg("-c").arg(line);
                shell
            }
            Self::Program(words) => {
                let mut program = Command::new(words.first().map_or("", String::as_str));
                program.args(words.iter().skip(1));
                program
            }
        };
        if !environment.pass_credentials {
            for name in CREDENTIALS {
                command.env_remove(name);
            }
        }
        for name in OF_THIS_PROCESS {
            command.env_remove(name);
        }
        exec_guard::prepare();
        let mut child = command
            .envs(environment.variables.iter().map(|(name, value)| (name, value)))
            .stdin(stdin_of(input)?)
            .stdout(if follow.returns_output { Stdio::piped() } else { Stdio::inherit() })
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        exec_guard::begun(child.id());
        running().insert(child.id());
        let stdout = Stdout::of(&mut child);
        let stderr = Stderr::of(&mut child, follow.on_line.is_some());
        let pass_lines =
            || follow.on_line.iter().for_each(|line| stderr.lines().for_each(|text| line(&text)));
        let status = wait(&mut child, || {
            pass_lines();
            (follow.should_stop)()
        });
        running().remove(&child.id());
        exec_guard::ended(child.id());
        let status = status?;
        let tail = stderr.end();
        pass_lines();
        Ok(Exit { status, stderr: tail, stdout: stdout.end() })
    }
}

/// Returns the process groups of the commands that run.
fn running() -> MutexGuard<'static, HashSet<u32>> {
    static RUNNING: LazyLock<Mutex<HashSet<u32>>> = LazyLock::new(Mutex::default);
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills the commands that still run, because the process ends.
pub(crate) fn kill_running() {
    running().iter().for_each(|group| signal(*group, Signal::KILL));
}

/// Returns a standard input that has this text.
///
/// It is a file. If this process died while it wrote to a pipe, the command would take a part of the payload for the
/// whole.
fn stdin_of(input: &str) -> io::Result<Stdio> {
    let mut file = anonymous_file()?;
    file.write_all(input.as_bytes())?;
    file.rewind()?;
    Ok(file.into())
}

/// Creates a file in memory, which has no name.
#[cfg(target_os = "linux")]
fn anonymous_file() -> io::Result<File> {
    use rustix::fs::{MemfdFlags, memfd_create};
    let create = |flags| memfd_create("pq-input", MemfdFlags::CLOEXEC | flags);
    // The administrator can require the seal. A kernel before Linux 6.3 does not know it.
    Ok(create(MemfdFlags::NOEXEC_SEAL).or_else(|_| create(MemfdFlags::empty()))?.into())
}

/// Creates a file for this user, and removes its name.
#[cfg(not(target_os = "linux"))]
fn anonymous_file() -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    use std::sync::atomic::{AtomicU64, Ordering};
    static FILES: AtomicU64 = AtomicU64::new(0);
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("pq-input-{}-{number}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}

fn wait(child: &mut Child, should_stop: impl Fn() -> bool) -> io::Result<ExitStatus> {
    let mut terminated_at = None::<Instant>;
    let mut killed = false;
    loop {
        if let Some(status) = child.wait_timeout(POLL_INTERVAL)? {
            if let Some(at) = terminated_at {
                end_group(child.id(), at);
            }
            return Ok(status);
        }
        match terminated_at {
            None if should_stop() => {
                signal(child.id(), Signal::TERM);
                terminated_at = Some(Instant::now());
            }
            Some(at) if !killed && at.elapsed() > KILL_AFTER => {
                signal(child.id(), Signal::KILL);
                killed = true;
            }
            _ => {}
        }
    }
}

/// Waits for the rest of a process group whose first process has ended after SIGTERM, and kills what does not end in
/// time. It would go on beside the next attempt.
fn end_group(group: u32, terminated_at: Instant) {
    while is_alive(group) {
        if terminated_at.elapsed() > KILL_AFTER {
            return signal(group, Signal::KILL);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Returns whether a process of the group has not ended.
///
/// One that has ended belongs to the group until its parent asks for its status. An orphan's parent may do that late,
/// or never. So the states of the processes decide, where they can be read.
fn is_alive(group: u32) -> bool {
    let exists = id_of(group).is_some_and(|id| test_kill_process_group(id).is_ok());
    let have_ended = if exists { have_ended(group) } else { Vec::new() };
    exists && (have_ended.is_empty() || have_ended.contains(&false))
}

/// Returns for each process of a group whether it has ended, as Linux shows them; none on other systems.
fn have_ended(group: u32) -> Vec<bool> {
    let has_ended = |stat: String| {
        // The name of the program, in parentheses, may contain anything.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let (state, of_group) = (fields.next()?, fields.nth(1)?.parse() == Ok(group));
        // The state is that of the first thread. The number of threads is the 18th field from it on.
        let threads: u32 = fields.nth(14)?.parse().ok()?;
        of_group.then_some(state == "Z" && threads <= 1)
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| std::fs::read_to_string(process.path().join("stat")).ok())
        .filter_map(has_ended)
        .collect()
}

fn id_of(group: u32) -> Option<Pid> {
    i32::try_from(group).ok().and_then(Pid::from_raw)
}

fn signal(group: u32, signal: Signal) {
    if let Some(group) = id_of(group) {
        // An error means that the process group has ended.
        let _ = kill_process_group(group, signal);
    }
}

/// Returns the trace context for a command that is a handler of a job: that of the handler's span if that is
/// exported, and otherwise the one in which the job was put.
pub(crate) fn handler_trace(job: &Claim) -> Trace {
    let trace = otlp::current_trace();
    if trace.is_empty() { job.annotations.trace() } else { trace }
}

/// Returns the environment variables that describe a job to its command.
pub(crate) fn variables(job: &Claim, task: Option<&str>, mut trace: Trace) -> Vec<(String, String)> {
    let at = |at: Option<chrono::DateTime<chrono::Utc>>| at.map(output::format_time_micros);
    let known = [
        ("PQ_ID", Some(job.id.to_string())),
        ("PQ_QUEUE", Some(job.queue.to_string())),
        ("PQ_TASK", task.map(str::to_owned)),
        ("PQ_ATTEMPT", Some(job.attempt.to_string())),
        ("PQ_PRIORITY", Some(job.priority.to_string())),
        ("PQ_ENQUEUED_AT", at(Some(job.enqueued_at))),
        ("PQ_SCHEDULE_AT", at(job.schedule_at)),
        ("PQ_EXPECTED_AT", at(job.expected_at)),
        ("PQ_SERIALIZATION_KEY", job.serialization_key.as_ref().map(|key| key.as_str().to_owned())),
        ("PQ_UNIQUE_KEY", job.unique_key.as_ref().map(|key| key.as_str().to_owned())),
        ("TRACEPARENT", trace.remove("traceparent")),
        ("TRACESTATE", trace.remove("tracestate")),
    ];
    // If `pq` runs inside a job's command, it inherits that job's variables. Unset values are therefore passed as
    // empty strings.
    known
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.unwrap_or_default().replace('\0', "")))
        .collect()
}
