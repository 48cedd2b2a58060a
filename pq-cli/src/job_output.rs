//! Formats jobs for the commands that list and show them.

use chrono::{DateTime, Utc};
use pq_diesel::{AttemptEntry, JobRecord, JobState, Key, Pq, Trace};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::output;

/// Number of jobs read per statement.
const PAGE: usize = 500;

/// The reason why a job id is unknown. Completed jobs are deleted, unless their history is kept.
pub(crate) const NOT_FOUND: &str = "no such job; it may have completed without history";

/// A job as JSON. The payload has the same bytes as in the table.
#[derive(Serialize)]
pub(crate) struct JobJson<'j> {
    id: i64,
    queue: &'j str,
    state: JobState,
    payload: Box<RawValue>,
    enqueued_at: String,
    schedule_at: Option<String>,
    expected_at: Option<String>,
    priority: i32,
    attempt: i32,
    crashes: i32,
    serialization_key: Option<&'j str>,
    unique_key: Option<&'j str>,
    group: Option<String>,
    cost: Option<u32>,
    tags: Vec<String>,
    metadata: Map<String, Value>,
    trace: Trace,
    error: Option<&'j str>,
    result: Option<Box<RawValue>>,
    lease_until: Option<String>,
    ended_at: Option<String>,
    attempt_log: &'j [AttemptEntry],
}

impl<'j> JobJson<'j> {
    pub(crate) fn of(job: &'j JobRecord) -> Self {
        Self {
            id: job.id.0,
            queue: job.queue.as_str(),
            state: job.state,
            payload: raw(job.payload.as_str()),
            enqueued_at: output::format_time_micros(job.enqueued_at),
            schedule_at: job.schedule_at.map(output::format_time_micros),
            expected_at: job.expected_at.map(output::format_time_micros),
            priority: job.priority,
            attempt: job.attempt,
            crashes: job.crashes,
            serialization_key: job.serialization_key.as_ref().map(Key::as_str),
            unique_key: job.unique_key.as_ref().map(Key::as_str),
            group: job.annotations.group(),
            cost: job.annotations.cost(),
            tags: job.annotations.tags(),
            metadata: job.annotations.metadata(),
            trace: job.annotations.trace(),
            error: job.error.as_deref(),
            result: job.result.as_ref().map(|result| raw(result.as_str())),
            lease_until: job.lease_until.map(output::format_time_micros),
            ended_at: job.ended_at.map(output::format_time_micros),
            attempt_log: &job.attempt_log,
        }
    }
}

/// Returns stored JSON unchanged. JSON that PostgreSQL accepts and serde rejects becomes a string.
pub(crate) fn raw(json: &str) -> Box<RawValue> {
    let as_it_is = RawValue::from_string(json.to_owned());
    as_it_is.or_else(|_| serde_json::value::to_raw_value(json)).unwrap_or_default()
}

/// Parses a job id.
pub(crate) fn parse_id(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| "a job id is an integer, as printed by `pq put` and `pq jobs`".to_owned())
}

/// Returns the beginning of a payload on one line.
pub(crate) fn preview(payload: &str) -> String {
    const CHARS: usize = 60;
    // Surrounding white space has no meaning in JSON.
    let line = serde_json::from_str::<&RawValue>(payload).map_or(payload, |raw| raw.get());
    let mut preview: String = line.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = preview.char_indices().nth(CHARS) {
        preview.truncate(end);
        preview.push('…');
    }
    preview
}

/// Calls `each` for every job that matches the filter, and reads them page by page.
pub(crate) fn for_each(
    pq: &Pq,
    filter: &pq_diesel::Filter,
    mut each: impl FnMut(JobRecord) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut filter = filter.clone();
    loop {
        let page = pq.list(&filter, PAGE)?;
        let Some(last) = page.last().map(|job| job.id) else { return Ok(()) };
        let is_last = page.len() < PAGE;
        page.into_iter().try_for_each(&mut each)?;
        if is_last {
            return Ok(());
        }
        filter = filter.after(last);
    }
}

/// Returns the error of a job. That of one that has not ended is of an earlier attempt.
pub(crate) fn error(job: &JobRecord) -> Option<String> {
    let error = job.error.as_deref()?;
    Some(if job.state.is_ended() { error.to_owned() } else { format!("earlier: {error}") })
}

/// Returns when a job is due, if it has a time. One that waits for others has none that is of use.
pub(crate) fn due(job: &JobRecord, format: impl Fn(DateTime<Utc>) -> String) -> Option<String> {
    job.schedule_at.map(|at| if job.is_held() { "when other jobs have ended".to_owned() } else { format(at) })
}
