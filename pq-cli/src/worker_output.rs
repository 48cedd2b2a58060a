//! Formats workers for `pq status` and for the status signal of `pq work`.

use std::fmt::Write;

use pq_diesel::admin::WorkerInfo;
use pq_diesel::{Report, Status};
use serde_json::{Value, json};

use crate::output;

/// Returns `true` if the worker runs on this host.
pub(crate) fn is_here(worker: &WorkerInfo) -> bool {
    gethostname::gethostname().to_string_lossy() == worker.host
}

/// Formats the status of a worker as indented lines.
pub(crate) fn describe(status: &Status) -> String {
    let mut text = String::new();
    if let Some(mode) = status.stopping {
        let _ = writeln!(text, "  stopping: {mode}");
    }
    if let Some(error) = &status.refused {
        let _ = writeln!(text, "  polls are refused: {}", output::escape(error));
    }
    if let Some(waiting) = status.waiting {
        let _ = writeln!(text, "  waiting {waiting}");
    }
    let _ = writeln!(
        text,
        "  running {}, buffered {}, {}, {:.1}/s",
        status.running.len(),
        status.buffered,
        describe_report(&status.report),
        status.per_second,
    );
    for running in &status.running {
        let task = running.task.as_ref().map(|task| format!(", task {task}")).unwrap_or_default();
        let _ = writeln!(
            text,
            "  job {}: queue {}{}, attempt {}, for {}",
            running.id,
            output::escape(&running.queue),
            output::escape(&task),
            running.attempt,
            output::format_duration(running.age),
        );
    }
    text.trim_end().to_owned()
}

/// Formats the totals of a worker.
pub(crate) fn describe_report(report: &Report) -> String {
    let Report { done, failed, dead, cancelled, snoozed, given_back, lost, .. } = report;
    format!(
        "done {done}, failed {failed}, dead {dead}, cancelled {cancelled}, snoozed {snoozed}, given back {given_back}, \
         lost {lost}"
    )
}

/// Formats workers, each as a line followed by its status.
pub(crate) fn describe_all<'w>(workers: impl IntoIterator<Item = &'w WorkerInfo>) -> String {
    let one = |worker: &WorkerInfo| {
        let threads = output::plural(worker.threads as u64, "thread");
        let gone = if worker.is_gone() { " (gone)" } else { "" };
        let stop = worker.stop.map(|mode| format!(", asked to stop: {mode}")).unwrap_or_default();
        let supervised = match worker.supervisor == worker.pid {
            true => String::new(),
            false => format!(" (supervised by {})", worker.supervisor),
        };
        format!(
            "worker {}{gone} on {}, process {}{supervised}: {threads} on {}, started {}, last heartbeat {} ago{stop}\n{}",
            worker.id,
            output::escape(&worker.host),
            worker.pid,
            output::escape(&worker.queues.join(", ")),
            output::format_time(worker.started_at),
            output::format_duration(worker.heartbeat_age),
            describe(&worker.status),
        )
    };
    workers.into_iter().map(one).collect::<Vec<_>>().join("\n")
}

/// Formats a worker as JSON.
pub(crate) fn as_json(worker: &WorkerInfo) -> Value {
    json!({
        "id": worker.id.0,
        "host": worker.host,
        "pid": worker.pid,
        "supervisor": worker.supervisor,
        "queues": worker.queues,
        "threads": worker.threads,
        "started_at": output::format_time_micros(worker.started_at),
        "gone": worker.is_gone(),
        "heartbeat_age_seconds": worker.heartbeat_age.as_secs_f64(),
        "stop": worker.stop.map(|mode| mode.as_str()),
        "status": serde_json::to_value(&worker.status).unwrap_or_default(),
    })
}
