//! Actions on a queue.

use std::sync::Arc;

use axum::Extension;
use axum::extract::Path;
use pq_diesel::{Filter, JobState, Operation, QueueName};

use super::bulk::{ask, operate, skipped};
use super::{Reply, count, is_confirmed, limits, reply, run, unknown};
use crate::conditions::AgedFilter;
use crate::dashboard::App;
use crate::database::Unread;
use crate::guard::Fields;
use crate::html::with_query;
use crate::page::Visit;

pub(crate) async fn act(
    Extension(app): Extension<App>,
    Extension(visit): Extension<Visit>,
    Extension(fields): Extension<Arc<Fields>>,
    Path(action): Path<String>,
) -> Reply {
    let name = fields.get("name").to_owned();
    let page = with_query("/queue", &[("name", &name)]);
    let path = with_query(&format!("/queue/{action}"), &[("name", &name)]);
    match action.as_str() {
        "pause" => {
            let paused = run(&app, &visit, move |pq| pq.queue::<()>(name)?.pause()).await;
            let text = |paused| match paused {
                true => "The queue is paused: no job of it is taken. Running jobs continue.",
                false => "The queue was paused already.",
            };
            reply(page, paused.map(|paused| text(paused).to_owned()))
        }
        "resume" => {
            let resumed = run(&app, &visit, move |pq| pq.queue::<()>(name)?.resume()).await;
            let text = |resumed| if resumed { "The queue is resumed." } else { "The queue was not paused." };
            reply(page, resumed.map(|resumed| text(resumed).to_owned()))
        }
        "limit" => limits::set(&app, &visit, &fields, name, false).await,
        "limit-group" => limits::set(&app, &visit, &fields, name, true).await,
        "unlimit" => limits::remove(&app, &visit, &fields, name).await,
        "retry-dead" => {
            let dead = AgedFilter::from(Filter { states: vec![JobState::Dead], ..Filter::queue(&name) });
            operate(&app, &visit, Operation::Retry, dead, page, |report| {
                format!("{} requeued.{}", count(report.changed, "dead job"), skipped(report))
            })
            .await
        }
        "clear" if !is_confirmed(&fields) => {
            let details = format!(
                "All jobs of the queue {name} that wait or are scheduled are deleted. They cannot be restored. \
                 Running and archived jobs stay."
            );
            ask(&app, &visit, Operation::Delete, waiting(&name), &details, &path, &[], &page).await
        }
        "clear" => {
            operate(&app, &visit, Operation::Delete, waiting(&name), page, |report| {
                format!("{} deleted.{}", count(report.changed, "job"), skipped(report))
            })
            .await
        }
        "move" => {
            let to = match QueueName::new(fields.get("to")) {
                Ok(to) => to,
                Err(error) => return reply(page, Err(Unread(error.to_string()))),
            };
            if is_confirmed(&fields) {
                return operate(&app, &visit, Operation::Move { to }, waiting(&name), page, |report| {
                    format!("{} moved.{}", count(report.changed, "job"), skipped(report))
                })
                .await;
            }
            let details = format!(
                "All jobs of the queue {name} that are not held move to the queue {to}. If that has jobs of its own, \
                 a move back takes those, too."
            );
            let repeated = [("to", fields.get("to"))];
            ask(&app, &visit, Operation::Move { to }, waiting(&name), &details, &path, &repeated, &page).await
        }
        _ => unknown(),
    }
}

/// Selects the jobs of a queue that wait.
fn waiting(queue: &str) -> AgedFilter {
    let states = vec![JobState::Ready, JobState::Blocked, JobState::Scheduled];
    AgedFilter::from(Filter { states, ..Filter::queue(queue) })
}
