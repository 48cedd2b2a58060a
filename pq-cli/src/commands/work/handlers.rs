//! The handlers of `pq work`: one command for all jobs of a queue, or one per task.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::Path;

use pq_diesel::{Backoff, Context, Handler, Job, Outcome, Pq};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Work;
use crate::exec::{Environment, Exec, Follow, handler_trace, variables};
use crate::failure::Failure;
use crate::{input, values};

/// The file of `--handlers`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    tasks: BTreeMap<String, Entry>,
}

/// A task of the file. The options of the command line are the defaults.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    exec: Exec,
    queue: Option<String>,
    max_retries: Option<u32>,
    max_crashes: Option<NonZeroU32>,
    backoff: Option<String>,
    timeout: Option<String>,
    keep_history: Option<bool>,
    keep_result: Option<bool>,
    keep_log: Option<bool>,
}

/// Builds the handlers of the command line.
pub(super) fn build(work: &Work, pq: &Pq) -> Result<Vec<Handler>, Failure> {
    match (&work.exec, &work.handlers) {
        (Some(line), _) => {
            let command = Command::new(work, Exec::Shell(line.clone()), None);
            let handler = |queue: &String| Ok(with_options(work, queue_handler(pq, queue, &command)?));
            work.queues.iter().map(handler).collect()
        }
        (None, Some(file)) => task_handlers(work, pq, file),
        (None, None) => Err(Failure::Usage("missing option: expected --exec or --handlers".to_owned())),
    }
}

fn task_handlers(work: &Work, pq: &Pq, path: &Path) -> Result<Vec<Handler>, Failure> {
    let invalid = |rule: String| Failure::Usage(format!("invalid handlers file {}: {rule}", path.display()));
    let file: File = toml::from_str(&input::read(path)?).map_err(|error| invalid(error.to_string()))?;
    if file.tasks.is_empty() {
        return Err(invalid("expected at least one table [tasks.NAME]".to_owned()));
    }
    let mut handlers = Vec::new();
    // The outer loop iterates over the queues, because workers serve queues in the order of their first handlers.
    for name in &work.queues {
        let queue = pq.queue::<()>(name)?;
        for (task, entry) in &file.tasks {
            if entry.queue.as_ref().is_some_and(|queue| queue != name) {
                continue;
            }
            if entry.exec.is_empty() {
                return Err(invalid(format!("task {task:?}: exec must not be empty")));
            }
            let mut command = Command::new(work, entry.exec.clone(), Some(task.clone()));
            command.keeps_result = entry.keep_result.unwrap_or(command.keeps_result);
            command.keeps_log = entry.keep_log.unwrap_or(command.keeps_log);
            let handler = queue
                .task::<Box<RawValue>>(task)
                .leased(move |context, job: Job<Box<RawValue>>| command.run(context, job.data.get()));
            let mut handler = with_options(work, handler);
            if let Some(retries) = entry.max_retries {
                handler = handler.max_retries(retries);
            }
            if let Some(crashes) = entry.max_crashes {
                handler = handler.max_crashes(crashes.get());
            }
            if let Some(backoff) = &entry.backoff {
                let backoff: Backoff =
                    backoff.parse().map_err(|reason| invalid(format!("task {task:?}: {reason}")))?;
                handler = handler.backoff(backoff);
            }
            if let Some(timeout) = &entry.timeout {
                let timeout = values::positive_duration(timeout).map_err(|reason| {
                    invalid(format!("task {task:?}: invalid timeout {timeout:?}: {reason}"))
                })?;
                handler = handler.timeout(timeout);
            }
            // A log is kept as long as its job.
            if let Some(keep) = entry.keep_history.or(entry.keep_log.filter(|keep| *keep)) {
                handler = handler.keep_history(keep);
            }
            handlers.push(handler);
        }
    }
    if let Some((task, queue)) = unserved_task(work, &file) {
        return Err(invalid(format!("task {task:?}: queue {queue:?} is not an argument of `pq work`")));
    }
    Ok(handlers)
}

fn unserved_task<'f>(work: &Work, file: &'f File) -> Option<(&'f str, &'f str)> {
    file.tasks
        .iter()
        .filter_map(|(task, entry)| Some((task.as_str(), entry.queue.as_deref()?)))
        .find(|(_, queue)| !work.queues.iter().any(|served| served == queue))
}

/// Returns a handler for all jobs of a queue.
fn queue_handler(pq: &Pq, queue: &str, command: &Command) -> Result<Handler, Failure> {
    let command = command.clone();
    let queue = pq.queue::<Box<RawValue>>(queue)?;
    Ok(queue.leased(move |context, job| command.run(context, job.data.get())))
}

fn with_options(work: &Work, handler: Handler) -> Handler {
    let handler = handler
        .max_retries(work.max_retries)
        .max_crashes(work.max_crashes.get())
        .backoff(work.backoff.clone())
        .keep_history(work.keep_history || work.keep_log);
    match work.timeout {
        Some(timeout) => handler.timeout(timeout),
        None => handler,
    }
}

/// The command of a handler.
#[derive(Clone)]
struct Command {
    exec: Exec,
    task: Option<String>,
    /// Whether it inherits the credentials of the database.
    pass_credentials: bool,
    keeps_result: bool,
    keeps_log: bool,
}

impl Command {
    /// Creates a command with the options of the command line.
    fn new(work: &Work, exec: Exec, task: Option<String>) -> Self {
        Self {
            exec,
            task,
            pass_credentials: work.pass_credentials,
            keeps_result: work.keep_result,
            keeps_log: work.keep_log,
        }
    }

    /// Runs the command for a job.
    fn run(&self, context: &Context, input: &str) -> Result<Outcome, String> {
        let variables = variables(context.job(), self.task.as_deref(), handler_trace(context.job()));
        let environment = Environment { variables, pass_credentials: self.pass_credentials };
        let log = |line: &str| context.log(line);
        let follow = Follow {
            should_stop: &|| context.should_stop(),
            on_line: self.keeps_log.then_some(&log),
            returns_output: self.keeps_result,
        };
        let ended = self.exec.run(input, &environment, &follow);
        let ended = ended.map_err(|error| format!("cannot run the command: {error}"))?;
        if ended.success() && self.keeps_result {
            let result = ended.into_output().and_then(|printed| result(&printed));
            Ok(result.unwrap_or_else(|reason| {
                // It has done its work, so it must not run again.
                let (job_id, queue) = (context.job().id, &context.job().queue);
                tracing::warn!(%job_id, %queue, reason, "job done; its result was not kept");
                Outcome::Keep { result: None }
            }))
        } else if ended.success() {
            Ok(Outcome::Complete)
        } else if context.is_cancelled() {
            Ok(Outcome::cancel("cancelled while running"))
        } else {
            // If the command was terminated because the worker stops, the worker gives the job back.
            Err(ended.reason())
        }
    }
}

/// Returns the outcome of a command that has succeeded, with what it has printed as the result, or why it cannot be
/// kept.
fn result(printed: &str) -> Result<Outcome, String> {
    let result = match serde_json::from_str::<&RawValue>(printed) {
        _ if printed.is_empty() => Outcome::result(&()),
        Ok(json) => Outcome::result(json),
        Err(_) => Outcome::result(printed),
    };
    result.map_err(|error| error.to_string())
}
