//! Actions on the jobs that were selected on a page of the list.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Extension;
use pq_diesel::{CancelOutcome, Error, JobId, Pq, QueueName};

use super::{Reply, count, is_confirmed, reply, run, unknown};
use crate::dashboard::App;
use crate::database::Unread;
use crate::form::confirmation;
use crate::guard::Fields;
use crate::page::Visit;

/// The most jobs at a time. A page of the list has fewer.
const MAX_JOBS: usize = 1_000;

pub(crate) async fn act(
    Extension(app): Extension<App>,
    Extension(visit): Extension<Visit>,
    Extension(fields): Extension<Arc<Fields>>,
) -> Reply {
    let back =
        Some(fields.get("back")).filter(|back| back.starts_with("/jobs")).unwrap_or("/jobs").to_owned();
    let given: Vec<&str> = fields.all("id").take(MAX_JOBS).collect();
    let ids: Vec<JobId> = given.iter().filter_map(|id| id.parse().ok()).map(JobId).collect();
    if ids.is_empty() {
        return reply(back, Err(Unread("No job was selected.".to_owned())));
    }
    let (action, to) = (fields.get("action").to_owned(), fields.get("to").to_owned());
    let jobs = count(ids.len() as u64, "selected job");
    let question = match action.as_str() {
        "retry" => None,
        "cancel" => Some(format!("Cancel {jobs}?")),
        "move" => Some(format!("Move {jobs} to {to}?")),
        _ => return unknown(),
    };
    if let Some(question) = question.filter(|_| !is_confirmed(&fields)) {
        let mut repeated = vec![("action", action.as_str()), ("back", &back), ("to", &to)];
        repeated.extend(given.iter().map(|id| ("id", *id)));
        let details = format!("Jobs: {}", given.join(", "));
        return confirmation(&visit, &question, &details, "/jobs/bulk", &repeated, &back).into();
    }
    let all = ids.len() as u64;
    let done = match action.as_str() {
        "retry" => run(&app, move |pq| retry(pq, &ids)).await,
        "cancel" => run(&app, move |pq| cancel(pq, &ids)).await,
        _ => run(&app, move |pq| move_to(pq, &ids, &to)).await,
    };
    reply(back, done.map(|done| format!("{done} Selected: {}.", count(all, "job"))))
}

/// Returns the jobs by their queues.
fn by_queue(pq: &Pq, ids: &[JobId]) -> Result<BTreeMap<QueueName, Vec<JobId>>, Error> {
    let mut queues: BTreeMap<QueueName, Vec<JobId>> = BTreeMap::new();
    for id in ids {
        if let Some(job) = pq.find(*id)? {
            queues.entry(job.queue).or_default().push(*id);
        }
    }
    Ok(queues)
}

fn retry(pq: &Pq, ids: &[JobId]) -> Result<String, Error> {
    let mut requeued = 0;
    for (queue, ids) in by_queue(pq, ids)? {
        requeued += pq.queue::<()>(queue)?.retry_many(&ids)?;
    }
    Ok(format!("{} requeued.", count(requeued, "job")))
}

fn cancel(pq: &Pq, ids: &[JobId]) -> Result<String, Error> {
    let (mut cancelled, mut requested) = (0, 0);
    for (queue, ids) in by_queue(pq, ids)? {
        let queue = pq.queue::<()>(queue)?;
        for id in ids {
            match queue.cancel(id)? {
                CancelOutcome::Cancelled => cancelled += 1,
                CancelOutcome::Requested => requested += 1,
                CancelOutcome::Held | CancelOutcome::NotFound => {}
            }
        }
    }
    let asked = format!("The handlers of {} are asked to stop.", count(requested, "running job"));
    Ok(format!("{} cancelled. {}", count(cancelled, "job"), if requested > 0 { &asked } else { "" }))
}

fn move_to(pq: &Pq, ids: &[JobId], to: &str) -> Result<String, Error> {
    let to = pq.queue::<()>(to)?;
    let mut moved = 0;
    for (queue, ids) in by_queue(pq, ids)? {
        moved += pq.queue::<()>(queue)?.move_to(&to, Some(&ids))?;
    }
    Ok(format!("{} moved.", count(moved, "job")))
}
