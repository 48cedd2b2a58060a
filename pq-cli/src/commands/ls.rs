//! `pq ls`.

use std::process::ExitCode;

use anstyle::AnsiColor;
use pq_diesel::admin::QueueCounts;
use pq_diesel::{Limits, WORKFLOWS};
use serde_json::{Value, json};

use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::{job_output, output};

/// List the queues and count their jobs.
///
/// WAITING is the sum of READY, SCHEDULED and BLOCKED (by another job with the same serialization key). OLDEST is the
/// time since the oldest ready job became due. RATE is the number of jobs per second that the workers last reported.
/// CANCELLED, DONE and DEQUEUED (taken by the Python pq) are shown if there are any such jobs.
/// Workflows that have not ended are shown as RUNNING jobs of the queue pq.workflows. NOTE says since when the queue is
/// paused, or has the error of a waiting job, for example a task that no worker knows, or the limits of the queue and
/// whether it is fair. This command reads all jobs.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq ls\npq ls --json | jq '.[] | select(.dead > 0) | .queue'"))]
pub(crate) struct Ls {
    /// Print JSON: an array of objects.
    #[arg(long)]
    json: bool,
}

impl Ls {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let pq = global.connect()?;
        let mut queues = output::with_spinner("counting", || pq.overview())?;
        queues.iter_mut().filter(|row| row.queue.as_str() == WORKFLOWS).for_each(count_workflows);
        if self.json {
            output::print_json(&queues.iter().map(as_json).collect::<Value>())?;
        } else {
            let extra: Vec<Column> =
                EXTRA.into_iter().filter(|(_, count)| queues.iter().any(|row| count(row) > 0)).collect();
            let mut header = vec!["QUEUE", "WAITING", "READY", "RUNNING", "SCHEDULED", "BLOCKED", "DEAD"];
            header.extend(extra.iter().map(|(name, _)| *name));
            header.extend(["OLDEST", "RATE", "NOTE"]);
            let dead = |row: &QueueCounts| row.dead > 0;
            let table = output::format_table(&header, queues.iter().map(|row| as_row(row, &extra)));
            for (number, line) in table.lines().enumerate() {
                let is_dead = number.checked_sub(1).and_then(|row| queues.get(row)).is_some_and(dead);
                match is_dead {
                    true => output::print(&output::paint(line, AnsiColor::Red))?,
                    false => output::print(line)?,
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Counts workflows as running, which wait in their queue until their jobs have ended.
fn count_workflows(row: &mut QueueCounts) {
    row.running += row.waiting();
    (row.ready, row.scheduled, row.blocked, row.oldest) = (0, 0, 0, None);
}

/// A column that is shown if a queue has such jobs, and its count.
type Column = (&'static str, fn(&QueueCounts) -> u64);

const EXTRA: [Column; 3] = [
    ("CANCELLED", |queue| queue.cancelled),
    ("DONE", |queue| queue.done),
    ("DEQUEUED", |queue| queue.dequeued),
];

fn as_row(queue: &QueueCounts, extra: &[Column]) -> Vec<String> {
    let mut row = vec![
        queue.queue.to_string(),
        queue.waiting().to_string(),
        queue.ready.to_string(),
        queue.running.to_string(),
        queue.scheduled.to_string(),
        queue.blocked.to_string(),
        queue.dead.to_string(),
    ];
    row.extend(extra.iter().map(|(_, count)| count(queue).to_string()));
    row.extend([
        queue.oldest.map(output::format_duration).unwrap_or_default(),
        format!("{:.1}/s", queue.per_second),
        match (queue.paused_at, &queue.error) {
            (Some(at), _) => {
                let by = queue.paused_by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
                format!("paused since {}{by}", output::format_time(at))
            }
            (None, Some(error)) => job_output::preview(error),
            (None, None) => queue.limits.as_ref().map(|limits| limit(queue, limits)).unwrap_or_default(),
        },
    ]);
    row
}

/// Describes the limits of a queue and whether it is fair, and says whether ready jobs wait for the limit of running
/// ones.
pub(super) fn limit(queue: &QueueCounts, limits: &Limits) -> String {
    let full = if queue.is_full() { "full; " } else { "" };
    format!("{full}{limits}")
}

fn as_json(queue: &QueueCounts) -> Value {
    json!({
        "queue": queue.queue.as_str(),
        "waiting": queue.waiting(),
        "ready": queue.ready,
        "running": queue.running,
        "scheduled": queue.scheduled,
        "blocked": queue.blocked,
        "dequeued": queue.dequeued,
        "dead": queue.dead,
        "cancelled": queue.cancelled,
        "done": queue.done,
        "oldest_seconds": queue.oldest.map(|age| age.as_secs_f64()),
        "error": queue.error,
        "per_second": queue.per_second,
        "paused_at": queue.paused_at.map(output::format_time_micros),
        "paused_by": queue.paused_by,
        "limits": queue.limits,
    })
}
