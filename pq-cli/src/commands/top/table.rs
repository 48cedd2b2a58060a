//! Tables of the panes: columns and rows, for the screen and for plain text.

use std::cmp::Reverse;
use std::time::Duration;

use pq_diesel::admin::{QueueCounts, WorkerInfo};
use pq_diesel::{JobRecord, Running};

use super::super::{limit, ls};
use super::layout;
use super::poller::{DEAD_LIMIT, Snapshot, StuckJob};
use crate::{job_output, output};

/// Time without a heartbeat after which a worker is highlighted. Workers send one every two seconds.
const SILENT_AFTER: Duration = Duration::from_secs(10);

/// A pane of the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pane {
    Queues,
    Workers,
    Running,
    Dead,
}

impl Pane {
    /// All panes from top to bottom.
    pub(super) const ALL: [Self; 4] = [Self::Queues, Self::Workers, Self::Running, Self::Dead];
}

/// A column, and what happens to it if the screen is too narrow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub(super) header: &'static str,
    pub(super) is_number: bool,
    /// Columns with the highest value are dropped first. Columns with 0 always stay.
    pub(super) drop_order: u8,
    /// Minimum width to which the column can be truncated.
    pub(super) min_width: Option<u16>,
}

const fn number(header: &'static str, drop_order: u8) -> Column {
    Column { header, is_number: true, drop_order, min_width: None }
}

const fn word(header: &'static str, drop_order: u8) -> Column {
    Column { header, is_number: false, drop_order, min_width: None }
}

const fn text(header: &'static str, drop_order: u8, min_width: u16) -> Column {
    Column { header, is_number: false, drop_order, min_width: Some(min_width) }
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
    text("NOTE", 0, 12),
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
    number("HEARTBEAT", 0),
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

/// The columns if a job has noted its progress.
const RUNNING_WITH_PROGRESS: &[Column] = &[
    number("ID", 0),
    text("QUEUE", 0, 10),
    text("TASK", 1, 10),
    number("ATTEMPT", 3),
    number("AGE", 0),
    text("WORKER", 4, 10),
    text("PROGRESS", 2, 12),
];

const DEAD: &[Column] =
    &[number("ID", 0), number("ATTEMPT", 2), word("ENDED", 1), text("ERROR", 0, 16), text("PAYLOAD", 3, 16)];

/// The meaning of a row's colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    /// Something is paused or stopping.
    Paused,
    /// Something needs attention.
    Alert,
}

/// A row of escaped cells.
pub(super) struct Row {
    pub(super) cells: Vec<String>,
    pub(super) tone: Tone,
}

/// The table of one pane.
pub(super) struct PaneTable {
    pub(super) title: String,
    pub(super) columns: &'static [Column],
    pub(super) rows: Vec<Row>,
    /// Text in place of the rows if there are none.
    pub(super) empty_text: &'static str,
}

impl PaneTable {
    pub(super) fn of(pane: Pane, snapshot: &Snapshot) -> Self {
        let many =
            |name: &str, count: usize| if count > 0 { format!("{name} ({count})") } else { name.to_owned() };
        match pane {
            Pane::Queues => Self {
                title: many("Queues", snapshot.queues.len()),
                columns: QUEUES,
                rows: snapshot.queues.iter().map(|queue| queue_row(queue, snapshot)).collect(),
                empty_text: "no queue has a job, and none is paused",
            },
            Pane::Workers => Self {
                title: many("Workers", snapshot.workers.len()),
                columns: WORKERS,
                rows: snapshot.workers.iter().map(worker_row).collect(),
                empty_text: "no worker has sent a heartbeat in the last minute",
            },
            Pane::Running => Self {
                title: many("Running jobs", running(snapshot).len()),
                columns: if snapshot.progress.is_empty() { RUNNING } else { RUNNING_WITH_PROGRESS },
                rows: running(snapshot)
                    .into_iter()
                    .map(|(worker, job)| running_row(worker, job, snapshot))
                    .collect(),
                empty_text: "no worker reports a running job",
            },
            Pane::Dead => Self {
                title: dead_title(snapshot),
                columns: DEAD,
                rows: snapshot.dead.jobs.iter().map(|job| dead_row(job, snapshot)).collect(),
                empty_text: "none",
            },
        }
    }
}

/// Returns the running jobs that the workers reported, the oldest first.
pub(super) fn running(snapshot: &Snapshot) -> Vec<(&WorkerInfo, &Running)> {
    let mut all: Vec<_> = snapshot
        .workers
        .iter()
        .filter(|worker| !worker.is_gone())
        .flat_map(|worker| worker.status.running.iter().map(move |job| (worker, job)))
        .collect();
    // The age was reported with the last heartbeat, so the time since then is added.
    all.sort_by_key(|(worker, job)| (Reverse(job.age.saturating_add(worker.heartbeat_age)), job.id));
    all
}

/// Returns the totals in one line.
pub(super) fn totals(snapshot: &Snapshot) -> String {
    let count =
        |count: u64, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
    let sum = |of: fn(&QueueCounts) -> u64| snapshot.queues.iter().map(of).sum::<u64>();
    // `sum` of no `f64` is -0.0, which is printed with its sign.
    let rate = snapshot.queues.iter().fold(0.0, |sum, queue| sum + queue.per_second);
    [
        count(snapshot.queues.len() as u64, "queue", "queues"),
        count(snapshot.workers.iter().filter(|worker| !worker.is_gone()).count() as u64, "worker", "workers"),
        format!("{} waiting", sum(QueueCounts::waiting)),
        format!("{} dead", sum(|queue| queue.dead)),
        format!("{rate:.1}/s"),
    ]
    .join(", ")
}

/// Returns why the oldest due job of the stuck queue does not run, in one line.
pub(super) fn stuck(snapshot: &Snapshot) -> Option<String> {
    let StuckJob { queue, id, reasons, error } = snapshot.stuck.as_ref()?;
    let why = reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let error = error.as_ref().map(|error| format!("; its last error: {error}")).unwrap_or_default();
    Some(output::escape(&format!("job {id} of {} does not run: {why}{error}", queue.as_str())))
}

/// Returns how many due jobs of the queue wait because of which limit, in one line.
pub(super) fn held_back(snapshot: &Snapshot) -> Option<String> {
    let limited = snapshot.limited.as_ref()?;
    let held: Vec<String> = limit::held_back(limited).collect();
    (!held.is_empty()).then(|| output::escape(&format!("{}: {}", limited.queue, held.join(", "))))
}

/// Formats all panes as plain text.
pub(super) fn plain(snapshot: &Snapshot) -> String {
    const WIDEST: u16 = 100;
    let clipped = |row: Row| row.cells.iter().map(|cell| layout::truncate(cell, WIDEST)).collect();
    let mut parts = vec![format!("{}, at {}", totals(snapshot), output::format_time(snapshot.at))];
    parts.extend(stuck(snapshot).or_else(|| held_back(snapshot)));
    for table in Pane::ALL.map(|pane| PaneTable::of(pane, snapshot)) {
        let body = if table.rows.is_empty() {
            table.empty_text.to_owned()
        } else {
            let headers: Vec<&str> = table.columns.iter().map(|column| column.header).collect();
            output::format_table(&headers, table.rows.into_iter().map(clipped))
        };
        parts.push(format!("{}\n{body}", table.title));
    }
    parts.join("\n\n")
}

fn queue_row(queue: &QueueCounts, snapshot: &Snapshot) -> Row {
    let paused = queue.paused_at.map(|at| ago(snapshot, at));
    let tone = match (queue.dead > 0, paused.is_some()) {
        (true, _) => Tone::Alert,
        (false, true) => Tone::Paused,
        (false, false) => Tone::Plain,
    };
    let cells = vec![
        output::escape(queue.queue.as_str()),
        queue.waiting().to_string(),
        queue.ready.to_string(),
        queue.running.to_string(),
        queue.scheduled.to_string(),
        queue.blocked.to_string(),
        queue.dead.to_string(),
        queue.oldest.map(format_age).unwrap_or_default(),
        format!("{:.1}/s", queue.per_second),
        match (paused, &queue.limits) {
            (Some(since), _) => format!("paused {since}"),
            (None, Some(limits)) => ls::limit(queue, limits),
            (None, None) => String::new(),
        },
    ];
    Row { cells, tone }
}

fn worker_row(worker: &WorkerInfo) -> Row {
    let status = &worker.status;
    let stop = worker.stop.max(status.stopping);
    let is_ill = worker.heartbeat_age >= SILENT_AFTER || status.refused.is_some();
    let tone = match (is_ill, stop.is_some()) {
        (true, _) => Tone::Alert,
        (false, true) => Tone::Paused,
        (false, false) => Tone::Plain,
    };
    let cells = vec![
        worker.id.to_string(),
        output::escape(&worker.host),
        worker.pid.to_string(),
        output::escape(&worker.queues.join(", ")),
        worker.threads.to_string(),
        status.running.len().to_string(),
        status.buffered.to_string(),
        status.report.done.to_string(),
        status.report.failed.to_string(),
        status.report.dead.to_string(),
        format!("{:.1}/s", status.per_second),
        match worker.is_gone() {
            true => format!("gone, {} ago", format_age(worker.heartbeat_age)),
            false => format!("{} ago", format_age(worker.heartbeat_age)),
        },
        match (stop, &status.refused) {
            (Some(mode), _) => mode.to_string(),
            (None, Some(error)) => format!("polls refused: {}", output::escape(error)),
            (None, None) => String::new(),
        },
    ];
    Row { cells, tone }
}

fn running_row(worker: &WorkerInfo, job: &Running, snapshot: &Snapshot) -> Row {
    let mut cells = vec![
        job.id.to_string(),
        output::escape(&job.queue),
        output::escape(job.task.as_deref().unwrap_or_default()),
        job.attempt.to_string(),
        format_age(job.age.saturating_add(worker.heartbeat_age)),
        output::escape(&format!("{} {}", worker.host, worker.pid)),
    ];
    if !snapshot.progress.is_empty() {
        let noted = snapshot.progress.get(&job.id).map(ToString::to_string);
        cells.push(output::escape(&noted.unwrap_or_default()));
    }
    Row { cells, tone: Tone::Plain }
}

fn dead_row(job: &JobRecord, snapshot: &Snapshot) -> Row {
    let cells = vec![
        job.id.to_string(),
        job.attempt.to_string(),
        job.ended_at.map(|at| format!("{} ago", ago(snapshot, at))).unwrap_or_default(),
        output::escape(job.error.as_deref().unwrap_or_default()),
        output::escape(&job_output::preview(job.payload.as_str())),
    ];
    Row { cells, tone: Tone::Plain }
}

fn dead_title(snapshot: &Snapshot) -> String {
    let Some(name) = &snapshot.dead.of else { return "Dead jobs".to_owned() };
    let escaped = output::escape(name.as_str());
    let all = snapshot.queues.iter().find(|queue| queue.queue == *name).map_or(0, |queue| queue.dead);
    match snapshot.dead.jobs.len() {
        0 => format!("Dead jobs of {escaped}"),
        shown if shown == DEAD_LIMIT && all > shown as u64 => {
            format!("Dead jobs of {escaped} (latest {shown} of {all})")
        }
        shown => format!("Dead jobs of {escaped} ({shown})"),
    }
}

/// Formats the time from `at` to the poll. Both are by the server's clock.
fn ago(snapshot: &Snapshot, at: chrono::DateTime<chrono::Utc>) -> String {
    format_age((snapshot.at - at).to_std().unwrap_or_default())
}

/// Formats an age in seconds or more.
fn format_age(age: Duration) -> String {
    match age.as_secs() {
        0 => "0s".to_owned(),
        _ => output::format_duration(age),
    }
}
