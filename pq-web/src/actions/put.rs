//! Puts the job of the form.

use std::sync::Arc;

use axum::Extension;
use diesel::PgConnection;
use pq_diesel::pq_core::Action;
use pq_diesel::store::{Audit, Connect};
use pq_diesel::{CallOptions, Error, Pq, Put, PutOptions, PutOutcome};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{Reply, reply, run};
use crate::dashboard::{ACTION_TIMEOUT, App};
use crate::database::Unread;
use crate::guard::Fields;
use crate::page::Visit;
use crate::pages;

pub(crate) async fn act(
    Extension(app): Extension<App>,
    Extension(visit): Extension<Visit>,
    Extension(fields): Extension<Arc<Fields>>,
) -> Reply {
    let wrong = |reason: &str| pages::put::form(&visit, &fields, Some(reason)).into();
    let payload = match serde_json::from_str::<Box<RawValue>>(fields.get("payload").trim()) {
        Ok(payload) => payload,
        Err(error) => return wrong(&format!("invalid payload: it must be JSON ({error})")),
    };
    let options = match options(&fields) {
        Ok(options) => options,
        Err(reason) => return wrong(&reason),
    };
    let (queue, task) = (fields.get("queue").to_owned(), fields.get("task").to_owned());
    match run(&app, &visit, move |pq| put(pq, &queue, &task, &payload, options)).await {
        Ok(put) => reply(format!("/job/{}", put.id), Ok(describe(put))),
        Err(Unread(reason)) => wrong(&reason),
    }
}

fn options(fields: &Fields) -> Result<PutOptions, String> {
    let mut options = PutOptions::new();
    let priority = fields.get("priority").trim();
    if !priority.is_empty() {
        let number =
            priority.parse().map_err(|_| format!("invalid priority {priority:?}: it must be a number"))?;
        options = options.priority(number);
    }
    let [schedule, key, unique, metadata] =
        ["schedule", "key", "unique", "metadata"].map(|name| fields.get(name).trim());
    if !schedule.is_empty() {
        options = options.schedule_at(schedule);
    }
    if !key.is_empty() {
        options = options.serialization_key(key);
    }
    if !unique.is_empty() {
        options = options.unique(unique);
    }
    let tags: Vec<&str> =
        fields.get("tags").split(',').map(str::trim).filter(|tag| !tag.is_empty()).collect();
    if !tags.is_empty() {
        options = options.tags(tags);
    }
    if !metadata.is_empty() {
        let members: Map<String, Value> = serde_json::from_str(metadata)
            .map_err(|error| format!("invalid metadata: it must be a JSON object ({error})"))?;
        options = options.metadata(members);
    }
    options.check().map_err(|error| error.to_string())?;
    Ok(options)
}

/// Puts a job, and records that in the audit log: a put of an operator is an operation, other puts are not.
fn put(pq: &Pq, name: &str, task: &str, payload: &RawValue, options: PutOptions) -> Result<Put, Error> {
    let (queue, store) = (pq.queue::<Box<RawValue>>(name)?, pq.store());
    let work = |conn: &mut PgConnection| {
        store.set_statement_timeout(conn, Some(ACTION_TIMEOUT))?;
        let put = if task.is_empty() {
            queue.on(conn).put_with(payload, &options)?
        } else {
            let task = pq.queue(name)?.task::<Box<RawValue>>(task);
            task.on(conn).call_with(&payload.to_owned(), &CallOptions::from(options))?
        };
        if put.outcome == PutOutcome::Added {
            let details = if task.is_empty() { String::new() } else { format!("task {task}") };
            let action = Action::new("put").queue(name).job(put.id).details(details);
            store.record(conn, &action.record(pq.actor().unwrap_or_default(), 1))?;
        }
        Ok(put)
    };
    store.with_connection(|conn| store.transaction(conn, work))
}

fn describe(put: Put) -> String {
    match put.outcome {
        PutOutcome::Added => "The job is put.",
        _ => "Nothing was put: this job has the same unique key.",
    }
    .to_owned()
}
