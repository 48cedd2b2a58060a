//! The list of queues.

use axum::Extension;
use maud::{Markup, html};

use super::queue_table::queue_table;
use crate::dashboard::App;
use crate::page::{Page, Section, Visit, panel};
use crate::sampler::Samples;

pub(crate) async fn page(Extension(app): Extension<App>, Extension(visit): Extension<Visit>) -> Page {
    let samples = app.sampler.samples().await;
    let content = html! {
        div hx-ext="sse" sse-connect=(visit.url("/live/queues")) sse-swap="update" { (live(&visit, &samples)) }
    };
    Page::new(Section::Queues, "Queues", content)
}

/// Draws what changes with each sample.
pub(crate) fn live(visit: &Visit, samples: &Samples) -> Markup {
    panel("queues", "All queues", samples.newest().map(|sample| queue_table(visit, sample)))
}
