//! Actions on one job.

use std::sync::Arc;

use axum::Extension;
use axum::extract::Path;
use pq_diesel::{ChangeOutcome, Error, JobId, JobRecord, Operation, Payload, PayloadLimits, Pq};
use serde_json::value::RawValue;

use super::{Reply, is_confirmed, operation, reply, run, unknown, workflow};
use crate::dashboard::App;
use crate::database::Unread;
use crate::form::{confirmation, fingerprint};
use crate::guard::Fields;
use crate::html::with_query;
use crate::page::Visit;

pub(crate) async fn act(
    Extension(app): Extension<App>,
    Extension(visit): Extension<Visit>,
    Extension(fields): Extension<Arc<Fields>>,
    Path((id, action)): Path<(String, String)>,
) -> Reply {
    let Ok(number) = id.parse() else { return unknown() };
    let (page, path, job) = (format!("/job/{id}"), format!("/job/{id}/{action}"), JobId(number));
    if action == "edit" {
        let done = edit(&app, &visit, job, &fields).await;
        return reply(page, done.map(describe).and_then(|done| done.map_err(Unread)));
    }
    if action == "signal" {
        let done = signal(&app, &visit, job, &fields).await;
        return reply(page, done.map(|name| format!("Job {id}: the signal {name} is sent.")));
    }
    if action == "retry-from" {
        let step = fields.get("step").to_owned();
        if !is_confirmed(&fields) {
            let question = format!("Retry job {id} from the step {step}?");
            let details = "The results of this step and of all later ones are forgotten, so their work is done once more. \
                           The job is due at once.";
            // The name is in the query, because browsers change line breaks in the fields of a form.
            let path = with_query(&path, &[("step", &step)]);
            return confirmation(&visit, &question, details, &path, &[], &page).into();
        }
        let done = run(&app, &visit, move |pq| pq.retry_from_step(job, &step)).await.map(describe);
        return reply(page, notice_of(&id, done));
    }
    let change = match operation::read(&action, &fields) {
        None => return workflow::act(&app, &visit, &fields, job, &action).await,
        Some(Err(wrong)) => return reply(page, Err(Unread(wrong))),
        Some(Ok(change)) => change,
    };
    if operation::asks_first(&change) && !is_confirmed(&fields) {
        let details = match change {
            Operation::Delete => "The job and its payload are deleted and cannot be restored.",
            _ => "A job that waits ends at once. The handler of a job that runs is asked to stop.",
        };
        return confirmation(&visit, &format!("{} job {id}?", title(&change)), details, &path, &[], &page)
            .into();
    }
    let next = if change == Operation::Delete { "/jobs".to_owned() } else { page.clone() };
    let done = run(&app, &visit, move |pq| pq.change(job, &change)).await.map(describe);
    reply(next, notice_of(&id, done))
}

/// Returns the sentence about an outcome.
pub(super) fn notice_of(id: &str, done: Result<Result<String, String>, Unread>) -> Result<String, Unread> {
    match done? {
        Ok(notice) => Ok(format!("Job {id}: {notice}.")),
        Err(refused) => Err(Unread(format!("Job {id} is not changed: {refused}."))),
    }
}

/// Sends a signal, and returns its name.
async fn signal(app: &App, visit: &Visit, job: JobId, fields: &Fields) -> Result<String, Unread> {
    let name = fields.get("signal").trim().to_owned();
    let value = Some(fields.get("value").trim()).filter(|value| !value.is_empty()).unwrap_or("null");
    let value: Box<RawValue> = serde_json::from_str(value)
        .map_err(|error| Unread(format!("invalid value of the signal: it must be JSON ({error})")))?;
    let sent = name.clone();
    run(app, visit, move |pq| pq.signal(job, &sent, &value)).await?;
    Ok(name)
}

/// Returns an operation as the beginning of a question.
fn title(operation: &Operation) -> &'static str {
    if *operation == Operation::Delete { "Delete" } else { "Cancel" }
}

/// Returns the outcome as a text: as an error if nothing was changed.
pub(super) fn describe(outcome: ChangeOutcome) -> Result<String, String> {
    if outcome.is_accepted() { Ok(outcome.to_string()) } else { Err(outcome.to_string()) }
}

/// Replaces the payload of a waiting job, if it is still the one that the form showed.
async fn edit(app: &App, visit: &Visit, job: JobId, fields: &Fields) -> Result<ChangeOutcome, Unread> {
    let (shown, new) = (fields.get("shown").to_owned(), fields.get("payload").trim().to_owned());
    let new = Payload::new(new, PayloadLimits::default()).map_err(|error| Unread(error.to_string()))?;
    let state = App::clone(app);
    run(app, visit, move |pq: &Pq| -> Result<ChangeOutcome, Error> {
        let Some(JobRecord { payload: from, .. }) = pq.find(job)? else { return Ok(ChangeOutcome::NotFound) };
        if state.mask.hides_part_of(from.as_str()) {
            // The form does not show such a payload, so nobody has seen what this would replace.
            return Ok(ChangeOutcome::PayloadChanged);
        }
        if fingerprint(from.as_str()) != shown {
            return Ok(ChangeOutcome::PayloadChanged);
        }
        pq.change(job, &Operation::EditPayload { from, to: new })
    })
    .await
}
