//! Actions on the jobs that were selected on a page of the list, or on all that its filter selects.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use pq_diesel::{Error, JobId, Operation, OperationReport, Pq};
use tokio::time::timeout;

use super::{Reply, count, is_confirmed, operation, reply, run, unknown};
use crate::conditions::{AgedFilter, Conditions};
use crate::dashboard::App;
use crate::database::Unread;
use crate::form::confirmation;
use crate::guard::Fields;
use crate::page::Visit;

/// The most selected jobs at a time. A page of the list has fewer.
const MAX_SELECTED: usize = 1_000;

/// The number up to which the jobs of a filter are counted before they are changed.
const MAX_COUNTED: usize = 100_000;

/// How long the page waits for an operation on all jobs of a filter. It continues without the page.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) async fn act(
    Extension(app): Extension<App>,
    Extension(visit): Extension<Visit>,
    Extension(fields): Extension<Arc<Fields>>,
) -> Reply {
    let conditions = Conditions::read(&fields);
    let back = conditions.path(None);
    let action = fields.get("action");
    if action == "none" {
        return reply(back, Err(Unread("Choose by a button what to do with the jobs.".to_owned())));
    }
    let change = match operation::read(action, &fields) {
        None => return unknown(),
        Some(Err(wrong)) => return reply(back, Err(Unread(wrong))),
        Some(Ok(change)) => change,
    };
    let mut repeated = vec![("action", action)];
    repeated.extend(operation::FIELDS.map(|name| (name, fields.get(name))));
    if fields.get("scope") == "filter" {
        repeated.push(("scope", "filter"));
        return by_filter(&app, &visit, &fields, &conditions, change, &repeated).await;
    }
    let given: Vec<&str> = fields.all("id").take(MAX_SELECTED).collect();
    let ids: Vec<JobId> = given.iter().filter_map(|id| id.parse().ok()).map(JobId).collect();
    if ids.is_empty() {
        return reply(back, Err(Unread("No job was selected.".to_owned())));
    }
    if operation::asks_first(&change) && !is_confirmed(&fields) {
        repeated.extend(given.iter().map(|id| ("id", *id)));
        let question = format!("{} {}?", title(&change), count(ids.len() as u64, "selected job"));
        let details = format!("Jobs: {}", given.join(", "));
        return confirmation(&visit, &question, &details, &conditions.action_path(), &repeated, &back).into();
    }
    let done = run(&app, &visit, move |pq| selected(pq, &ids, &change)).await;
    reply(back, done.map(describe))
}

/// Returns an operation as the beginning of a question.
fn title(operation: &Operation) -> String {
    let name = operation.name();
    name[..1].to_uppercase() + &name[1..]
}

/// Changes jobs one by one.
fn selected(pq: &Pq, ids: &[JobId], operation: &Operation) -> Result<OperationReport, Error> {
    let mut report = OperationReport::default();
    for id in ids {
        let accepted = pq.change(*id, operation)?.is_accepted();
        *(if accepted { &mut report.changed } else { &mut report.skipped }) += 1;
    }
    Ok(report)
}

/// Changes all jobs of a filter. Always shows their number first.
async fn by_filter(
    app: &App,
    visit: &Visit,
    fields: &Fields,
    conditions: &Conditions<'_>,
    change: Operation,
    repeated: &[(&str, &str)],
) -> Reply {
    let back = conditions.path(None);
    let filter = match conditions.filter() {
        Ok(filter) => filter,
        Err(wrong) => return reply(back, Err(Unread(wrong))),
    };
    if is_confirmed(fields) {
        return operate(app, visit, change, filter, back, describe).await;
    }
    let details = format!("Filter: {}.", conditions.describe());
    ask(app, visit, change, filter, &details, &conditions.action_path(), repeated, &back).await
}

/// Changes all jobs of a filter. The operation continues if it takes longer than the page waits.
pub(super) async fn operate(
    app: &App,
    visit: &Visit,
    change: Operation,
    filter: AgedFilter,
    back: String,
    describe: fn(OperationReport) -> String,
) -> Reply {
    let done = run(app, visit, move |pq| pq.operate(&change, &filter.read(|| pq.now())?, |_| {}));
    match timeout(PATIENCE, done).await {
        Ok(done) => reply(back, done.map(describe)),
        Err(_) => {
            reply("/audit", Ok("The operation continues. Its entry here shows how far it is.".to_owned()))
        }
    }
}

/// Asks whether to change the jobs of a filter, with their number.
#[allow(clippy::too_many_arguments, reason = "a question and an operation")]
pub(super) async fn ask(
    app: &App,
    visit: &Visit,
    change: Operation,
    filter: AgedFilter,
    details: &str,
    path: &str,
    repeated: &[(&str, &str)],
    back: &str,
) -> Reply {
    let operation = change.clone();
    let counted =
        run(app, visit, move |pq| pq.preview(&operation, &filter.read(|| pq.now())?, MAX_COUNTED)).await;
    match counted {
        Ok(0) => reply(back, Err(Unread(format!("There is no job to {}.", change.name())))),
        Ok(number) => {
            let at_least = if number >= MAX_COUNTED as u64 { "at least " } else { "" };
            let question = format!("{} {at_least}{}?", title(&change), count(number, "job"));
            let details = format!(
                "{details} The jobs are changed in batches of 1,000. If this takes longer than the page waits, \
                 the operation continues, and the audit log shows how far it is.",
            );
            confirmation(visit, &question, &details, path, repeated, back).into()
        }
        Err(unread) => reply(back, Err(unread)),
    }
}

fn describe(report: OperationReport) -> String {
    format!("{} changed.{}", count(report.changed, "job"), skipped(report))
}

/// Returns a sentence on the jobs that were passed, if there are any.
pub(super) fn skipped(report: OperationReport) -> String {
    match report.skipped {
        0 => String::new(),
        skipped => format!(
            " {} not changed: in another state, held, or the unique key is in use.",
            count(skipped, "job")
        ),
    }
}
