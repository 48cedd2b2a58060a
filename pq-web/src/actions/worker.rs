//! Stops workers.

use std::sync::Arc;

use axum::Extension;
use axum::extract::Path;
use pq_diesel::StopMode;
use pq_diesel::admin::WorkerId;

use super::{Reply, is_confirmed, reply, run, unknown};
use crate::dashboard::App;
use crate::form::confirmation;
use crate::guard::Fields;
use crate::page::Visit;

pub(crate) async fn stop(
    Extension(app): Extension<App>,
    Extension(visit): Extension<Visit>,
    Extension(fields): Extension<Arc<Fields>>,
    Path(id): Path<String>,
) -> Reply {
    let (Ok(worker), Ok(mode)) = (id.parse::<WorkerId>(), fields.get("mode").parse::<StopMode>()) else {
        return unknown();
    };
    if mode == StopMode::Abort && !is_confirmed(&fields) {
        let details = "Its running handlers are asked to end. What they have done outside of the database may be done again.";
        let (question, path) = (format!("Abort worker {id}?"), format!("/worker/{id}/stop"));
        return confirmation(&visit, &question, details, &path, &[("mode", mode.as_str())], "/workers")
            .into();
    }
    let stopped = run(&app, &visit, move |pq| pq.stop_worker(worker, mode)).await;
    let text = |stopped: bool| match stopped {
        true => format!(
            "Worker {worker} is asked to stop ({mode}). It learns of this at its next heartbeat, within seconds."
        ),
        false => format!("Worker {worker} is no longer registered."),
    };
    reply("/workers", stopped.map(text))
}
