//! Actions on a queue.

use std::sync::Arc;

use axum::Extension;
use axum::extract::Path;

use super::{Reply, count, is_confirmed, reply, run, unknown};
use crate::dashboard::App;
use crate::form::confirmation;
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
        "retry-dead" => {
            let requeued = run(&app, &visit, move |pq| pq.queue::<()>(name)?.retry_all_dead()).await;
            reply(page, requeued.map(|number| format!("{} requeued.", count(number, "dead job"))))
        }
        "clear" if !is_confirmed(&fields) => {
            let details = format!(
                "All jobs of the queue {name} that wait or are scheduled are deleted. They cannot be restored. \
                 Running and archived jobs stay."
            );
            confirmation(&visit, "Delete all waiting jobs?", &details, &path, &[], &page).into()
        }
        "clear" => {
            let cleared = run(&app, &visit, move |pq| pq.queue::<()>(name)?.clear()).await;
            reply(page, cleared.map(|number| format!("{} deleted.", count(number, "job"))))
        }
        "move" if !is_confirmed(&fields) => {
            let to = fields.get("to");
            let details = format!(
                "All jobs of the queue {name} that are not held move to the queue {to}. If that has jobs of its own, \
                 a move back takes those, too."
            );
            confirmation(&visit, "Move all waiting jobs?", &details, &path, &[("to", to)], &page).into()
        }
        "move" => {
            let to = fields.get("to").to_owned();
            let moved =
                run(&app, &visit, move |pq| pq.queue::<()>(name)?.move_to(&pq.queue::<()>(to)?, None)).await;
            reply(page, moved.map(|number| format!("{} moved.", count(number, "job"))))
        }
        _ => unknown(),
    }
}
