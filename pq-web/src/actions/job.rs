//! Actions on one job.

use std::sync::Arc;

use axum::Extension;
use axum::extract::Path;
use pq_diesel::{CancelOutcome, Error, JobId, Pq, Queue};

use super::{Reply, is_confirmed, reply, run, unknown};
use crate::dashboard::App;
use crate::form::confirmation;
use crate::guard::Fields;
use crate::page::Visit;

/// The reason why nothing was done to a job.
const ENDED: &str = "There is no such job any more.";

pub(crate) async fn act(
    Extension(app): Extension<App>,
    Extension(visit): Extension<Visit>,
    Extension(fields): Extension<Arc<Fields>>,
    Path((id, action)): Path<(String, String)>,
) -> Reply {
    let Ok(number) = id.parse() else { return unknown() };
    let (page, path, job) = (format!("/job/{id}"), format!("/job/{id}/{action}"), JobId(number));
    let done = match action.as_str() {
        "retry" => run(&app, move |pq| retry(pq, job)).await,
        "cancel" if !is_confirmed(&fields) => {
            let details = "A job that waits ends at once. The handler of a job that runs is asked to stop.";
            return confirmation(&visit, &format!("Cancel job {id}?"), details, &path, &[], &page).into();
        }
        "cancel" => run(&app, move |pq| cancel(pq, job)).await,
        "move" => {
            let to = fields.get("to").to_owned();
            run(&app, move |pq| move_to(pq, job, &to)).await
        }
        _ => return unknown(),
    };
    reply(page, done.map(str::to_owned))
}

/// Returns the queue that a job is or was in.
fn queue_of(pq: &Pq, job: JobId) -> Result<Option<Queue<()>>, Error> {
    pq.find(job)?.map(|found| pq.queue(found.queue)).transpose()
}

fn retry(pq: &Pq, job: JobId) -> Result<&'static str, Error> {
    let Some(queue) = queue_of(pq, job)? else { return Ok(ENDED) };
    Ok(match queue.retry(job)? {
        true => "The job is requeued.",
        false => "The job cannot be retried: it is not dead or cancelled, or its unique key is in use.",
    })
}

fn cancel(pq: &Pq, job: JobId) -> Result<&'static str, Error> {
    let Some(queue) = queue_of(pq, job)? else { return Ok(ENDED) };
    Ok(match queue.cancel(job)? {
        CancelOutcome::Cancelled => "The job is cancelled.",
        CancelOutcome::Requested => "The job is running. Its handler is asked to stop.",
        CancelOutcome::Held => "The job cannot be cancelled: a transaction holds it.",
        CancelOutcome::NotFound => ENDED,
    })
}

fn move_to(pq: &Pq, job: JobId, to: &str) -> Result<&'static str, Error> {
    let Some(queue) = queue_of(pq, job)? else { return Ok(ENDED) };
    Ok(match queue.move_to(&pq.queue::<()>(to)?, Some(&[job]))? {
        0 => "The job was not moved: it is held, or its unique key is in use there.",
        _ => "The job is moved.",
    })
}
