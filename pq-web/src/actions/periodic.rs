//! Actions on a periodic job.

use std::sync::Arc;

use axum::Extension;
use axum::extract::Path;

use super::{Reply, is_confirmed, reply, run, unknown};
use crate::dashboard::App;
use crate::form::confirmation;
use crate::guard::Fields;
use crate::html::with_query;
use crate::page::Visit;

/// The page after an action.
const PAGE: &str = "/periodic";

pub(crate) async fn act(
    Extension(app): Extension<App>,
    Extension(visit): Extension<Visit>,
    Extension(fields): Extension<Arc<Fields>>,
    Path(action): Path<String>,
) -> Reply {
    let name = fields.get("name").to_owned();
    let (done, text) = match action.as_str() {
        "pause" => {
            let paused = run(&app, &visit, move |pq| pq.pause_cron(&name)).await;
            (paused, "The periodic job is paused. Ticks that pass meanwhile are skipped.")
        }
        "resume" => {
            let resumed = run(&app, &visit, move |pq| pq.resume_cron(&name)).await;
            (resumed, "The periodic job is resumed.")
        }
        "run" => {
            let put = run(&app, &visit, move |pq| Ok(pq.run_cron(&name)?.is_some())).await;
            (put, "A job is put, as at a tick.")
        }
        "remove" if !is_confirmed(&fields) => {
            let details = format!("The periodic job {name} is removed. Jobs that it has put stay.");
            let path = with_query("/periodic/remove", &[("name", &name)]);
            return confirmation(&visit, "Remove the periodic job?", &details, &path, &[], PAGE).into();
        }
        "remove" => {
            let removed = run(&app, &visit, move |pq| pq.remove_cron(&name)).await;
            (removed, "The periodic job is removed.")
        }
        _ => return unknown(),
    };
    let text = |found: bool| if found { text } else { "There is no such periodic job any more." };
    reply(PAGE, done.map(|found| text(found).to_owned()))
}
