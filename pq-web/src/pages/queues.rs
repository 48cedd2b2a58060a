//! The list of queues.

use axum::Extension;
use maud::Markup;

use super::queue_table::queue_table;
use crate::dashboard::App;
use crate::page::{self, Page, Section, Visit, sampled};
use crate::sampler::Samples;

pub(crate) async fn page(Extension(app): Extension<App>, Extension(visit): Extension<Visit>) -> Page {
    let content = live(&visit, &app.sampler.samples().await);
    Page::new(Section::Queues, "Queues", page::live(&visit, "/live/queues", &content))
}

/// Draws what changes with each sample.
pub(crate) fn live(visit: &Visit, samples: &Samples) -> Markup {
    sampled("queues", "All queues", &samples.counts, |counts| queue_table(visit, counts, samples))
}
