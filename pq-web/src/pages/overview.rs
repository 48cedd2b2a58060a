//! The overview: all queues, and charts of their totals.

use axum::Extension;
use maud::{Markup, html};

use super::queue_table::queue_table;
use crate::chart::chart;
use crate::dashboard::App;
use crate::html::{number, time};
use crate::page::{Page, Section, Visit, panel};
use crate::sampler::{Point, Samples};

pub(crate) async fn page(Extension(app): Extension<App>, Extension(visit): Extension<Visit>) -> Page {
    let samples = app.sampler.samples().await;
    let content = html! {
        div hx-ext="sse" sse-connect=(visit.url("/live/overview")) sse-swap="update" { (live(&visit, &samples)) }
    };
    Page::new(Section::Overview, "Overview", content)
}

/// Draws what changes with each sample.
pub(crate) fn live(visit: &Visit, samples: &Samples) -> Markup {
    let newest = samples.newest();
    let charts = newest.clone().map(|_| charts(samples));
    let queues = newest.clone().map(|sample| queue_table(visit, sample));
    html! {
        @if let Ok(sample) = &newest { p class="quiet" { "As of " (time(sample.at)) " by the clock of the database." } }
        (panel("totals", "All queues", charts))
        (panel("queues", "Queues", queues))
    }
}

fn charts(samples: &Samples) -> Markup {
    let points: Vec<Point> = samples.points.iter().copied().collect();
    let newest = points.last();
    let whole = |count: fn(&Point) -> u64| newest.map(count).map(number).unwrap_or_default();
    let rate = newest.map(|point| format!("{:.1}", point.per_second)).unwrap_or_default();
    html! {
        div class="cards" {
            (chart("Waiting jobs", &whole(|point| point.waiting), &points, |point| point.waiting as f64))
            (chart("Running jobs", &whole(|point| point.running), &points, |point| point.running as f64))
            (chart("Jobs ended per second", &rate, &points, |point| point.per_second))
        }
    }
}
