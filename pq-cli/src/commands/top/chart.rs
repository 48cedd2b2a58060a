//! What is seen as rows and columns, for the screen and for plain text.

use std::cmp::Reverse;
use std::time::Duration;

use pq_diesel::{Ended, Overview, Running, WorkerInfo};

use super::fit;
use super::source::{DEAD_SHOWN, Seen};
use crate::{jobs, output};

/// After so long without a beat a worker is shown as one to look at: it beats each two seconds.
const SILENT_AFTER: Duration = Duration::from_secs(10);

/// A part of the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pane {
    Queues,
    Workers,
    Running,
    Dead,
}

impl Pane {
    /// From top to bottom.
    pub(super) const ALL: [Self; 4] = [Self::Queues, Self::Workers, Self::Running, Self::Dead];
}

/// How a column behaves where there is not room for all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub(super) head: &'static str,
    pub(super) is_number: bool,
    /// Columns of the highest rank go first; those of rank 0 stay.
    pub(super) rank: u8,
    /// It may be cut down to this width.
    pub(super) least: Option<u16>,
}

const fn number(head: &'static str, rank: u8) -> Column {
    Column { head, is_number: true, rank, least: None }
}

const fn word(head: &'static str, rank: u8) -> Column {
    Column { head, is_number: false, rank, least: None }
}

const fn text(head: &'static str, rank: u8, least: u16) -> Column {
    Column { head, is_number: false, rank, least: Some(least) }
}

const QUEUES: &[Column] = &[
    text("QUEUE", 0, 12),
    number("WAITING", 0),
    number("READY", 2),
    number("RUNNING", 1),
    number("SCHEDULED", 5),
    number("BLOCKED", 6),
    number("DEAD", 0),
    number("OLDEST", 4),
    number("RATE", 3),
    word("PAUSED", 0),
];

const WORKERS: &[Column] = &[
    number("ID", 0),
    text("HOST", 1, 8),
    number("PID", 2),
    text("QUEUES", 3, 10),
    number("THREADS", 7),
    number("RUNNING", 0),
    number("BUFFERED", 5),
    number("DONE", 2),
    number("FAILED", 6),
    number("DEAD", 4),
    number("RATE", 3),
    number("HEARD", 0),
    word("STOP", 0),
];

const RUNNING: &[Column] = &[
    number("ID", 0),
    text("QUEUE", 0, 10),
    text("TASK", 1, 10),
    number("ATTEMPT", 2),
    number("AGE", 0),
    text("WORKER", 3, 10),
];

const DEAD: &[Column] =
    &[number("ID", 0), number("ATTEMPT", 2), word("ENDED", 1), text("ERROR", 0, 16), text("PAYLOAD", 3, 16)];

/// What a row is painted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    /// Something stands still on purpose.
    Held,
    /// Something to look at.
    Bad,
}

/// A row. Control characters in its cells are visible already.
pub(super) struct Row {
    pub(super) cells: Vec<String>,
    pub(super) tone: Tone,
}

/// One pane's rows.
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) columns: &'static [Column],
    pub(super) rows: Vec<Row>,
    /// What is said where there is no row.
    pub(super) nothing: &'static str,
}

impl Chart {
    pub(super) fn of(pane: Pane, seen: &Seen) -> Self {
        let many =
            |name: &str, count: usize| if count > 0 { format!("{name} ({count})") } else { name.to_owned() };
        match pane {
            Pane::Queues => Self {
                title: many("Queues", seen.queues.len()),
                columns: QUEUES,
                rows: seen.queues.iter().map(|queue| queue_row(queue, seen)).collect(),
                nothing: "no queue has a job, and none is paused",
            },
            Pane::Workers => Self {
                title: many("Workers", seen.workers.len()),
                columns: WORKERS,
                rows: seen.workers.iter().map(worker_row).collect(),
                nothing: "no worker was heard of in the last minute",
            },
            Pane::Running => Self {
                title: many("Running jobs", running(seen).len()),
                columns: RUNNING,
                rows: running(seen).into_iter().map(|(worker, job)| running_row(worker, job)).collect(),
                nothing: "no worker has told of a job that runs",
            },
            Pane::Dead => Self {
                title: dead_title(seen),
                columns: DEAD,
                rows: seen.dead.jobs.iter().map(|job| dead_row(job, seen)).collect(),
                nothing: "none",
            },
        }
    }
}

/// The jobs that run as far as the workers have told, the longest first.
pub(super) fn running(seen: &Seen) -> Vec<(&WorkerInfo, &Running)> {
    let mut all: Vec<_> = seen
        .workers
        .iter()
        .flat_map(|worker| worker.status.running.iter().map(move |job| (worker, job)))
        .collect();
    // A job is as old as it was when its worker was heard of, and as that is ago.
    all.sort_by_key(|(worker, job)| (Reverse(job.age.saturating_add(worker.heard)), job.id));
    all
}

/// All of it in one line.
pub(super) fn totals(seen: &Seen) -> String {
    let count =
        |count: u64, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
    let sum = |of: fn(&Overview) -> u64| seen.queues.iter().map(of).sum::<u64>();
    // Not `sum`, for the sum of nothing is less than zero.
    let rate = seen.queues.iter().fold(0.0, |sum, queue| sum + queue.per_second);
    [
        count(seen.queues.len() as u64, "queue", "queues"),
        count(seen.workers.len() as u64, "worker", "workers"),
        format!("{} waiting", sum(Overview::waiting)),
        format!("{} dead", sum(|queue| queue.dead)),
        format!("{rate:.1}/s"),
    ]
    .join(", ")
}

/// Everything, as text for a screen of any width.
pub(super) fn plain(seen: &Seen) -> String {
    const WIDEST: u16 = 100;
    let clipped = |row: Row| row.cells.iter().map(|cell| fit::clip(cell, WIDEST)).collect();
    let mut parts = vec![format!("{}, at {}", totals(seen), output::instant(seen.at))];
    for chart in Pane::ALL.map(|pane| Chart::of(pane, seen)) {
        let body = if chart.rows.is_empty() {
            chart.nothing.to_owned()
        } else {
            let heads: Vec<&str> = chart.columns.iter().map(|column| column.head).collect();
            output::grid(&heads, chart.rows.into_iter().map(clipped))
        };
        parts.push(format!("{}\n{body}", chart.title));
    }
    parts.join("\n\n")
}

fn queue_row(queue: &Overview, seen: &Seen) -> Row {
    let paused = queue.paused_at.map(|at| ago(seen, at));
    let tone = match (queue.dead > 0, paused.is_some()) {
        (true, _) => Tone::Bad,
        (false, true) => Tone::Held,
        (false, false) => Tone::Plain,
    };
    let cells = vec![
        output::visible(queue.queue.as_str()),
        queue.waiting().to_string(),
        queue.ready.to_string(),
        queue.running.to_string(),
        queue.scheduled.to_string(),
        queue.blocked.to_string(),
        queue.dead.to_string(),
        queue.oldest.map(coarse).unwrap_or_default(),
        format!("{:.1}/s", queue.per_second),
        paused.map(|since| format!("for {since}")).unwrap_or_default(),
    ];
    Row { cells, tone }
}

fn worker_row(worker: &WorkerInfo) -> Row {
    let status = &worker.status;
    let stop = worker.stop.max(status.stopping);
    let tone = match (worker.heard >= SILENT_AFTER, stop.is_some()) {
        (true, _) => Tone::Bad,
        (false, true) => Tone::Held,
        (false, false) => Tone::Plain,
    };
    let cells = vec![
        worker.id.to_string(),
        output::visible(&worker.host),
        worker.pid.to_string(),
        output::visible(&worker.queues.join(", ")),
        worker.threads.to_string(),
        status.running.len().to_string(),
        status.buffered.to_string(),
        status.report.done.to_string(),
        status.report.failed.to_string(),
        status.report.dead.to_string(),
        format!("{:.1}/s", status.per_second),
        format!("{} ago", coarse(worker.heard)),
        stop.map(|mode| mode.to_string()).unwrap_or_default(),
    ];
    Row { cells, tone }
}

fn running_row(worker: &WorkerInfo, job: &Running) -> Row {
    let cells = vec![
        job.id.to_string(),
        output::visible(&job.queue),
        output::visible(job.task.as_deref().unwrap_or_default()),
        job.attempt.to_string(),
        coarse(job.age.saturating_add(worker.heard)),
        output::visible(&format!("{} {}", worker.host, worker.pid)),
    ];
    Row { cells, tone: Tone::Plain }
}

fn dead_row(job: &Ended, seen: &Seen) -> Row {
    let cells = vec![
        job.id.to_string(),
        job.attempt.to_string(),
        format!("{} ago", ago(seen, job.ended_at)),
        output::visible(job.error.as_deref().unwrap_or_default()),
        output::visible(&jobs::glimpse(job.payload.as_str())),
    ];
    Row { cells, tone: Tone::Plain }
}

fn dead_title(seen: &Seen) -> String {
    let Some(name) = &seen.dead.of else { return "Dead jobs".to_owned() };
    let name_shown = output::visible(name.as_str());
    let all = seen.queues.iter().find(|queue| queue.queue == *name).map_or(0, |queue| queue.dead);
    match seen.dead.jobs.len() {
        0 => format!("Dead jobs of {name_shown}"),
        shown if shown == DEAD_SHOWN && all > shown as u64 => {
            format!("Dead jobs of {name_shown} (the last {shown} of {all})")
        }
        shown => format!("Dead jobs of {name_shown} ({shown})"),
    }
}

/// How long before the look something was. Both are of the server's clock.
fn ago(seen: &Seen, at: chrono::DateTime<chrono::Utc>) -> String {
    coarse((seen.at - at).to_std().unwrap_or_default())
}

/// A span to the second.
fn coarse(span: Duration) -> String {
    match span.as_secs() {
        0 => "0s".to_owned(),
        _ => output::span(span),
    }
}
