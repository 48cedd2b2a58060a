//! The handlers of `pq work`: a command for whatever a queue carries, or one for each task.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use pq_diesel::{Backoff, Context, Handler, Job, Outcome, Pq};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Work;
use crate::exec::{Exec, variables};
use crate::failure::Failure;
use crate::input;

/// The file of `--handlers`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    tasks: BTreeMap<String, Entry>,
}

/// What it says of a task. What it does not say is as the command line has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    exec: Exec,
    queue: Option<String>,
    max_retries: Option<u32>,
    backoff: Option<String>,
    timeout: Option<String>,
    keep_history: Option<bool>,
}

/// The handlers that the command line asks for.
pub(super) fn build(work: &Work, pq: &Pq) -> Result<Vec<Handler>, Failure> {
    match (&work.exec, &work.handlers) {
        (Some(line), _) => {
            let exec = Exec::Shell(line.clone());
            work.queues.iter().map(|queue| Ok(with_options(work, queue_handler(pq, queue, &exec)?))).collect()
        }
        (None, Some(file)) => task_handlers(work, pq, file),
        (None, None) => Err(Failure::Usage("--exec or --handlers is wanted".to_owned())),
    }
}

fn task_handlers(work: &Work, pq: &Pq, path: &Path) -> Result<Vec<Handler>, Failure> {
    let wrong = |what: String| Failure::Usage(format!("{}: {what}", path.display()));
    let file: File = toml::from_str(&input::read(path)?).map_err(|error| wrong(error.to_string()))?;
    if file.tasks.is_empty() {
        return Err(wrong("there is no [tasks.NAME] in it".to_owned()));
    }
    let mut handlers = Vec::new();
    // By queue first, for queues are served in the order in which their first handlers are given.
    for name in &work.queues {
        let queue = pq.queue::<()>(name)?;
        for (task, entry) in &file.tasks {
            if entry.queue.as_ref().is_some_and(|queue| queue != name) {
                continue;
            }
            if entry.exec.is_empty() {
                return Err(wrong(format!("the task {task:?} has an empty exec")));
            }
            let (exec, task_name) = (entry.exec.clone(), task.clone());
            let handler =
                queue.task::<Box<RawValue>>(task).leased(move |context, job: Job<Box<RawValue>>| {
                    run_command(&exec, context, Some(&task_name), job.data.get())
                });
            let mut handler = with_options(work, handler);
            if let Some(retries) = entry.max_retries {
                handler = handler.max_retries(retries);
            }
            if let Some(backoff) = &entry.backoff {
                let backoff: Backoff =
                    backoff.parse().map_err(|why| wrong(format!("task {task:?}: {why}")))?;
                handler = handler.backoff(backoff);
            }
            if let Some(timeout) = &entry.timeout {
                let timeout = humantime::parse_duration(timeout)
                    .map_err(|why| wrong(format!("task {task:?}: the timeout is no span: {why}")))?;
                handler = handler.timeout(timeout);
            }
            if let Some(keep) = entry.keep_history {
                handler = handler.keep_history(keep);
            }
            handlers.push(handler);
        }
    }
    if let Some((task, queue)) = unserved_task(work, &file) {
        return Err(wrong(format!(
            "the task {task:?} is of queue {queue:?}, which is not among those to work"
        )));
    }
    Ok(handlers)
}

fn unserved_task<'f>(work: &Work, file: &'f File) -> Option<(&'f str, &'f str)> {
    file.tasks
        .iter()
        .filter_map(|(task, entry)| Some((task.as_str(), entry.queue.as_deref()?)))
        .find(|(_, queue)| !work.queues.iter().any(|served| served == queue))
}

/// A handler of whatever the queue carries.
fn queue_handler(pq: &Pq, queue: &str, exec: &Exec) -> Result<Handler, Failure> {
    let exec = exec.clone();
    let queue = pq.queue::<Box<RawValue>>(queue)?;
    Ok(queue.leased(move |context, job| run_command(&exec, context, None, job.data.get())))
}

fn with_options(work: &Work, handler: Handler) -> Handler {
    let handler =
        handler.max_retries(work.max_retries).backoff(work.backoff.clone()).keep_history(work.keep_history);
    match work.timeout {
        Some(timeout) => handler.timeout(timeout),
        None => handler,
    }
}

/// Runs the command for a job.
fn run_command(exec: &Exec, context: &Context, task: Option<&str>, input: &str) -> Result<Outcome, String> {
    let variables = variables(context.job(), task, context.trace());
    let ended = exec.run(input, &variables, || context.should_stop());
    let ended = ended.map_err(|error| format!("the command cannot be run: {error}"))?;
    if ended.success() {
        Ok(Outcome::Complete)
    } else if context.is_cancelled() {
        Ok(Outcome::cancel("cancelled while it ran"))
    } else if context.is_aborting() && !context.is_timed_out() {
        // It was told to end because the worker ends: that is no failure of the job.
        Ok(Outcome::snooze(Duration::ZERO))
    } else {
        Err(ended.reason())
    }
}
