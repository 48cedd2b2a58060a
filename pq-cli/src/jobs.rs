//! Jobs as the commands show them.

use pq_diesel::{Listed, Pq};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::failure::Failure;
use crate::output;

/// How many jobs are asked for at a time.
const PAGE: usize = 500;

/// A job as JSON.
#[derive(Serialize)]
pub(crate) struct Shown<'a> {
    id: i64,
    queue: &'a str,
    state: &'static str,
    payload: Document<'a>,
    enqueued_at: String,
    schedule_at: Option<String>,
    expected_at: Option<String>,
    priority: i32,
    attempt: i32,
    serialization_key: Option<&'a str>,
    unique_key: Option<&'a str>,
    error: Option<&'a str>,
    result: Option<Document<'a>>,
    lease_until: Option<String>,
    ended_at: Option<String>,
}

/// What a job carries: its own text, for no other keeps large numbers, and keys that stand twice, as they are.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum Document<'a> {
    Json(&'a RawValue),
    Text(&'a str),
}

impl<'a> Document<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        serde_json::from_str(text).map_or(Self::Text(text), Self::Json)
    }
}

/// A job as JSON, its payload as it is stored.
pub(crate) fn as_json(job: &Listed) -> Shown<'_> {
    Shown {
        id: job.id.0,
        queue: job.queue.as_str(),
        state: job.state.as_str(),
        payload: Document::new(job.payload.as_str()),
        enqueued_at: output::precise(job.enqueued_at),
        schedule_at: job.schedule_at.map(output::precise),
        expected_at: job.expected_at.map(output::precise),
        priority: job.priority,
        attempt: job.attempt,
        serialization_key: job.serialization_key.as_ref().map(|key| key.as_str()),
        unique_key: job.unique_key.as_ref().map(|key| key.as_str()),
        error: job.error.as_deref(),
        result: job.result.as_ref().map(|result| Document::new(result.as_str())),
        lease_until: job.lease_until.map(output::precise),
        ended_at: job.ended_at.map(output::precise),
    }
}

/// Reads a job's number.
pub(crate) fn number(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| "a job's number is wanted, as `pq put` and `pq jobs` print it".to_owned())
}

/// The beginning of a payload, on one line.
pub(crate) fn glimpse(payload: &str) -> String {
    const CHARS: usize = 60;
    // What lies between the words means nothing.
    let line = serde_json::from_str::<&RawValue>(payload).map_or(payload, |raw| raw.get());
    let mut glimpse: String = line.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = glimpse.char_indices().nth(CHARS) {
        glimpse.truncate(end);
        glimpse.push('…');
    }
    glimpse
}

/// Hands every job that the filter lets through to `each`, page by page.
pub(crate) fn for_each(
    pq: &Pq,
    filter: &pq_diesel::Filter,
    mut each: impl FnMut(Listed) -> Result<(), Failure>,
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
