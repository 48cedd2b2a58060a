//! The overview: all queues, and charts of their totals.

use axum::Extension;
use maud::{Markup, html};

use super::queue_table::{count, queue_table};
use crate::chart::chart;
use crate::dashboard::App;
use crate::page::{self, Page, Section, Visit, sampled};
use crate::sampler::{Activity, Counts, Samples};

pub(crate) async fn page(Extension(app): Extension<App>, Extension(visit): Extension<Visit>) -> Page {
    let content = live(&visit, &app.sampler.samples().await);
    Page::new(Section::Overview, "Overview", page::live(&visit, "/live/overview", &content))
}

/// Draws what changes with each sample.
pub(crate) fn live(visit: &Visit, samples: &Samples) -> Markup {
    html! {
        (sampled("activity", "What becomes of jobs", &samples.activity, activity))
        (sampled("totals", "Jobs", &samples.counts, totals))
        (sampled("queues", "Queues", &samples.counts, |counts| queue_table(visit, counts, samples)))
    }
}

fn activity(activity: &Activity) -> Markup {
    let rate = |rate: f64| format!("{rate:.1}");
    html! {
        div class="cards" {
            (chart("Done per second", &rate(activity.done.newest()), &activity.done))
            (chart("Failed attempts per second", &rate(activity.failed.newest()), &activity.failed))
        }
    }
}

fn totals(counts: &Counts) -> Markup {
    let is_estimated = counts.queues.iter().any(|queue| queue.is_estimated);
    let whole = |number: f64| count(is_estimated, number as u64);
    html! {
        div class="cards" {
            (chart("Waiting jobs", &whole(counts.waiting.newest()), &counts.waiting))
            (chart("Running jobs", &whole(counts.running.newest()), &counts.running))
        }
    }
}
