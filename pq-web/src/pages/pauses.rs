//! Everything that is paused.

use axum::Extension;
use maud::html;
use pq_diesel::store::Schedules;

use crate::dashboard::App;
use crate::form::button;
use crate::html::{number, text, with_query};
use crate::page::{Page, Section, Visit, panel};

pub(crate) async fn page(Extension(app): Extension<App>, Extension(visit): Extension<Visit>) -> Page {
    let crons = app.reads.read(|pq, conn| pq.store().crons(conn));
    let (samples, crons) = tokio::join!(app.sampler.samples(), crons);
    let queues = samples.newest().map(|sample| {
        let paused: Vec<_> = sample.queues.iter().filter(|queue| queue.is_paused).collect();
        html! {
            @if paused.is_empty() { p { "No queue is paused." } }
            ul { @for queue in paused {
                @let name = queue.queue.as_str();
                li {
                    a href=(visit.url(&with_query("/queue", &[("name", name)]))) { (text(name)) }
                    ": " (number(queue.ready + queue.blocked)) " jobs are due "
                    @if visit.can_act { (button(&visit, &with_query("/queue/resume", &[("name", name)]), &[], "Resume", "")) }
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
                    (text(name)) " "
                    @if visit.can_act { (button(&visit, &with_query("/periodic/resume", &[("name", name)]), &[], "Resume", "")) }
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
