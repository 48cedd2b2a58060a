//! Actions on a workflow.

use pq_diesel::{JobId, Operation};

use super::job::{describe, notice_of};
use super::{Reply, is_confirmed, reply, run, unknown};
use crate::dashboard::App;
use crate::form::confirmation;
use crate::guard::Fields;
use crate::html::with_query;
use crate::page::Visit;

/// Cancels or retries a workflow, or retries it from one job, after a question.
pub(super) async fn act(app: &App, visit: &Visit, fields: &Fields, id: JobId, action: &str) -> Reply {
    let (page, name) = (format!("/job/{id}"), fields.get("job").to_owned());
    let (question, details) = match action {
        "cancel-workflow" => (
            format!("Cancel workflow {id}?"),
            "Its jobs that wait are cancelled, and the handlers of those that run are asked to stop. If it compensates \
             failures, its done jobs are undone then.",
        ),
        "retry-workflow" => (
            format!("Retry workflow {id}?"),
            "Its jobs that are dead or cancelled run again, each after those before it. If its done jobs were undone, all \
             jobs run again.",
        ),
        "retry-from-job" => (
            format!("Retry workflow {id} from the job {name}?"),
            "This job and all jobs after it run again, also those that are done, without the results of their durable steps. \
             So their work is done once more. Cancelled jobs run again, too.",
        ),
        _ => return unknown(),
    };
    if !is_confirmed(fields) {
        // The name is in the query, because browsers change line breaks in the fields of a form.
        let path = with_query(&format!("/job/{id}/{action}"), &[("job", &name)]);
        return confirmation(visit, &question, details, &path, &[], &page).into();
    }
    let change = (action != "retry-from-job").then_some(match action {
        "cancel-workflow" => Operation::Cancel,
        _ => Operation::Retry,
    });
    let done = run(app, visit, move |pq| match change {
        Some(change) => pq.change(id, &change),
        None => pq.retry_workflow_from(id, &name),
    });
    reply(page, notice_of(&id.to_string(), done.await.map(describe)))
}
