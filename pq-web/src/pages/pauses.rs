//! Everything that is paused.

use axum::Extension;
use chrono::{DateTime, Utc};
use maud::{Markup, html};
use pq_diesel::store::{Admin, Schedules};

use super::queue_table::count;
use crate::dashboard::App;
use crate::form::button_on;
use crate::html::{text, time, with_query};
use crate::page::{Page, Section, Visit, panel};

pub(crate) async fn page(Extension(app): Extension<App>, Extension(visit): Extension<Visit>) -> Page {
    let paused = app.reads.read(|pq, conn| pq.store().paused(conn));
    let crons = app.reads.read(|pq, conn| pq.store().crons(conn));
    let (samples, paused, crons) = tokio::join!(app.sampler.samples(), paused, crons);
    let counts = samples.counts.sample().ok();
    let resume = |path: &str, name: &str| {
        html! { @if visit.can_act { (button_on(&visit, &with_query(path, &[("name", name)]), &[], "Resume", "", name)) } }
    };
    let queues = paused.map(|paused| {
        html! {
            @if paused.is_empty() { p { "No queue is paused." } }
            ul { @for pause in &paused {
                @let name = pause.queue.as_str();
                li {
                    a href=(visit.url(&with_query("/queue", &[("name", name)]))) { (text(name)) }
                    ", " (since(Some(pause.paused_at), pause.paused_by.as_deref())) ". "
                    @if let Some(queue) = counts.and_then(|counts| counts.queue(name)) {
                        (count(queue.is_estimated, queue.ready + queue.blocked)) " jobs are due. "
                    }
                    (resume("/queue/resume", name))
                }
            } }
        }
    });
    let periodic = crons.map(|entries| {
        let paused: Vec<_> = entries.iter().filter(|entry| entry.paused).collect();
        html! {
            @if paused.is_empty() { p { "No periodic job is paused." } }
            ul { @for entry in paused {
                @let name = entry.cron.name.as_str();
                li {
                    (text(name)) ", " (since(entry.paused_at, entry.paused_by.as_deref())) ". "
                    (resume("/periodic/resume", name))
                }
            } }
        }
    });
    let content = html! {
        (panel("queues", "Queues", queues))
        (panel("periodic", "Periodic jobs", periodic))
    };
    Page::new(Section::Pauses, "Pauses", content)
}

/// Draws since when something is paused, and by whom, as far as that is known.
pub(super) fn since(at: Option<DateTime<Utc>>, by: Option<&str>) -> Markup {
    html! {
        @if let Some(at) = at { "since " (time(at)) }
        @if let Some(by) = by { " by " (text(by)) }
    }
}
