//! One queue: its numbers, its actions and its first jobs.

use std::sync::Arc;

use axum::Extension;
use maud::{Markup, html};
use pq_diesel::metrics::QueueGauges;
use pq_diesel::store::Admin;
use pq_diesel::{Filter, JobState};

use super::job_table::job_table;
use super::queue_table::count;
use crate::dashboard::App;
use crate::form::{button, field};
use crate::guard::Fields;
use crate::html::{duration, with_query};
use crate::page::{Page, Section, Visit, panel};
use crate::sampler::Sample;

/// The number of jobs on the page.
const JOBS: usize = 10;

pub(crate) async fn page(
    Extension(app): Extension<App>,
    Extension(visit): Extension<Visit>,
    Extension(fields): Extension<Arc<Fields>>,
) -> Page {
    let name = fields.get("name").to_owned();
    let filter = Filter::queue(&name);
    let first = app.reads.read(move |pq, conn| pq.store().list(conn, &filter, JOBS));
    let (samples, first) = tokio::join!(app.sampler.samples(), first);
    let counts = samples.newest().map(|sample| {
        let found = sample.queues.iter().find(|queue| queue.queue == name);
        found.map_or_else(
            || html! { p { "This queue has no jobs, or is not among the first by name." } },
            |queue| numbers(&visit, sample, queue),
        )
    });
    let all = with_query("/jobs", &[("queue", &name)]);
    let first = first.map(|jobs| {
        html! {
            (job_table(&visit, &app.mask, &jobs, false))
            p { a href=(visit.url(&all)) { "All jobs of this queue" } }
        }
    });
    let content = html! {
        (panel("numbers", "Jobs by state", counts))
        @if visit.can_act { (actions(&visit, &name)) }
        (panel("jobs", "First jobs", first))
    };
    Page::new(Section::Queues, format!("Queue {name}"), content)
}

fn numbers(visit: &Visit, sample: &Sample, queue: &QueueGauges) -> Markup {
    let name = queue.queue.as_str();
    let states = [
        (JobState::Ready, queue.ready),
        (JobState::Blocked, queue.blocked),
        (JobState::Scheduled, queue.scheduled),
        (JobState::Running, queue.running),
        (JobState::Dead, queue.dead),
        (JobState::Cancelled, queue.cancelled),
        (JobState::Done, queue.done),
    ];
    html! {
        @if queue.is_paused { p { span class="tag paused" { "paused" } } }
        dl {
            @for (state, jobs) in states {
                dt { (state.as_str()) }
                dd { a href=(visit.url(&with_query("/jobs", &[("queue", name), ("state", state.as_str())]))) { (count(queue, jobs)) } }
            }
            @if let Some(age) = queue.oldest { dt { "oldest due job" } dd { (duration(age)) } }
            dt { "ended per second" } dd { (format!("{:.1}", sample.per_second(name))) }
        }
    }
}

fn actions(visit: &Visit, name: &str) -> Markup {
    let to = |action: &str| with_query(action, &[("name", name)]);
    html! {
        section aria-labelledby="actions" {
            h2 id="actions" { "Actions" }
            div class="buttons" {
                (button(visit, &to("/queue/pause"), &[], "Pause", ""))
                (button(visit, &to("/queue/resume"), &[], "Resume", ""))
                (button(visit, &to("/queue/retry-dead"), &[], "Retry all dead jobs", ""))
                (button(visit, &to("/queue/clear"), &[], "Delete all waiting jobs…", "danger"))
                a class="button" href=(visit.url(&with_query("/put", &[("queue", name)]))) { "Put a job" }
            }
            form method="post" action=(visit.url(&to("/queue/move"))) class="filters" {
                (visit.token_field())
                (field("to", "Move all waiting jobs to the queue", "text", ""))
                button class="danger" { "Move…" }
            }
        }
    }
}
